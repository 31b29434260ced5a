"""`segformer compare`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from segformer.cli.terminal import PARTIAL, parse, show, show_failures


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.cli.scoring_options import ScoringOptions

    @dataclass(kw_only=True)
    class Compare(ScoringOptions):
        """Score two segmentation models on one data set and compare them.

        The IoU of each class and the mIoU of both models, their differences with 95 % confidence
        intervals, and the images on which they disagree the most. Writes comparison.json,
        comparison.html and comparison.csv (a row for each image).

        Intervals are computed by drawing images with replacement. The classes of the models may
        be in different orders.

        Example: segformer compare runs/a/best runs/b/best --dataset water/ --out comparison

        Unreadable images and masks are skipped and listed. The exit code is then 3.

        Attributes:
            a: Folder, file or Hub id of the first model.
            b: The same of the second.
            dataset: Folder with dataset.yaml, or with images/val and masks/val, or in a known
                layout.
            out: Folder for the three files.
            resamples: Number of times that the images are drawn for the intervals.
        """

        a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
        b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
        dataset: Path
        out: Path = Path("comparison")
        resamples: Annotated[int, tyro.conf.arg(metavar="INT")] = 1000

    options = parse(Compare, "compare", words)
    if options.resamples < 100:
        raise ValueError(f"--resamples must be at least 100, not {options.resamples}")

    from segformer.checkpoints.opening import open_checkpoint
    from segformer.data.source import open_split
    from segformer.evaluation.compare import compare
    from segformer.evaluation.comparison_report import (
        COMPARISON_FILES,
        comparison_table,
        write_comparison,
    )
    from segformer.evaluation.protocol import open_predictor
    from segformer.files import check_replaceable, check_writable
    from segformer.model.pretrained import assemble
    from segformer.model.segformer import SegFormer
    from segformer.progress import ProgressBar

    check_replaceable(
        [options.out / name for name in COMPARISON_FILES], overwrite=options.overwrite
    )
    check_writable(options.out)
    names = (options.a, options.b)
    checkpoints = [open_checkpoint(name) for name in names]
    for name, checkpoint in zip(names, checkpoints, strict=True):
        if checkpoint.kind == "classifier":
            raise ValueError(f"{name}: a classifier; only segmentation models can be compared")
    dataset = open_split(options.dataset, options.split, options.reading, options.reading.seed)
    first, second = (
        open_predictor(assemble(SegFormer, checkpoint), options.config, options.protocol)
        for checkpoint in checkpoints
    )
    with ProgressBar("comparing", 2 * len(dataset), "images") as bar:
        comparison = compare(
            dataset,
            first,
            second,
            names,
            match_classes=options.match_classes,
            resamples=options.resamples,
            seed=options.reading.seed,
            on_image=bar.advance,
        )
    written = write_comparison(comparison, options.out, dataset, options.entries())
    show(comparison_table(comparison))
    print("written: " + ", ".join(str(path) for path in written))
    show_failures(comparison.failed)
    return PARTIAL if comparison.failed else 0
