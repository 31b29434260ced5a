"""Windows and blocks of scenes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer.image.scene_grid import Window
from segformer.raster.tiling import TOKEN, Tiling, plan_blocks

sides = st.integers(1, 900)


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    window = 4 * draw(st.integers(8, 40))
    overlap = 4 * draw(st.integers(0, window // 4 - 1))
    return Tiling(draw(sides), draw(sides), window, overlap)


@given(tilings(), st.integers(1, 4), st.integers(1, 4), st.data())
def test_blocks_cover_what_is_wanted_exactly_once(
    tiling: Tiling, rows: int, columns: int, data: st.DataObject
) -> None:
    top = data.draw(st.integers(0, tiling.height - 1))
    left = data.draw(st.integers(0, tiling.width - 1))
    height = data.draw(st.integers(1, tiling.height - top))
    width = data.draw(st.integers(1, tiling.width - left))
    count = np.zeros((tiling.height, tiling.width), int)
    for block in plan_blocks(tiling, Window(top, left, height, width), cells=(rows, columns)):
        assert not block.pixels.is_empty
        count[block.pixels.slices] += 1
    expected = np.zeros_like(count)
    expected[top : top + height, left : left + width] = 1
    assert (count == expected).all()


@given(tilings())
def test_windows_cover_every_token_with_a_weight(tiling: Tiling) -> None:
    for axis in (tiling.rows, tiling.columns):
        weight = np.zeros(max(axis.tokens, axis.window // TOKEN), np.float64)
        for start in axis.starts:
            assert start % TOKEN == 0
            weight[start // TOKEN : (start + axis.window) // TOKEN] += axis.weight
        assert (weight > 0).all()


@given(tilings(), st.data())
def test_a_block_has_all_windows_that_reach_its_pixels(tiling: Tiling, data: st.DataObject) -> None:
    axis = tiling.rows
    first = data.draw(st.integers(0, axis.length - 1))
    last = data.draw(st.integers(first + 1, axis.length))
    needed = {
        number
        for number, start in enumerate(axis.starts)
        for pixel in (first - TOKEN, first, last - 1, last - 1 + TOKEN)
        if start <= pixel < start + axis.window
    }
    assert needed <= set(axis.windows(first, last))


@given(tilings())
def test_following_blocks_share_one_row_of_windows_where_overlaps_are_small(
    tiling: Tiling,
) -> None:
    blocks = list(plan_blocks(tiling, Window(0, 0, tiling.height, tiling.width), cells=(1, 10**6)))
    if tiling.overlap > tiling.window // 2 - 2 * TOKEN:
        return
    moved_back = len(tiling.rows.starts) - 1
    for above, below in pairwise(blocks):
        if above.strips[-1].row < moved_back - 1:
            assert above.strips[-1].row == below.strips[0].row


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [(30, 0, "window 30"), (64, 64, "overlap 64"), (64, 6, "overlap 6"), (64, -4, "overlap -4")],
)
def test_impossible_windows(window: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(100, 100, window, overlap)
