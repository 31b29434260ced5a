"""Masks that hold a color for each class, and gray masks that a lossy format has blurred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.data.sample import DatasetError
from segformer.image import read_image


@dataclass(frozen=True)
class ColorTable:
    """What each color of a mask means.

    Attributes:
        class_of: (red, green, blue) -> class id.
        dtype: Of the class ids.
        tolerance: Channel values this close to 0 or 255 are taken as 0 or 255.
    """

    class_of: Mapping[tuple[int, int, int], int]
    dtype: str = "uint8"
    tolerance: int = 0

    def to_class_ids(self, colors: NDArray[np.uint8], file: Path) -> NDArray[np.integer]:
        """Class ids (H, W) of RGB colors (H, W, 3).

        Raises:
            DatasetError: Some colors are not in the table.
        """
        if self.tolerance:
            colors = colors.copy()
            colors[colors <= self.tolerance] = 0
            colors[colors >= 255 - self.tolerance] = 255
        packed = _pack(colors)
        class_ids = np.zeros(packed.shape, self.dtype)
        known = np.zeros(packed.shape, bool)
        for (red, green, blue), class_id in self.class_of.items():
            here = packed == (red << 16 | green << 8 | blue)
            class_ids[here] = class_id
            known |= here
        if not known.all():
            values, counts = np.unique(packed[~known], return_counts=True)
            largest = np.argsort(-counts)[:5]
            shown = ", ".join(
                f"({v >> 16}, {v >> 8 & 255}, {v & 255}) in {n} pixels"
                for v, n in zip(values[largest].tolist(), counts[largest].tolist(), strict=True)
            )
            more = f" and {len(values) - 5} more" if len(values) > 5 else ""
            raise DatasetError(f"{file}: colors that belong to no class: {shown}{more}")
        return class_ids


def _pack(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(H, W, 3) colors as one integer each."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


@dataclass(frozen=True, slots=True)
class ColorMask:
    """A mask file of RGB colors, or of palette entries that stand for colors."""

    file: Path
    colors: ColorTable

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W); a ValueError names unknown colors."""
        return self.colors.to_class_ids(read_image(self.file, 3).astype(np.uint8), self.file)


@dataclass(frozen=True, slots=True)
class BinaryMask:
    """A gray mask of two classes, dark and bright, as JPEG compression leaves it."""

    file: Path

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W), 1 where the mask is bright.

        Raises:
            DatasetError: More than one pixel in ten is neither dark nor bright.
        """
        gray = read_image(self.file, 1)[:, :, 0]
        between = float(((gray > 64) & (gray < 192)).mean())
        if between > 0.1:
            raise DatasetError(
                f"{self.file}: a mask in JPEG must be black and white, but {between:.0%} of its "
                "pixels are gray; JPEG changes class ids, so store the masks as PNG"
            )
        return (gray >= 128).astype(np.uint8)
