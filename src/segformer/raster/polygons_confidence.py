"""Sums of a raster over regions whose outlines run along the edges of pixels.

Legend: H W pixels, N regions, E vertical edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segformer.raster.polygons_regions import Regions

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_BLOCK_PIXELS = 1 << 22
"""Pixels whose sums are in memory at a time."""


def add_confidences(regions: Regions, dataset: DatasetReader, rows: slice) -> None:
    """Add the values of the pixels of each region to its total and count.

    The sum over the pixels of a region is a sum over its vertical edges (Green's theorem): each
    adds or subtracts the sum of the pixels on its left in the same row. Rows are read in blocks.

    Args:
        regions: Regions in pixel coordinates of ``dataset``.
        dataset: Raster of one band, open. Its scale and offset are applied; no-data is left out.
        rows: The rows in which the regions lie.
    """
    from rasterio.windows import Window

    x, top, bottom, sign, owner = _vertical_edges(regions)
    scale, offset = dataset.scales[0], dataset.offsets[0]
    height = max(1, _BLOCK_PIXELS // dataset.width)
    for first in range(rows.start, rows.stop, height):
        last = min(first + height, rows.stop)
        window = Window(0, first, dataset.width, last - first)
        crossing = np.flatnonzero((top < last) & (bottom > first))
        start = np.maximum(top[crossing], first)
        length = np.minimum(bottom[crossing], last) - start
        # One entry for each edge and row
        edge = np.repeat(crossing, length)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
        row += np.repeat(start, length) - first
        values = dataset.read(1, window=window, out_dtype=np.float64)
        valid = (dataset.read_masks(1, window=window) != 0) & np.isfinite(values)
        values = np.where(valid, values * scale + offset, 0)
        for sums, amounts in ((regions.totals, values), (regions.counts, valid)):
            left = np.zeros((amounts.shape[0], amounts.shape[1] + 1))
            np.cumsum(amounts, axis=1, out=left[:, 1:])
            weights = sign[edge] * left[row, x[edge]]
            np.add(sums, np.bincount(owner[edge], weights, len(regions)), out=sums)


def _vertical_edges(regions: Regions) -> tuple[NDArray[np.int64], ...]:
    """(E,) column, first row, row after the last, sign and region of each vertical edge.

    The sign is 1 where the region is on the left of the edge, else -1.
    """
    begin, end = regions.corners[:-1].astype(np.int64), regions.corners[1:].astype(np.int64)
    chosen = begin[:, 1] != end[:, 1]
    chosen[regions.ring_starts[1:-1] - 1] = False  # from the end of a ring to the next ring
    owner = np.repeat(np.arange(len(regions)), np.diff(regions.corner_starts))[:-1][chosen]
    begin, end = begin[chosen], end[chosen]
    sign = np.sign(end[:, 1] - begin[:, 1])
    rows = np.sort(np.stack([begin[:, 1], end[:, 1]]), axis=0)
    return begin[:, 0], rows[0], rows[1], sign, owner
