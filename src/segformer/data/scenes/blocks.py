"""Dividing a scene into blocks for training and validation, and blocks into tiles.

Neighboring pixels are similar, so a validation tile beside a training tile says little about other
places. Scenes are therefore divided into blocks of several tiles. Whole blocks are held out, and
between them and the training tiles there is a gap.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

from segformer.data.tiling import tile_starts
from segformer.image.scene_grid import Window

Block: TypeAlias = tuple[int, int]
"""Row and column of a block in its scene."""


def block_edges(length: int, block: int) -> list[int]:
    """Where blocks begin along a side, and where the last one ends.

    A rest of less than half a block belongs to the last block.
    """
    edges = list(range(0, length, block))
    if len(edges) > 1 and length - edges[-1] < block / 2:
        edges.pop()
    return [*edges, length]


def blocks_of(height: int, width: int, block: int) -> dict[Block, Window]:
    """The blocks of a scene, row by row.

    Args:
        height: Of the scene, pixels.
        width: Of the scene, pixels.
        block: Side of a block; the last of a row or column have half to one and a half of it.
    """
    rows, columns = block_edges(height, block), block_edges(width, block)
    return {
        (i, j): Window(rows[i], columns[j], rows[i + 1] - rows[i], columns[j + 1] - columns[j])
        for i in range(len(rows) - 1)
        for j in range(len(columns) - 1)
    }


def without_gap(block: Block, area: Window, held_out: Collection[Block], gap: int) -> Window:
    """The part of a block that is at least ``gap`` pixels away from all blocks that are held out.

    Args:
        block: Row and column of the block.
        area: Its pixels.
        held_out: Rows and columns of the blocks for validation.
        gap: Pixels.
    """
    row, column = block
    above, below = ((row + step, column) in held_out for step in (-1, 1))
    before, after = ((row, column + step) in held_out for step in (-1, 1))
    for down in (-1, 1):
        for right in (-1, 1):
            cut = (above if down < 0 else below) or (before if right < 0 else after)
            if (row + down, column + right) in held_out and not cut:
                if right < 0:
                    before = True
                else:
                    after = True
    return Window(
        area.top + gap * above,
        area.left + gap * before,
        area.height - gap * (above + below),
        area.width - gap * (before + after),
    )


def tiles_of(area: Window, size: int, overlap: int = 0) -> list[Window]:
    """Tiles that cover a rectangle; the last of a row or column are moved back to end with it.

    A rectangle that is smaller than a tile is one tile of its own size.
    """
    return [
        Window(area.top + top, area.left + left, min(size, area.height), min(size, area.width))
        for top in tile_starts(area.height, size, overlap)
        for left in tile_starts(area.width, size, overlap)
    ]
