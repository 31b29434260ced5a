"""Means of a raster over polygons whose outlines run along the edges of pixels.

Legend: H W pixels, N polygons, E vertical edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segformer.raster.areas import row_blocks

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def polygon_means(polygons: NDArray[Any], dataset: DatasetReader) -> NDArray[np.float64]:
    """Mean of the first band over the pixels of each polygon.

    The sum over the pixels of a polygon is a sum over its vertical edges (Green's theorem): each
    adds or subtracts the sum of the pixels on its left in the same row. Rows are read in blocks.

    Args:
        polygons: (N,) polygons in pixel coordinates of ``dataset``, with integer coordinates and
            edges along rows and columns.
        dataset: The raster, open. Its scale and offset are applied; no-data is left out.

    Returns:
        (N,), NaN where a polygon has no pixel with data.
    """
    x, top, bottom, sign, owner = _vertical_edges(polygons)
    totals, counts = np.zeros(len(polygons)), np.zeros(len(polygons))
    for window in row_blocks(dataset):
        first, last = int(window.row_off), int(window.row_off + window.height)
        crossing = np.flatnonzero((top < last) & (bottom > first))
        start = np.maximum(top[crossing], first)
        length = np.minimum(bottom[crossing], last) - start
        # One entry for each edge and row
        edge = np.repeat(crossing, length)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
        row += np.repeat(start, length) - first
        values = dataset.read(1, window=window, out_dtype=np.float64)
        valid = (dataset.read_masks(1, window=window) != 0) & np.isfinite(values)
        for sums, amounts in ((totals, np.where(valid, values, 0)), (counts, valid)):
            left = np.zeros((amounts.shape[0], amounts.shape[1] + 1))
            np.cumsum(amounts, axis=1, out=left[:, 1:])
            np.add(
                sums,
                np.bincount(owner[edge], sign[edge] * left[row, x[edge]], len(polygons)),
                out=sums,
            )
    means = np.full(len(polygons), np.nan)
    np.divide(totals, counts, out=means, where=counts > 0)
    return means * dataset.scales[0] + dataset.offsets[0]


def _vertical_edges(polygons: NDArray[Any]) -> tuple[NDArray[np.int64], ...]:
    """(E,) column, first row, row after the last, sign and polygon of each vertical edge.

    The sign is 1 where the polygon is on the left of the edge, else -1.
    """
    import shapely

    # Then polygons are on the left of edges that lead to larger rows, holes included
    rings, ring_owner = shapely.get_rings(shapely.orient_polygons(polygons), return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    corners = np.rint(points).astype(np.int64)
    begin, end = corners[:-1], corners[1:]
    chosen = (ring[1:] == ring[:-1]) & (begin[:, 1] != end[:, 1])
    begin, end = begin[chosen], end[chosen]
    sign = np.sign(end[:, 1] - begin[:, 1])
    rows = np.sort(np.stack([begin[:, 1], end[:, 1]]), axis=0)
    return begin[:, 0], rows[0], rows[1], sign, ring_owner[ring[1:][chosen]]
