"""Outlines of the regions of a label map.

Legend: H W pixels, N corners. Coordinates are x, y in pixels from the top left corner of the image:
pixel (row 0, column 0) covers 0..1 in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Ring: TypeAlias = NDArray[np.int64]
"""(N, 2) corners x, y; the last one is connected with the first."""


@dataclass
class Polygon:
    """A connected region.

    Attributes:
        exterior: Its outline.
        holes: Outlines of what is left out inside.
    """

    exterior: Ring
    holes: list[Ring] = field(default_factory=list)


def outline(mask: NDArray[np.bool_], *, simplify: float = 0) -> list[Polygon]:
    """The regions of a mask (H, W), which may touch at corners, with their holes.

    The outlines run along the edges of pixels, so that filling them gives the mask again. At
    corners where pixels only touch diagonally, an outline meets itself.

    Args:
        mask: True inside.
        simplify: Distance in pixels by which an outline may be moved to save corners
            (Douglas-Peucker). Outlines that become too small to have an area are dropped.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return []
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    # OpenCV's contours run through the centers of pixels. Each pixel becomes 2 x 2, and the contour
    # through their centers is moved by half of one of them, outwards, to the edge of the pixel
    doubled = cut.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons: dict[int, Polygon] = {}
    holes: list[tuple[int, Ring]] = []
    for number, (contour, (*_, parent)) in enumerate(zip(contours, hierarchy[0], strict=True)):
        ring = _corners((contour[:, 0].astype(np.int64) + 1) // 2 + (left, top))
        if simplify > 0:
            ring = cv2.approxPolyDP(ring.astype(np.int32), simplify, True)[:, 0].astype(np.int64)
        if len(ring) < 3 or not area(ring):
            continue
        ring = ring if (area(ring) > 0) == (parent < 0) else ring[::-1]
        if parent < 0:
            polygons[number] = Polygon(ring)
        else:
            holes.append((int(parent), ring))
    for parent, ring in holes:
        if parent in polygons:
            polygons[parent].holes.append(ring)
    return list(polygons.values())


def area(ring: Ring) -> float:
    """Area in pixels; positive for exteriors, negative for holes (shoelace formula)."""
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _corners(points: Ring) -> Ring:
    """The points of a path at which it turns."""
    points = points[(points != np.roll(points, 1, axis=0)).any(1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
