"""Masks that hold a color for each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.data.errors import Color
from segformer.data.masks import ids_of_colors
from segformer.image import read_image


@dataclass(frozen=True)
class ColorTable:
    """What the colors of masks mean.

    Attributes:
        class_of: Class id of each color.
        tolerance: Channel values this close to 0 or 255 are taken as 0 or 255.
    """

    class_of: Mapping[Color, int]
    tolerance: int = 0


@dataclass(frozen=True, slots=True)
class ColorMask:
    """A mask file of RGB colors, or of palette entries that stand for colors."""

    file: Path
    table: ColorTable

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W); a ValueError names unknown colors."""
        colors = read_image(self.file, 3)
        if self.table.tolerance:
            colors = colors.copy()
            colors[colors <= self.table.tolerance] = 0
            colors[colors >= 255 - self.table.tolerance] = 255
        return ids_of_colors(self.file, colors, self.table.class_of)
