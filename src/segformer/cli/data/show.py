"""`segformer data show`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from segformer.cli.terminal import parse, printable

if TYPE_CHECKING:
    from segformer.data.dataset import Dataset
    from segformer.data.sheet import Cell


def run(words: list[str]) -> int:
    """Run the action; returns the exit code."""
    import tyro

    from segformer.data.options import SeededSourceOptions

    @dataclass
    class Show:
        """Draw a sheet of images with their masks over them, file names and a legend.

        Example: segformer data show my-data --out sheet.jpg

        Example: segformer data show my-data --class water --augmented --out water.jpg

        Exit codes: 0, the sheet is written, or --worst has nothing to show; 1, the source cannot
        be read; 2, wrong usage.

        Attributes:
            source: Folder with dataset.yaml, or with images/{train,val} and masks/{train,val}, or
                in a known layout, or a zip of one of these.
            out: Image file to write.
            count: Number of images at most, chosen at random by --seed.
            split: Split to show.
            class_name: Only images in which this class occurs.
            augmented: Show crops as training sees them, with the augmentation of --recipe.
            recipe: Recipe of segformer train: a YAML file, or the name of one in the package.
            worst: Show the images that segformer data check complains of, with what is wrong. All
                files are read.
            overwrite: Replace the image file if it exists.
        """

        source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
        out: Path
        count: int = 24
        split: Annotated[
            str | None,
            tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the first of the source)"),
        ] = None
        class_name: Annotated[
            str | None, tyro.conf.arg(name="class", metavar="NAME", help_behavior_hint="")
        ] = None
        augmented: bool = False
        recipe: Annotated[
            str | None,
            tyro.conf.arg(metavar="RECIPE", help_behavior_hint="(default: the default options)"),
        ] = None
        worst: bool = False
        overwrite: bool = False
        reading: Annotated[
            tyro.conf.OmitArgPrefixes[SeededSourceOptions], tyro.conf.arg(name="data set")
        ] = field(default_factory=SeededSourceOptions)

    options = parse(Show, "data show", words)
    if options.count < 1:
        raise ValueError(f"count must be at least 1, not {options.count}")
    if options.worst and (options.augmented or options.class_name is not None):
        raise ValueError("worst cannot be combined with augmented or class")
    if options.recipe is not None and not options.augmented:
        raise ValueError("recipe is for augmented; give both")

    from segformer.data.sheet import write_sheet
    from segformer.data.source import open_split, source_splits
    from segformer.files import check_replaceable
    from segformer.progress import ProgressBar

    check_image_file(options.out)
    check_replaceable([options.out], overwrite=options.overwrite)
    how = options.reading
    split = options.split or source_splits(options.source, how)[0]
    dataset = open_split(options.source, split, how, how.seed)
    cells, total = _worst(options, dataset) if options.worst else _chosen(options, dataset)
    if not total:
        print(f"check complains of no image of split {split!r}; no sheet is written")
        return 0
    title = f"{dataset.root.name}, {split}: {total} of {len(dataset)} images"
    title += f" with {options.class_name}" if options.class_name is not None else ""
    title += ", augmented" if options.augmented else ""
    with ProgressBar("drawing", total, "images") as bar:

        def counted() -> "Iterable[Cell]":
            for cell in cells:
                bar.advance()
                if cell.complaint and not options.worst:
                    print(printable(f"{cell.name}: {cell.complaint}"), file=sys.stderr)
                yield cell

        write_sheet(counted(), dataset.classes, options.out, title)
    print(f"written: {options.out} ({total} images)")
    return 0


def check_image_file(path: Path) -> None:
    """Raise an error if images cannot be written under this name."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
        raise ValueError(f"--out {path}: must end with .jpg, .png or .webp")


def _chosen(options: Any, dataset: "Dataset") -> tuple["Iterable[Cell]", int]:
    from segformer.data.sheet import augmented_cells, choose_samples, mask_cells
    from segformer.progress import ProgressBar

    seed = options.reading.seed
    with ProgressBar("reading masks", len(dataset), "masks") as bar:
        samples = choose_samples(
            dataset,
            options.count,
            class_name=options.class_name,
            seed=seed,
            on_sample=bar.advance,
        )
    if not options.augmented:
        return mask_cells(dataset, samples), len(samples)

    from segformer.training.config import Recipe, SegmentationTrainConfig
    from segformer.training.preparation import augmentation

    config = Recipe.read(options.recipe).config if options.recipe else SegmentationTrainConfig()
    if not isinstance(config, SegmentationTrainConfig):
        raise ValueError(f"{options.recipe}: the recipe is for task {config.task}, not segment")
    augment = augmentation(config, dataset.classes)
    return augmented_cells(dataset, samples, augment, seed), len(samples)


def _worst(options: Any, dataset: "Dataset") -> tuple["Iterable[Cell]", int]:
    from segformer.data.check import check_split
    from segformer.data.sheet import mask_cells
    from segformer.progress import ProgressBar

    with ProgressBar("checking", len(dataset), "images") as bar:
        report = check_split(dataset, bar.advance)
    found = report.complaints[: options.count]
    complaints = {sample.name: words for sample, words in found}
    return mask_cells(dataset, [sample for sample, _ in found], complaints), len(found)
