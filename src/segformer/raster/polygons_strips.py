"""Outlines of regions, traced in strips of rows and joined along the lines between them.

The result is that of tracing the whole raster, but what is needed besides the outlines themselves
is that of a strip. A line between two strips cuts the outlines of the regions that it crosses into
chains. Where the pixels on both sides of it belong to one region, there is a *gap*: an interval of
columns whose edges belong to no outline. A chain that ends at one end of a gap continues with the
chain of the other strip that begins there.

Legend: H W pixels, N regions, R rings, M corners, G gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from segformer.raster.polygons_regions import Regions, signed_areas, starts_of

Corners: TypeAlias = NDArray[np.int32]
"""(M, 2) columns and rows."""

End: TypeAlias = tuple[int, int, bool]
"""Row and column of an end of a gap, and whether it is the right one."""


@dataclass(frozen=True)
class _Chain:
    """A part of an outline between two gaps.

    Attributes:
        begin: Where it begins.
        end: Where it ends, and another chain begins.
        corners: Its corners, with those at both gaps.
    """

    begin: End
    end: End
    corners: Corners


@dataclass
class _Unfinished:
    """A region, as far as it is known, that reaches below the last strip.

    Attributes:
        class_id: Its class.
        total: Sum of confidences.
        count: Pixels with a confidence.
        rings: Corners of each whole ring.
        chains: Other parts of outlines, by where they begin.
    """

    class_id: int
    total: float = 0.0
    count: float = 0.0
    rings: list[Corners] = field(default_factory=list)
    chains: dict[End, _Chain] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Parts of its outlines."""
        return len(self.rings) + len(self.chains)

    def absorb(self, other: _Unfinished) -> None:
        """Add another part of the same region."""
        self.total += other.total
        self.count += other.count
        self.rings += other.rings
        self.chains |= other.chains


@dataclass(frozen=True)
class _Gaps:
    """Intervals of columns where a line between two rows crosses regions.

    Attributes:
        row: First row below the line.
        begins: (G,) first column of each, ascending.
        ends: (G,) column after the last.
    """

    row: int
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def between(cls, ids: NDArray[np.integer], mask: NDArray[np.uint8], row: int) -> _Gaps:
        """The gaps above a row of a raster; none above the first and below the last row."""
        if not 0 < row < len(ids):
            return cls(row, np.empty(0, np.int64), np.empty(0, np.int64))
        above, below = ids[row - 1], ids[row]
        same = (mask[row - 1] & mask[row] & (above == below)).astype(bool)
        crosses = np.concatenate([[False], same, [False]])
        breaks = np.concatenate([[True], below[1:] != below[:-1], [True]])
        begins = np.flatnonzero(crosses[1:] & (~crosses[:-1] | breaks))
        ends = np.flatnonzero(crosses[:-1] & (~crosses[1:] | breaks))
        return cls(row, begins, ends)

    def __len__(self) -> int:
        return len(self.begins)

    def edges_of(self, strip: Regions, direction: int) -> NDArray[np.int64]:
        """(G,) edge on which each gap lies, as the position of its first corner.

        Args:
            strip: The regions below the line, or above it.
            direction: Of their edges on the line: 1 to larger columns, as of regions below it, or
                -1. The gaps are in the order in which a ring comes to them.
        """
        if not len(self):
            return np.empty(0, np.int64)
        (x, next_x), (y, next_y) = ((axis[:-1], axis[1:]) for axis in strip.corners.T)
        on_line = (y == self.row) & (next_y == self.row) & ((next_x - x) * direction > 0)
        on_line[strip.ring_starts[1:-1] - 1] = False  # from the end of a ring to the next ring
        edges = np.flatnonzero(on_line)
        left = np.minimum(x[edges], next_x[edges])
        order = np.argsort(left)
        found = edges[order][np.searchsorted(left[order], self.begins, side="right") - 1]
        return np.asarray(found[::direction])

    def crossings(self, direction: int) -> list[tuple[End, End]]:
        """Where a ring enters and leaves each gap, in the order of `edges_of`."""
        found = [
            ((self.row, begin, False), (self.row, end, True))
            for begin, end in zip(self.begins.tolist(), self.ends.tolist(), strict=True)
        ]
        return found if direction > 0 else [(right, left) for left, right in reversed(found)]


class StripJoiner:
    """Joins the regions of strips, which are added from the top to the bottom.

    Args:
        ids: (H, W) class ids of the whole raster.
        mask: (H, W) 1 where there is a class, else 0.
    """

    def __init__(self, ids: NDArray[np.integer], mask: NDArray[np.uint8]):
        self._ids, self._mask = ids, mask
        self._unfinished: dict[int, _Unfinished] = {}
        self._keys = count()
        self._above: list[int] = []
        """Key of the unfinished region above each gap of the last line."""

    def add(self, strip: Regions, rows: slice) -> Regions:
        """Add the regions of the next strip.

        Args:
            strip: Its regions, in coordinates of the whole raster.
            rows: Its rows.

        Returns:
            The regions that are complete now.
        """
        upper = _Gaps.between(self._ids, self._mask, rows.start)
        lower = _Gaps.between(self._ids, self._mask, rows.stop)
        edges = np.concatenate([upper.edges_of(strip, 1), lower.edges_of(strip, -1)])
        rings = np.searchsorted(strip.ring_starts, edges, side="right") - 1
        regions = strip.ring_owners[rings]
        is_cut = np.zeros(len(strip), bool)
        is_cut[regions] = True
        keys = {region: next(self._keys) for region in np.flatnonzero(is_cut).tolist()}
        chains = _chains(strip, edges, rings, [*upper.crossings(1), *lower.crossings(-1)])
        for region, key in keys.items():
            self._unfinished[key] = _unfinished(strip, region, chains)
        below = [keys[region] for region in regions.tolist()]
        merged = self._merge(zip(self._above, below[: len(upper)], strict=True))
        # The gaps of the lower line are in the order of edges that lead to smaller columns
        self._above = [merged.get(key, key) for key in reversed(below[len(upper) :])]
        open_keys = set(self._above)
        complete = [key for key in self._unfinished if key not in open_keys]
        finished = [_finished(self._unfinished.pop(key)) for key in complete]
        return Regions.joined([strip.take(~is_cut), *finished])

    def _merge(self, pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Make one region of those on both sides of each gap.

        Returns:
            The key under which each region is now, if it has changed.
        """
        merged: dict[int, int] = {}

        def current(key: int) -> int:
            while key in merged:
                key = merged[key]
            return key

        for first, second in pairs:
            kept, other = current(first), current(second)
            if kept == other:
                continue
            if self._unfinished[kept].size < self._unfinished[other].size:
                kept, other = other, kept
            self._unfinished[kept].absorb(self._unfinished.pop(other))
            merged[other] = kept
        return {key: current(key) for key in merged}


def _chains(
    strip: Regions,
    edges: NDArray[np.int64],
    rings: NDArray[np.int64],
    crossings: Sequence[tuple[End, End]],
) -> dict[int, list[_Chain]]:
    """The chains of each ring that is cut.

    Args:
        strip: The regions.
        edges: Which edge each gap lies on, as the position of its first corner. The gaps of an edge
            are in the order in which its ring comes to them.
        rings: Which ring each gap lies on.
        crossings: Where the ring enters and leaves each gap.
    """
    found: dict[int, list[_Chain]] = {}
    order = np.argsort(edges, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(rings[order])) + 1 if len(order) else []):
        if not len(group):
            continue
        ring = int(rings[group[0]])
        first, last = strip.ring_starts[ring], strip.ring_starts[ring + 1] - 1
        chains = []
        for i, gap in enumerate(group):
            following = group[(i + 1) % len(group)]
            start, stop = edges[gap] + 1, edges[following] + 1
            parts = [strip.corners[start:stop]]
            if i + 1 == len(group):  # around the end of the ring, whose first corner is there again
                parts = [strip.corners[start:last], strip.corners[first:stop]]
            begin, end = crossings[gap][1], crossings[following][0]
            ends = np.array([[[begin[1], begin[0]]], [[end[1], end[0]]]], np.int32)
            chains.append(_Chain(begin, end, np.concatenate([ends[0], *parts, ends[1]])))
        found[ring] = chains
    return found


def _unfinished(strip: Regions, region: int, chains: dict[int, list[_Chain]]) -> _Unfinished:
    """A region of a strip, whose chains are among those of all rings."""
    found = _Unfinished(
        int(strip.class_ids[region]), float(strip.totals[region]), float(strip.counts[region])
    )
    for ring in range(strip.region_starts[region], strip.region_starts[region + 1]):
        if ring in chains:
            found.chains |= {chain.begin: chain for chain in chains[ring]}
        else:
            corners = strip.corners[strip.ring_starts[ring] : strip.ring_starts[ring + 1]]
            found.rings.append(corners.copy())  # else all of the strip would stay in memory
    return found


def _finished(region: _Unfinished) -> Regions:
    """The region, whose chains are complete."""
    rings = list(region.rings)
    while region.chains:
        chain = region.chains.pop(next(iter(region.chains)))
        first, points = chain.begin, [chain.corners]
        while chain.end != first:
            chain = region.chains.pop(chain.end)
            points.append(chain.corners)
        rings += _simple_rings(_without_straight_corners(np.concatenate(points)))
    lengths = np.array([len(ring) for ring in rings])
    starts = starts_of(lengths)
    areas = signed_areas(np.concatenate(rings), starts)
    exterior = int(np.flatnonzero(areas > 0)[0])
    rings.insert(0, rings.pop(exterior))
    return Regions(
        np.concatenate(rings),
        starts_of(np.array([len(ring) for ring in rings])),
        np.array([0, len(rings)]),
        np.array([region.class_id], np.int32),
        np.array([region.total]),
        np.array([region.count]),
    )


def _without_straight_corners(points: Corners) -> Corners:
    """(M, 2) a ring without points that are repeated or lie on a straight edge."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    straight = (points == np.roll(points, 1, axis=0)) & (points == np.roll(points, -1, axis=0))
    return np.asarray(points[~straight.any(axis=1)])


def _simple_rings(points: Corners) -> list[Corners]:
    """A ring that may touch itself at corners as rings that do not, each closed.

    Args:
        points: (M, 2) corners; the first is not repeated at the end.
    """
    keys = points[:, 1].astype(np.int64) << 32 | points[:, 0]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[inverse] > 1)
    if not len(repeated):
        return [_closed([points])]
    pieces = np.split(np.roll(points, -repeated[0], axis=0), repeated[1:] - repeated[0])
    rings: list[Corners] = []
    path: dict[int, Corners] = {}  # pieces that form no ring yet, by where they begin
    for key, piece in zip(keys[repeated].tolist(), pieces, strict=True):
        if key in path:
            ring = [path.popitem()]
            while ring[-1][0] != key:
                ring.append(path.popitem())
            rings.append(_closed([part for _, part in reversed(ring)]))
        path[key] = piece
    return [*rings, _closed(list(path.values()))]


def _closed(pieces: Sequence[Corners]) -> Corners:
    """Pieces of a ring, and its first corner again."""
    return np.concatenate([*pieces, pieces[0][:1]])
