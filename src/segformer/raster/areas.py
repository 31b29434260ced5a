"""Areas on the ground, in square meters, of the pixels and classes of a georeferenced raster.

Legend: H W pixels. Transforms are affine, from (column, row) to the raster's own coordinates x, y.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet

if TYPE_CHECKING:
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

_BLOCK_PIXELS = 1 << 24
"""Pixels that are read at a time."""

_DISTORTING = ("Mercator", "Popular Visualisation Pseudo Mercator", "Equidistant Cylindrical")
"""Beginnings of the names of projections whose areas are wrong by large factors."""


class NoGroundArea(ValueError):
    """A raster's pixels have no area on the ground; the message names the file."""


@dataclass(frozen=True)
class ClassArea:
    """How much of a label map a class covers.

    Attributes:
        pixels: Number of pixels.
        area_m2: Area in square meters.
        fraction: Area divided by that of all valid pixels; 0 where no pixel is valid.
    """

    pixels: int
    area_m2: float
    fraction: float


class GroundPlane:
    """Maps a raster's pixel coordinates to a plane in meters in which areas are right.

    In a projected coordinate reference system (CRS) this is its own plane, with its unit converted
    to meters. Where coordinates are degrees, and in Mercator and equidistant cylindrical
    projections (of which web maps are the common case), it is the cylindrical equal-area
    projection of the CRS's ellipsoid (J. P. Snyder, Map Projections: A Working Manual, 1987,
    equations 3-12 and 10-1), so that areas are those on the ellipsoid.

    Args:
        dataset: The raster, open.

    Raises:
        NoGroundArea: It has no CRS, or one without a unit of length.
    """

    def __init__(self, dataset: DatasetReader):
        crs = dataset.crs
        if not crs:
            raise NoGroundArea(
                f"{dataset.name} has no coordinate reference system, so areas in m2 are unknown; "
                "assign one, for example by gdal_edit.py -a_srs EPSG:32633"
            )
        self._transform = dataset.transform
        self._description = crs.to_dict(projjson=True)
        self._geographic = None
        self._unit = 1.0
        if crs.is_geographic:
            self._unit = float(crs.units_factor[1])  # radians
        elif not crs.is_projected:
            raise NoGroundArea(
                f"{dataset.name}: areas in m2 are unknown in the coordinate reference system "
                f"{self._description.get('name', crs)}; warp it to a projected one by gdalwarp"
            )
        elif _projection(self._description).startswith(_DISTORTING):
            self._geographic = _geographic(crs)
            self._unit = math.pi / 180
        else:
            self._unit = float(crs.linear_units_factor[1])
        self._crs = crs
        self._equal_area = bool(crs.is_geographic) or self._geographic is not None
        if self._equal_area:
            self._radius, self._eccentricity = _ellipsoid(self._description)

    def project(
        self, columns: NDArray[np.float64], rows: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Meters east and north of pixel coordinates, from an arbitrary origin.

        Args:
            columns: Pixel coordinates, any shape; pixel 0 covers 0..1.
            rows: The same, downwards.
        """
        t = self._transform
        # Without the origin, which would cost digits
        x, y = t.a * columns + t.b * rows, t.d * columns + t.e * rows
        if not self._equal_area:
            return x * self._unit, y * self._unit
        longitude, latitude = self._degrees(x + t.c, y + t.f)
        return self._radius * longitude, self._radius * self._authalic(latitude)

    def _degrees(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude and latitude in radians of coordinates, on the ellipsoid of the CRS."""
        if self._geographic is not None:
            from rasterio.warp import transform

            lists = transform(self._crs, self._geographic, x.ravel().tolist(), y.ravel().tolist())
            x, y = (np.asarray(values).reshape(x.shape) for values in lists)
        return x * self._unit, np.clip(y * self._unit, -math.pi / 2, math.pi / 2)

    def _authalic(self, latitude: NDArray[np.float64]) -> NDArray[np.float64]:
        """Area between the equator and a latitude in radians, by a**2 and radian of longitude."""
        sine, e = np.sin(latitude), self._eccentricity
        if e == 0:
            return sine
        return (1 - e**2) / 2 * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)

    def pixel_areas(self, window: Window) -> NDArray[np.float64]:
        """Square meters of each pixel of a window, (H, W) or (H, 1) if all of a row are equal."""
        t, top, left = self._transform, int(window.row_off), int(window.col_off)
        width = 1 if t.b == 0 == t.d or not self._equal_area else int(window.width)
        rows, columns = np.meshgrid(
            np.arange(top, top + int(window.height) + 1, dtype=np.float64),
            np.arange(left, left + width + 1, dtype=np.float64),
            indexing="ij",
        )
        x, y = self.project(columns, rows)
        # Half the cross product of the diagonals of each quadrilateral
        across = x[1:, 1:] - x[:-1, :-1], y[1:, 1:] - y[:-1, :-1]
        other = x[:-1, 1:] - x[1:, :-1], y[:-1, 1:] - y[1:, :-1]
        return np.abs(across[0] * other[1] - across[1] * other[0]) / 2

    def pixel_size(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Meters that a step of one column and of one row is long, at the center of (H, W)."""
        row, column = shape[0] / 2, shape[1] / 2
        columns, rows = np.array([column, column + 1, column]), np.array([row, row, row + 1])
        x, y = self.project(columns, rows)
        stretch = 1.0  # of the plane's x against lengths on the ellipsoid; y by its inverse
        if self._equal_area:
            t = self._transform
            _, latitude = self._degrees(
                *(
                    np.array([v])
                    for v in (t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f)
                )
            )
            sine = float(np.sin(latitude[0]))
            cosine = max(math.cos(latitude[0]), 1e-9)
            stretch = math.sqrt(1 - (self._eccentricity * sine) ** 2) / cosine
        across, down = (
            math.hypot((x[i] - x[0]) / stretch, (y[i] - y[0]) * stretch) for i in (1, 2)
        )
        return across, down


def class_areas(label_map: str | Path, classes: ClassSet) -> dict[str, ClassArea]:
    """The area of each class of a label map, read block by block.

    Args:
        label_map: Georeferenced raster of class ids.
        classes: Names of the class ids.

    Returns:
        Name of each class -> its area, in the order of the class ids.

    Raises:
        NoGroundArea: The raster has no coordinate reference system, or one without lengths.
        ValueError: A valid pixel has a value that is no class.
    """
    import rasterio

    pixels = np.zeros(len(classes), np.int64)
    areas = np.zeros(len(classes))
    with rasterio.open(label_map) as dataset:
        ground = GroundPlane(dataset)
        for window in row_blocks(dataset):
            ids, valid = read_labels(dataset, window, classes)
            of_pixel = np.broadcast_to(ground.pixel_areas(window), ids.shape)[valid]
            pixels += np.bincount(ids[valid], minlength=len(classes))
            areas += np.bincount(ids[valid], of_pixel, minlength=len(classes))
    total = float(areas.sum())
    return {
        name: ClassArea(int(pixels[i]), float(areas[i]), float(areas[i] / total) if total else 0.0)
        for i, name in enumerate(classes.names)
    }


def row_blocks(dataset: DatasetReader) -> Iterator[Window]:
    """Windows over whole rows, of whole blocks of the file and at most 16 million pixels."""
    from rasterio.windows import Window

    block = int(dataset.block_shapes[0][0])
    height = max(1, _BLOCK_PIXELS // max(1, dataset.width) // block) * block
    for top in range(0, dataset.height, height):
        yield Window(0, top, dataset.width, min(height, dataset.height - top))


def read_labels(
    dataset: DatasetReader, window: Window, classes: ClassSet
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """Class ids of a window, (H, W), and which of them are valid, (H, W).

    Valid pixels are those that are neither no-data nor the ignore index of the classes.

    Raises:
        ValueError: A valid pixel has a value that is no class.
    """
    ids = dataset.read(1, window=window)
    if ids.dtype.kind not in "ui":
        raise ValueError(f"{dataset.name} holds {ids.dtype} values; class ids are integers")
    valid = (dataset.read_masks(1, window=window) != 0) & (ids != classes.ignore_index)
    unknown = classes.unknown_values(ids[valid])
    if unknown:
        value, count = next(iter(unknown.items()))
        raise ValueError(
            f"{dataset.name}: {count} pixels have the value {value}, but the classes are "
            f"0..{len(classes) - 1} ({', '.join(classes.names[:5])}"
            f"{', ...' if len(classes) > 5 else ''})"
        )
    return ids, valid


def _projection(description: dict[str, Any]) -> str:
    """Name of the projection method of a PROJJSON description."""
    source = description.get("source_crs", description)  # a bound CRS
    components = source.get("components", [source])  # a compound CRS: horizontal comes first
    return str(components[0].get("conversion", {}).get("method", {}).get("name", ""))


def _geographic(crs: Any) -> Any:
    """The geographic CRS on which a projected one is based."""
    from rasterio.crs import CRS

    return CRS.from_dict(_find(crs.to_dict(projjson=True), "base_crs"))


def _ellipsoid(description: dict[str, Any]) -> tuple[float, float]:
    """Semi-major axis in meters and eccentricity, from a PROJJSON description."""
    ellipsoid = _find(description, "ellipsoid") or {}

    def meters(key: str) -> float | None:
        value = ellipsoid.get(key)
        if isinstance(value, dict):  # in another unit than meters
            factor = value["unit"]["conversion_factor"] if isinstance(value["unit"], dict) else 1
            return float(value["value"]) * float(factor)
        return None if value is None else float(value)

    radius = meters("radius") or meters("semi_major_axis") or 6378137.0
    minor = meters("semi_minor_axis")
    if minor is None:
        inverse = float(ellipsoid.get("inverse_flattening") or 0)
        minor = radius * (1 - 1 / inverse) if inverse else radius
    return radius, math.sqrt(max(0.0, 1 - (minor / radius) ** 2))


def _find(description: object, key: str) -> dict[str, Any] | None:
    """The first object called ``key`` in a nested JSON object."""
    if isinstance(description, dict):
        if isinstance(description.get(key), dict):
            return dict(description[key])
        description = list(description.values())
    if isinstance(description, list):
        for value in description:
            found = _find(value, key)
            if found is not None:
                return found
    return None
