"""Outlines of many regions in a few arrays, which take little more memory than their corners.

Legend: N regions, R rings, M corners. Pixel coordinates are (column, row) from the top left corner:
pixel (row 0, column 0) covers 0..1 in both directions, so that outlines have integer coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BATCH_REGIONS = 1 << 16
_BATCH_CORNERS = 1 << 20
"""Regions and corners that are polygons at a time; one region may have more."""


class TooManyPolygons(ValueError):
    """The outlines of the regions do not fit into the memory."""


@dataclass(frozen=True)
class Regions:
    """Connected regions of one class each.

    Attributes:
        corners: (M, 2) pixel coordinates of the corners of all rings. The first corner of a ring is
            repeated at its end. Exteriors have a positive signed area (see `signed_areas`), holes
            a negative one.
        ring_starts: (R + 1,) where each ring begins in ``corners``.
        region_starts: (N + 1,) which ring is the exterior of each region; its holes follow.
        class_ids: (N,) class of each.
        totals: (N,) sum of the confidences of the pixels of each; 0 without confidences.
        counts: (N,) number of pixels with a confidence.
    """

    corners: NDArray[np.int32]
    ring_starts: NDArray[np.int64]
    region_starts: NDArray[np.int64]
    class_ids: NDArray[np.int32]
    totals: NDArray[np.float64]
    counts: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.class_ids)

    @property
    def corner_starts(self) -> NDArray[np.int64]:
        """(N + 1,) where each region begins in ``corners``."""
        return self.ring_starts[self.region_starts]

    @property
    def ring_owners(self) -> NDArray[np.int64]:
        """(R,) region of each ring."""
        return np.repeat(np.arange(len(self)), np.diff(self.region_starts))

    def batches(self) -> Iterator[Regions]:
        """The same regions, some at a time."""
        starts, first = self.corner_starts, 0
        if not len(self):
            yield self
        while first < len(self):
            last = int(np.searchsorted(starts, starts[first] + _BATCH_CORNERS, side="right")) - 1
            last = min(max(last, first + 1), first + _BATCH_REGIONS)
            yield self._part(first, last)
            first = last

    def polygons(self) -> NDArray[Any]:
        """(N,) shapely polygons in pixel coordinates."""
        import shapely

        polygons = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON,
            self.corners.astype(np.float64),
            (self.ring_starts, self.region_starts),
        )
        return np.asarray(polygons)

    def take(self, chosen: NDArray[np.bool_]) -> Regions:
        """The regions for which ``chosen``, (N,), is true."""
        if chosen.all():
            return self
        rings = chosen[self.ring_owners]
        lengths = np.diff(self.ring_starts)
        return Regions(
            self.corners[np.repeat(rings, lengths)],
            starts_of(lengths[rings]),
            starts_of(np.diff(self.region_starts)[chosen]),
            self.class_ids[chosen],
            self.totals[chosen],
            self.counts[chosen],
        )

    def means(self) -> NDArray[np.float64]:
        """(N,) mean confidence, NaN for a region without pixels that have one."""
        means = np.full(len(self), np.nan)
        np.divide(self.totals, self.counts, out=means, where=self.counts > 0)
        return means

    @classmethod
    def joined(cls, parts: Sequence[Regions]) -> Regions:
        """All regions of several; there may be none."""
        lengths = [np.diff(part.ring_starts) for part in parts]
        rings = [np.diff(part.region_starts) for part in parts]
        return cls(
            np.concatenate([np.empty((0, 2), np.int32), *(part.corners for part in parts)]),
            starts_of(np.concatenate([np.empty(0, np.int64), *lengths])),
            starts_of(np.concatenate([np.empty(0, np.int64), *rings])),
            np.concatenate([np.empty(0, np.int32), *(part.class_ids for part in parts)]),
            np.concatenate([np.empty(0), *(part.totals for part in parts)]),
            np.concatenate([np.empty(0), *(part.counts for part in parts)]),
        )

    def _part(self, first: int, last: int) -> Regions:
        rings = slice(self.region_starts[first], self.region_starts[last] + 1)
        corners = slice(self.ring_starts[rings.start], self.ring_starts[rings.stop - 1])
        regions = slice(first, last)
        return Regions(
            self.corners[corners],
            self.ring_starts[rings] - corners.start,
            self.region_starts[first : last + 1] - rings.start,
            self.class_ids[regions],
            self.totals[regions],
            self.counts[regions],
        )


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where parts of these lengths begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def signed_areas(
    corners: NDArray[np.integer], ring_starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(R,) twice the area of each ring, positive if it turns from columns to rows.

    The pixels inside of a ring of positive area are then on the left of edges to larger rows.

    Args:
        corners: (M, 2) corners of rings, each with its first corner again at its end.
        ring_starts: (R + 1,) where each ring begins.
    """
    x, y = corners.T.astype(np.float64)
    products = np.zeros(len(corners))
    products[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    if len(ring_starts) < 2:
        return np.empty(0)
    products[ring_starts[1:] - 1] = 0  # from the end of a ring to the next ring
    return np.asarray(np.add.reduceat(products, ring_starts[:-1]))


def oriented(
    corners: NDArray[np.int32], ring_starts: NDArray[np.int64], exteriors: NDArray[np.int64]
) -> NDArray[np.int32]:
    """(M, 2) corners of rings, those of exteriors in positive direction and of holes in negative.

    Args:
        corners: (M, 2), of rings in any direction.
        ring_starts: (R + 1,) where each ring begins.
        exteriors: (N,) which rings are exteriors.
    """
    is_exterior = np.zeros(len(ring_starts) - 1, bool)
    is_exterior[exteriors] = True
    wrong = (signed_areas(corners, ring_starts) > 0) != is_exterior
    lengths = np.diff(ring_starts)
    positions = np.arange(len(corners))
    turned = np.repeat(ring_starts[:-1] + ring_starts[1:] - 1, lengths) - positions
    return np.asarray(corners[np.where(np.repeat(wrong, lengths), turned, positions)])
