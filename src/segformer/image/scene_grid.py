"""Where the pixels of a scene lie: windows, grids, and the area that is wanted.

Legend: H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segformer.image.scene_bands import no_place_is_fine
from segformer.image.stored import UnreadableImage

_EDGE_POINTS = 64
"""Points on the longest side of an area, so that its sides stay where they are in another CRS."""


class Window(NamedTuple):
    """A rectangle of pixels, which may reach over the border of a scene.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """One after the last row."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """One after the last column."""
        return self.left + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def is_empty(self) -> bool:
        """Whether it has no pixels."""
        return self.height <= 0 or self.width <= 0

    def moved(self, rows: int, columns: int) -> Window:
        """The same rectangle, further down and to the right."""
        return Window(self.top + rows, self.left + columns, self.height, self.width)

    def within(self, other: Window) -> Window:
        """The part that both have; empty where they do not meet."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        height = min(self.bottom, other.bottom) - top
        width = min(self.right, other.right) - left
        return Window(top, left, max(0, height), max(0, width))


@dataclass(frozen=True)
class Grid:
    """The pixels of a raster, and where they lie.

    Attributes:
        height: Rows.
        width: Columns.
        transform: `affine.Affine`: column and row -> x and y.
        crs: `rasterio.crs.CRS`; None where the file has none.
    """

    height: int
    width: int
    transform: Any
    crs: Any

    @property
    def window(self) -> Window:
        """All pixels."""
        return Window(0, 0, self.height, self.width)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the units of the CRS."""
        corners = [
            place(self.transform, *corner)
            for corner in ((0, 0), (self.width, 0), (0, self.height), (self.width, self.height))
        ]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def part(self, window: Window) -> Grid:
        """The pixels of a window."""
        from rasterio.transform import Affine

        a, b, _, d, e, _ = self.transform[:6]
        x, y = place(self.transform, window.left, window.top)
        return Grid(window.height, window.width, Affine(a, b, x, d, e, y), self.crs)

    def resampled(self, resolution: float) -> Grid:
        """The same area in square pixels of another size, north up.

        Args:
            resolution: Side of a pixel in the units of the CRS.

        Raises:
            ValueError: The size is not positive, or gives less than one or too many pixels.
        """
        from rasterio.transform import Affine

        if not resolution > 0 or not math.isfinite(resolution):
            raise ValueError(f"resolution must be positive, not {resolution}")
        left, bottom, right, top = self.bounds
        width, height = (max(1, round(side / resolution)) for side in (right - left, top - bottom))
        if max(width, height) >= 1 << 31 or min(right - left, top - bottom) < resolution / 2:
            raise ValueError(
                f"resolution {resolution:g} gives {width} x {height} pixels; it is in the units of "
                f"the scene's CRS, whose area is {right - left:g} x {top - bottom:g}"
            )
        return Grid(height, width, Affine(resolution, 0, left, 0, -resolution, top), self.crs)

    def matches(self, other: Grid) -> bool:
        """Whether pixels lie at the same places, within a hundredth of a pixel."""
        if (self.height, self.width, self.crs) != (other.height, other.width, other.crs):
            return False
        pixel = math.sqrt(abs(self.transform.determinant))
        return all(
            math.dist(place(self.transform, *corner), place(other.transform, *corner)) < pixel / 100
            for corner in ((0, 0), (self.width, 0), (0, self.height))
        )


def place(transform: Any, column: float, row: float) -> tuple[float, float]:
    """Coordinates of a column and row; with the inverse transform, column and row of x and y."""
    a, b, c, d, e, f = transform[:6]
    return a * column + b * row + c, d * column + e * row + f


class Area:
    """A region of the earth, from a vector file.

    Args:
        path: GeoJSON, GeoPackage, Shapefile or another file with polygons, in any CRS.
        grid: Pixels on which the area is needed.

    Raises:
        ValueError: The file cannot be read or has no polygons, the grid has no CRS, or the area
            lies outside of it.
    """

    def __init__(self, path: str | Path, grid: Grid):
        self.grid = grid
        self.geometry = _polygons(path, grid)
        left, bottom, right, top = self.geometry.bounds
        inverse = ~grid.transform
        corners = [place(inverse, x, y) for x in (left, right) for y in (bottom, top)]
        columns, rows = zip(*corners, strict=True)
        first_row, first_column = math.floor(min(rows)), math.floor(min(columns))
        self.window = Window(
            first_row,
            first_column,
            math.ceil(max(rows)) - first_row,
            math.ceil(max(columns)) - first_column,
        ).within(grid.window)
        if self.window.is_empty:
            raise ValueError(f"{path}: the area lies outside of the scene")

    def covers(self, window: Window) -> NDArray[np.bool_]:
        """(H, W) whether the center of each pixel of a window of the grid lies in the area."""
        from rasterio.features import geometry_mask

        with no_place_is_fine():
            covered = geometry_mask(
                [self.geometry],
                (window.height, window.width),
                self.grid.part(window).transform,
                invert=True,
            )
        return np.asarray(covered)


def _polygons(path: str | Path, grid: Grid) -> Any:
    """The union of the polygons of a file, in the CRS of the grid."""
    import pyogrio
    import shapely
    from rasterio.crs import CRS
    from rasterio.warp import transform

    if grid.crs is None:
        raise ValueError(
            f"{path}: the scene has no CRS, so an area cannot be placed in it; choose pixels "
            "with --where"
        )
    try:
        information, _, encoded, _ = pyogrio.raw.read(path, columns=[])
    except (pyogrio.errors.DataSourceError, OSError) as error:
        raise UnreadableImage(f"{path}: cannot be read as an area ({error})") from None
    shapes = shapely.from_wkb([shape for shape in encoded if shape is not None])
    union = shapely.union_all([shape for shape in shapes if shape.area > 0])
    if union.is_empty:
        raise ValueError(f"{path}: there are no polygons in this file")
    if not information["crs"]:
        raise ValueError(f"{path}: the file does not say in which CRS its coordinates are")
    crs = CRS.from_user_input(information["crs"])
    if crs == grid.crs:
        return union
    left, bottom, right, top = union.bounds
    dense = shapely.segmentize(union, max(right - left, top - bottom) / _EDGE_POINTS)

    def to_grid(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(transform(crs, grid.crs, points[:, 0], points[:, 1]), 1)

    moved = shapely.transform(dense, to_grid)
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise ValueError(f"{path}: the area cannot be expressed in the scene's CRS {grid.crs}")
    return moved
