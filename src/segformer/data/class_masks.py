"""Masks of classes that may overlap: a file for each class, or one file with a channel for each.

Legend: H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.errors import DatasetError
from segformer.data.multilabel import IGNORED, pack
from segformer.data.pairing import MaskNames, Sample, find_samples
from segformer.image import LOSSY_SUFFIXES, read_mask, read_mask_channels

CLASS = "{class}"
"""Stands for the name of a class in a pattern of mask names."""


@dataclass(frozen=True, slots=True)
class ClassMasks:
    """The masks of one image: 0 where a class is absent, another value where it is present.

    Attributes:
        files: File of each class id; a class without a file is absent. Or one file of all classes,
            with the id -1.
        num_classes: Number of classes.
        ignore_value: Value of pixels that are ignored for all classes, or None.
    """

    files: tuple[tuple[int, Path], ...]
    num_classes: int
    ignore_value: int | None

    @property
    def file(self) -> Path:
        """The first file, for messages."""
        return self.files[0][1]

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Packed classes (H, W); see `segformer.data.multilabel`.

        Raises:
            ValueError: A file cannot be read, or is not of this size.
        """
        present = np.zeros((self.num_classes, height, width), bool)
        ignored = np.zeros((height, width), bool)
        for class_id, file in self.files:
            if class_id < 0:
                values = read_mask_channels(file, self.num_classes).transpose(2, 0, 1)
            else:
                values = read_mask(file)
            if values.shape[-2:] != (height, width):
                raise DatasetError(
                    f"{file}: the mask is {values.shape[-1]} x {values.shape[-2]} pixels, its "
                    f"image {width} x {height}"
                )
            if file.suffix.lower() in LOSSY_SUFFIXES:  # JPEG changes values
                values = np.where(values >= 128, 255, 0)
            if self.ignore_value is not None:
                unlabeled = values == self.ignore_value
                ignored |= unlabeled if class_id >= 0 else unlabeled.any(0)
            present[slice(None) if class_id < 0 else class_id] = values != 0
        packed = pack(present)
        packed[ignored] = IGNORED
        return packed


def find_class_masks(
    images: Path,
    names: MaskNames,
    split: str,
    classes: ClassSet,
    ignore_value: int | None,
    channels: Mapping[Path, tuple[Path, ...]] | None = None,
) -> tuple[tuple[Sample, ...], tuple[Path, ...]]:
    """Pair the images of a split with the masks of their classes.

    Args:
        images: Folder of the images.
        names: How masks are named; a pattern that holds `CLASS` names a file for each class.
        split: "train", "val" or another.
        classes: The classes.
        ignore_value: Value of pixels that are ignored for all classes, or None.
        channels: As for `segformer.data.pairing.find_samples`.

    Returns:
        Samples sorted by name, and the masks that belong to no image.
    """
    if CLASS not in names.pattern:
        samples, stray = find_samples(images, names, split, channels)
        found = {s.name: [(-1, s.mask)] for s in samples if isinstance(s.mask, Path)}
    else:
        found, stray = {}, ()
        for class_id, name in enumerate(classes.names):
            of_class = replace(names, pattern=names.pattern.replace(CLASS, name))
            samples, _ = find_samples(images, of_class, split, channels)
            for sample in samples:
                if isinstance(sample.mask, Path):
                    found.setdefault(sample.name, []).append((class_id, sample.mask))
    return tuple(
        replace(
            sample, mask=ClassMasks(tuple(files), len(classes), ignore_value) if files else None
        )
        for sample in samples
        for files in [found.get(sample.name, [])]
    ), stray
