"""Outlines with fewer corners, without gaps and overlaps between neighbors.

Legend: N regions, M corners, V nodes: corners of pixels at which at least three edges of regions
meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segformer.raster.polygons_regions import Regions, TooManyPolygons, oriented, starts_of

_BYTES_PER_CORNER = 120
_BYTES_PER_ARC = 1000
"""Memory that simplification takes, measured with smooth regions, isolated pixels and noise. An arc
is a part of an outline between two nodes, or a ring without nodes."""


def simplified(
    regions: Sequence[Regions],
    nodes: NDArray[np.int64],
    tolerance: float,
    pixel_size: tuple[float, float],
) -> Regions:
    """Outlines with fewer corners, still without gaps and overlaps between neighbors.

    The simplified corners are some of the pixels' corners (Visvalingam-Whyatt simplification of
    coverages, `shapely.coverage_simplify`).

    Args:
        regions: Regions, which do not overlap, and whose outlines run along the edges of pixels.
        nodes: (V,) all nodes, as `segformer.raster.polygons_tracing.LabelStore.find_nodes` gives
            them.
        tolerance: Length in meters of the details that vanish: about the square root of their area.
        pixel_size: Meters that a column and a row are wide.
    """
    import shapely

    size = np.asarray(pixel_size)
    turned = np.sort((nodes & 0xFFFFFFFF) << 32 | nodes >> 32)
    polygons = np.concatenate(
        [
            shapely.transform(with_nodes(batch, nodes, turned).polygons(), lambda xy: xy * size)
            for part in regions
            for batch in part.batches()
        ]
    )
    polygons = shapely.coverage_simplify(polygons, tolerance)
    _, points, (ring_starts, region_starts) = shapely.to_ragged_array(polygons)
    corners = np.rint(points / size).astype(np.int32)
    return replace(
        Regions.joined(regions),
        corners=oriented(corners, ring_starts, region_starts[:-1]),
        ring_starts=ring_starts,
        region_starts=region_starts,
    )


def check_simplification(regions: Sequence[Regions], nodes: int, memory: int, name: str) -> None:
    """Refuse to simplify outlines, all at once, for which there is not enough memory.

    Args:
        regions: The regions.
        nodes: Number of nodes of all outlines.
        memory: Bytes that may be taken.
        name: The raster, for the message.

    Raises:
        TooManyPolygons: It needs more.
    """
    corners = sum(len(part.corners) for part in regions)
    arcs = sum(len(part.ring_starts) - 1 for part in regions) + 3 * nodes // 2
    needed = corners * _BYTES_PER_CORNER + arcs * _BYTES_PER_ARC
    if needed > memory:
        raise TooManyPolygons(
            f"{name}: the outlines of its regions have {corners:,} corners, and to simplify them "
            f"needs about {needed / 1e9:.1f} GB of memory, more than the {memory / 1e9:.1f} GB "
            "there are; write them without --simplify, merge small regions by a larger --min-area, "
            "or leave classes out"
        )


def with_nodes(regions: Regions, nodes: NDArray[np.int64], turned: NDArray[np.int64]) -> Regions:
    """Outlines with a corner at each node on them.

    Neighbors must have the same corners along a common edge, also where one of them has a third
    neighbor there and its own outline is straight.

    Args:
        regions: The regions.
        nodes: (V,) row of each node in the upper and column in the lower 32 bits, sorted.
        turned: (V,) the same with row and column exchanged, sorted.
    """
    corners = regions.corners.astype(np.int64)
    is_edge = np.ones(len(corners), bool)
    is_edge[regions.ring_starts[1:] - 1] = False
    following = np.roll(corners, -1, axis=0)
    added = np.zeros(len(corners), np.int64)
    found = []
    for moving, keys in ((0, nodes), (1, turned)):
        edges = np.flatnonzero(is_edge & (corners[:, moving] != following[:, moving]))
        line = corners[edges, 1 - moving] << 32
        begin, end = corners[edges, moving], following[edges, moving]
        first = np.searchsorted(keys, line | np.minimum(begin, end), side="right")
        last = np.searchsorted(keys, line | np.maximum(begin, end), side="left")
        amount = last - first
        added[edges] = amount
        rank = np.arange(amount.sum()) - np.repeat(starts_of(amount)[:-1], amount)
        forward = np.repeat(end > begin, amount)
        place = np.where(
            forward, np.repeat(first, amount) + rank, np.repeat(last, amount) - 1 - rank
        )
        points = np.repeat(corners[edges], amount, axis=0)
        points[:, moving] = keys[place] & 0xFFFFFFFF
        found.append((np.repeat(edges, amount), rank, points))
    shift = starts_of(added)
    result = np.empty((len(corners) + shift[-1], 2), np.int32)
    result[np.arange(len(corners)) + shift[:-1]] = corners
    for edges, rank, points in found:
        result[edges + shift[edges] + 1 + rank] = points
    return replace(
        regions, corners=result, ring_starts=regions.ring_starts + shift[regions.ring_starts]
    )
