"""How a scene is cut: windows that the model sees, and blocks of pixels that are written.

Windows start at multiples of the stride from the first pixel of the file, whatever part of it is
wanted and however much memory there is, so that neither changes the result. Blocks are cut where
few windows meet two of them, and can be predicted in any order and on any machine.

Legend: T tokens, the pixels of logits: 4 x 4 pixels of the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segformer.image.scene_grid import Window
from segformer.prediction.config import SMALLEST_SIDE
from segformer.prediction.windows import window_starts

TOKEN = 4
"""Pixels of a side of a token."""


@dataclass(frozen=True)
class Axis:
    """Windows along one side of a raster.

    Attributes:
        length: Pixels of the side.
        window: Pixels of a window, a multiple of 4; a short side has smaller ones.
        overlap: Pixels by which windows overlap at least, a multiple of 4.
    """

    length: int
    window: int
    overlap: int

    @cached_property
    def starts(self) -> list[int]:
        """First pixel of each window, multiples of 4."""
        return window_starts(self.tokens * TOKEN, self.window, self.window - self.overlap)

    @property
    def tokens(self) -> int:
        """Tokens of the side; the last may reach over its end."""
        return -(-self.length // TOKEN)

    @cached_property
    def cuts(self) -> list[int]:
        """Pixels at which blocks may begin and end, the first 0 and the last ``length``.

        The upsampling of logits needs one token beyond a block. So the cuts are one token behind
        the end of a window: the next block does not need this window.
        """
        ends = (start + self.window + TOKEN for start in self.starts[:-1])
        return [0, *(end for end in ends if end < self.length), self.length]

    def windows(self, first: int, last: int) -> range:
        """Numbers of the windows that the pixels from ``first`` to before ``last`` need."""
        needed = [
            number
            for number, start in enumerate(self.starts)
            if start < last + TOKEN and start + self.window > first - TOKEN
        ]
        return range(needed[0], needed[-1] + 1)

    def cells(self, first: int, last: int) -> range:
        """Numbers of the cells between two cuts that the pixels meet."""
        met = [i for i, cut in enumerate(self.cuts[1:]) if cut > first and self.cuts[i] < last]
        return range(met[0], met[-1] + 1)

    @cached_property
    def weight(self) -> NDArray[np.float32]:
        """(T,) weight of each token of a window: 1, falling linearly to its ends."""
        tokens = self.window // TOKEN
        if not self.overlap:
            return np.ones(tokens, np.float32)
        inward = np.arange(tokens, dtype=np.float32) + 0.5
        ramp = np.minimum(inward, inward[::-1]) / (self.overlap / TOKEN)
        return np.minimum(ramp, 1, dtype=np.float32)


@dataclass(frozen=True)
class Tiling:
    """Windows over a whole raster.

    Attributes:
        height: Pixels of the raster.
        width: Pixels of the raster.
        window: Pixels of a window.
        overlap: Pixels by which windows overlap at least.

    Raises:
        ValueError: The window or the overlap is not possible.
    """

    height: int
    width: int
    window: int
    overlap: int

    def __post_init__(self) -> None:
        if self.window % TOKEN or self.window < SMALLEST_SIDE:
            raise ValueError(
                f"window {self.window} must be a multiple of 4, at least {SMALLEST_SIDE}"
            )
        if self.overlap % TOKEN or not 0 <= self.overlap < self.window:
            raise ValueError(
                f"overlap {self.overlap} must be a multiple of 4, at least 0 and less than the "
                f"window of {self.window} pixels"
            )

    @cached_property
    def rows(self) -> Axis:
        """Windows from top to bottom."""
        return self._axis(self.height)

    @cached_property
    def columns(self) -> Axis:
        """Windows from left to right."""
        return self._axis(self.width)

    def _axis(self, length: int) -> Axis:
        side = max(SMALLEST_SIDE, min(self.window, -(-length // TOKEN) * TOKEN))
        return Axis(length, side, min(self.overlap, side - TOKEN))


@dataclass(frozen=True)
class Strip:
    """A row of windows, which is read and run as one.

    Attributes:
        tiling: Windows of the raster.
        row: Number of the row.
        columns: Numbers of the windows in it.
    """

    tiling: Tiling
    row: int
    columns: range

    @property
    def window(self) -> Window:
        """Its pixels in the raster; they may reach over the border."""
        top = self.tiling.rows.starts[self.row]
        starts, side = self.tiling.columns.starts, self.tiling.columns.window
        left, right = starts[self.columns[0]], starts[self.columns[-1]] + side
        return Window(top, left, self.tiling.rows.window, right - left)


@dataclass(frozen=True)
class Block:
    """Pixels of a raster that are predicted and written as one.

    Attributes:
        tiling: Windows of the raster.
        pixels: Its pixels in the raster.
    """

    tiling: Tiling
    pixels: Window

    @property
    def strips(self) -> tuple[Strip, ...]:
        """The rows of windows that it needs, from top to bottom."""
        columns = self.tiling.columns.windows(self.pixels.left, self.pixels.right)
        rows = self.tiling.rows.windows(self.pixels.top, self.pixels.bottom)
        return tuple(Strip(self.tiling, row, columns) for row in rows)

    @property
    def tokens(self) -> Window:
        """Its logits in those of the raster, with a margin of one where there are more."""
        top, left = (max(0, first // TOKEN - 1) for first in (self.pixels.top, self.pixels.left))
        bottom = min(self.tiling.rows.tokens, -(-self.pixels.bottom // TOKEN) + 1)
        right = min(self.tiling.columns.tokens, -(-self.pixels.right // TOKEN) + 1)
        return Window(top, left, bottom - top, right - left)


def plan_blocks(tiling: Tiling, wanted: Window, *, cells: tuple[int, int]) -> Iterator[Block]:
    """Blocks that cover a part of a raster exactly once, from top to bottom, column by column.

    Blocks that follow each other have a row of windows in common, so that it need not be run twice.

    Args:
        tiling: Windows of the raster.
        wanted: Pixels to cover.
        cells: Rows and columns of cells, each about a stride high and wide, of a block.
    """
    rows = tiling.rows.cells(wanted.top, wanted.bottom)
    columns = tiling.columns.cells(wanted.left, wanted.right)
    for first_column in columns[:: cells[1]]:
        last_column = min(first_column + cells[1], columns[-1] + 1)
        left, right = tiling.columns.cuts[first_column], tiling.columns.cuts[last_column]
        for first_row in rows[:: cells[0]]:
            last_row = min(first_row + cells[0], rows[-1] + 1)
            top, bottom = tiling.rows.cuts[first_row], tiling.rows.cuts[last_row]
            pixels = Window(top, left, bottom - top, right - left).within(wanted)
            yield Block(tiling, pixels)
