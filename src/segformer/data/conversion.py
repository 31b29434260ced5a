"""Converting a data set of any layout into plain folders or COCO JSON."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segformer.data.coco_writer import IGNORED, CocoWriter
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.pairing import Sample
from segformer.data.plain import (
    PlainWriter,
    check_destination,
    write_pairs,
    write_record,
    written_splits,
)
from segformer.data.tiling import write_tile
from segformer.files import whole_folder
from segformer.image import ImageArray, ImageFiles, SceneTile, read_image

Format: TypeAlias = Literal["masks", "coco"]
"""What is written: masks of class ids with dataset.yaml, or COCO JSON."""


@dataclass
class Conversion:
    """What was written.

    Attributes:
        images: Number of images of each split.
        skipped: Messages of the images that were not written, because they or their masks cannot
            be read.
        notes: Sentences about what the written form cannot express.
    """

    images: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert(
    parts: Sequence[Dataset],
    folder: str | Path,
    *,
    format: Format = "masks",
    link: bool = False,
    overwrite: bool = False,
    on_sample: Callable[[], None] | None = None,
) -> Conversion:
    """Write splits into a folder, which appears whole or not at all.

    Images keep their files unchanged. Images that cannot be read, or whose masks cannot, are
    skipped. ``conversion.json`` lists them.

    Args:
        parts: Splits of one source. A source's only split is written as ``train``; splits other
            than train, val and test are not written.
        folder: Where to.
        format: "masks": ``images/``, ``masks/`` and ``dataset.yaml``. "coco": ``images/`` and
            ``annotations/instances_SPLIT.json`` with run lengths.
        link: Make hard links to the image files instead of copies where the file system can.
        overwrite: A folder that an earlier conversion wrote may be replaced.
        on_sample: Called after each image.

    Raises:
        DatasetError: None of the splits or none of the images can be written.
        OutputExists: The folder holds something.
    """
    folder = Path(folder)
    check_destination(folder, parts[0].root, overwrite=overwrite)
    splits = written_splits(parts)
    done = Conversion()
    left_out = [p.split for p in parts if all(p is not part for part in splits.values())]
    if left_out:
        done.notes.append(f"splits that are not train, val or test: {', '.join(left_out)}")
    classes = next(iter(splits.values())).classes
    with whole_folder(folder) as partial:
        plain = PlainWriter(partial, classes)
        for split, dataset in splits.items():
            if format == "coco":
                _write_coco(dataset, split, partial, done, link, on_sample)
            else:
                _write_masks(dataset, split, plain, done, link, on_sample)
        if not any(done.images.values()):
            raise DatasetError(
                f"{parts[0].root}: none of its images can be converted; the first error: "
                f"{done.skipped[0]}"
            )
        if format == "masks":
            plain.describe({split: d for split, d in splits.items() if done.images[split]})
        write_record(
            partial,
            source=str(parts[0].root.resolve()),
            read_as=parts[0].taken_for,
            format=format,
            images=done.images,
            skipped=done.skipped,
        )
    return done


def _write_masks(
    dataset: Dataset,
    split: str,
    writer: PlainWriter,
    done: Conversion,
    link: bool,
    on_sample: Callable[[], None] | None,
) -> None:
    def write(
        sample: Sample, path: Path, image: ImageArray, class_ids: NDArray[np.integer] | None
    ) -> None:
        if class_ids is not None:
            tile = sample.image if isinstance(sample.image, SceneTile) else None
            writer.write_mask(path, class_ids, tile)
        _place(sample.image, path, link, dataset.channels)

    images = writer.folder / "images" / split
    written = write_pairs(dataset, images, write, skipped=done.skipped, on_sample=on_sample)
    done.images[split] = sum(1 for _ in written)


def _write_coco(
    dataset: Dataset,
    split: str,
    folder: Path,
    done: Conversion,
    link: bool,
    on_sample: Callable[[], None] | None,
) -> None:
    images = folder / "images" / split
    with CocoWriter(folder, split, dataset.classes, has_masks=dataset.has_masks) as writer:

        def write(
            sample: Sample, path: Path, image: ImageArray, class_ids: NDArray[np.integer] | None
        ) -> tuple[Path, tuple[int, ...], list[dict[str, Any]]]:
            annotations = [] if class_ids is None else writer.annotate(class_ids)
            _place(sample.image, path, link, dataset.channels)
            return path, image.shape[:2], annotations

        done.images[split] = 0
        for path, shape, annotations in write_pairs(
            dataset, images, write, skipped=done.skipped, on_sample=on_sample
        ):
            writer.add(PurePosixPath(path.relative_to(images)), shape, annotations)
            done.images[split] += 1
        writer.finish()
    if writer.has_ignored:
        done.notes.append(
            f"split {split}: pixels that are not labeled have the category {IGNORED!r}, because "
            "COCO JSON has no notation for them"
        )


def _place(image: ImageFiles, target: Path, link: bool, channels: int) -> None:
    """Copy or link an image file; channels in files of their own are written as one TIFF."""
    if isinstance(image, SceneTile):
        image.save(target)
        return
    if not isinstance(image, Path):
        write_tile(target, read_image(image, channels, as_8_bit=False))
        return
    if link:
        try:
            os.link(image.resolve(), target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(image, target)
