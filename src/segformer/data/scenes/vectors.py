"""Polygons of vector files, placed on the pixels of a scene.

A file is read once for each scene: the polygons that touch the scene are converted to pixel
coordinates and kept in a few arrays, which worker processes that are forked use together. The
polygons of a tile are found by their bounds.

Legend: N polygons, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.data.errors import DatasetError
from segformer.image.scene_bands import no_place_is_fine
from segformer.image.scene_grid import Grid, Window

_SHOWN = 8
"""Values that a message lists."""

_COORDINATES_AT_ONCE = 1 << 20
"""Coordinates that are reprojected together."""

_MANY_VERTICES = 200
"""Polygons of more vertices are cut to the tile before they are rasterized."""

_POLYGON_TYPES = (3, 6)
"""Shapely's numbers of polygons and multipolygons."""


@dataclass(frozen=True)
class VectorLayer:
    """Which polygons of a file are used, and what they mean.

    Attributes:
        file: GeoPackage, GeoJSON, shapefile or another file that GDAL reads.
        layer: Name of the layer. Default: the only one with geometries.
        column: Column of the class. Default: all polygons have ``class_id``.
        class_ids: Class id of each value of the column; None is an empty value.
        class_id: Class id of all polygons, where there is no column.
    """

    file: Path
    layer: str | None = None
    column: str | None = None
    class_ids: Mapping[str | int | None, int] | None = None
    class_id: int = 1

    def read(self, grid: Grid, scene: Path) -> Polygons:
        """Read the polygons that touch a scene.

        Args:
            grid: Of the scene. Polygons in another coordinate reference system are reprojected.
            scene: File of the scene, for messages.

        Raises:
            DatasetError: The file, the layer or the column does not exist, a value of the column
                has no class, there are other geometries than polygons, or the file or the scene
                has no coordinate reference system.
            ModuleNotFoundError: pyogrio, rasterio or shapely is not installed.
        """
        import pyogrio
        import shapely

        layer, crs = self._open()
        if grid.crs is None:
            raise DatasetError(
                f"{scene}: the scene has no coordinate reference system, so the polygons of "
                f"{self.file} cannot be placed on it; assign one (gdal_edit.py -a_srs EPSG:...)"
            )
        _, fids, wkb, fields = pyogrio.raw.read(
            self.file,
            layer=layer,
            columns=[] if self.column is None else [self.column],
            bbox=_bounds_in(grid, crs),
            force_2d=True,
            return_fids=True,
        )
        order = np.argsort(fids)  # with a spatial index, the order may be another
        geometries = shapely.from_wkb(wkb[order])
        values = fields[0][order] if self.column is not None else None
        used = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
        geometries = geometries[used]
        others = ~np.isin(shapely.get_type_id(geometries), _POLYGON_TYPES)
        if others.any():
            kinds = sorted({geometry.geom_type for geometry in geometries[others]})
            raise DatasetError(
                f"{self.file}: layer {layer!r} has {int(others.sum())} geometries that are not "
                f"polygons ({', '.join(kinds)}); labels must be polygons"
            )
        class_ids = np.full(len(geometries), self.class_id, np.int32)
        if values is not None:
            class_ids = self._class_ids_of(values[used], layer)
        large = shapely.get_num_coordinates(geometries) > _MANY_VERTICES
        geometries[large] = shapely.make_valid(
            geometries[large], method="structure", keep_collapsed=False
        )
        return Polygons.of(_to_pixels(geometries, crs, grid), class_ids)

    def _open(self) -> tuple[str, Any]:
        """Name and coordinate reference system of the layer."""
        import pyogrio
        from rasterio.crs import CRS

        if not self.file.exists():
            raise DatasetError(f"{self.file}: there is no such file of polygons")
        try:
            found = [str(name) for name, kind in pyogrio.list_layers(self.file) if kind is not None]
            if self.layer is not None and self.layer not in found:
                raise DatasetError(
                    f"{self.file}: there is no layer {self.layer!r}; layers are {', '.join(found)}"
                )
            if self.layer is None and len(found) != 1:
                raise DatasetError(
                    f"{self.file}: there are {len(found)} layers with geometries"
                    + (f": {', '.join(found)}; choose one with layer" if found else "")
                )
            layer = self.layer or found[0]
            info = pyogrio.read_info(self.file, layer=layer)
        except pyogrio.errors.DataSourceError as error:
            raise DatasetError(f"{self.file}: cannot be read as polygons: {error}") from None
        columns = [str(name) for name in info["fields"]]
        if self.column is not None and self.column not in columns:
            raise DatasetError(
                f"{self.file}: layer {layer!r} has no column {self.column!r} (class_column); "
                f"columns are {', '.join(columns) or 'none'}"
            )
        if info["crs"] is None:
            raise DatasetError(
                f"{self.file}: the polygons have no coordinate reference system (a shapefile needs "
                "its .prj file); assign one (ogr2ogr -a_srs EPSG:...)"
            )
        return layer, CRS.from_user_input(info["crs"])

    def _class_ids_of(self, values: NDArray[Any], layer: str) -> NDArray[np.int32]:
        assert self.class_ids is not None
        keys = [_key(value) for value in values.tolist()]
        unknown = Counter(key for key in keys if key not in self.class_ids)
        if unknown:
            shown = ", ".join(
                f"{'empty' if key is None else repr(key)} ({count} polygons)"
                for key, count in unknown.most_common(_SHOWN)
            )
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise DatasetError(
                f"{self.file}: layer {layer!r}, column {self.column!r} has values that are no "
                f"class: {shown}{more}; name the classes, or map the values with label_mapping in "
                "dataset.yaml"
            )
        return np.array([self.class_ids[key] for key in keys], np.int32).reshape(-1)


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons in pixels of a scene: x is the column and y the row, 0 at the upper left corner.

    Attributes:
        bounds: (N, 4) smallest x, smallest y, largest x, largest y.
        class_ids: (N,) class ids, in the order in which the polygons are painted.
        wkb: Bytes of all polygons, one after the other.
        starts: (N + 1,) where each begins in ``wkb``.
    """

    bounds: NDArray[np.float64]
    class_ids: NDArray[np.int32]
    wkb: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, geometries: NDArray[np.object_], class_ids: NDArray[np.int32]) -> Polygons:
        """From shapely geometries."""
        import shapely

        encoded = shapely.to_wkb(geometries)
        starts = np.concatenate([[0], np.cumsum([len(part) for part in encoded])]).astype(np.int64)
        wkb = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(shapely.bounds(geometries).reshape(-1, 4), class_ids, wkb, starts)

    def __len__(self) -> int:
        return len(self.class_ids)

    def touching(self, tile: Window) -> NDArray[np.int64]:
        """Positions of the polygons whose bounds touch a tile."""
        left, top, right, bottom = self.bounds.T
        touches = (left <= tile.right) & (right >= tile.left)
        touches &= (top <= tile.bottom) & (bottom >= tile.top)
        return np.flatnonzero(touches)

    def rasterize(self, tile: Window, fill: int, *, all_touched: bool = False) -> NDArray[np.int32]:
        """Class ids (H, W) of a tile; later polygons cover earlier ones.

        Args:
            tile: Which pixels.
            fill: Class id of pixels that no polygon covers.
            all_touched: A polygon covers all pixels that it touches. Default: those whose
                centers it contains.
        """
        import shapely
        from affine import Affine
        from rasterio.features import rasterize

        found = self.touching(tile)
        parts = [
            self.wkb[start:end].tobytes()
            for start, end in zip(self.starts[found], self.starts[found + 1], strict=True)
        ]
        geometries = _cut_large(shapely.from_wkb(np.array(parts, object)), tile)
        is_left = ~shapely.is_empty(geometries)
        if not is_left.any():
            return np.full((tile.height, tile.width), fill, np.int32)
        with no_place_is_fine():
            burned: NDArray[np.int32] = rasterize(
                zip(geometries[is_left], self.class_ids[found[is_left]].tolist(), strict=True),
                (tile.height, tile.width),
                fill=fill,
                transform=Affine.translation(tile.left, tile.top),
                all_touched=all_touched,
                dtype="int32",
            )
        return burned


def _key(value: Any) -> str | int | None:
    """A value of a column as a key of the mapping: 3.0 is 3, NaN is empty."""
    if isinstance(value, float):
        if np.isnan(value):
            return None
        return int(value) if value.is_integer() else str(value)
    return int(value) if isinstance(value, (bool, int)) else value


def _bounds_in(grid: Grid, crs: Any) -> tuple[float, float, float, float]:
    """The bounds of a scene in another coordinate reference system, one percent larger."""
    from rasterio.errors import CRSError
    from rasterio.warp import transform_bounds

    try:
        left, bottom, right, top = transform_bounds(grid.crs, crs, *grid.bounds)
    except CRSError as error:
        raise DatasetError(f"the polygons cannot be reprojected to the scene: {error}") from None
    x, y = 0.01 * (right - left), 0.01 * (top - bottom)
    return left - x, bottom - y, right + x, top + y


def _to_pixels(geometries: NDArray[np.object_], crs: Any, grid: Grid) -> NDArray[np.object_]:
    """Geometries in a coordinate reference system -> in pixels of a scene."""
    import shapely
    from rasterio.warp import transform

    inverse = ~grid.transform

    def convert(points: NDArray[np.float64]) -> NDArray[np.float64]:
        converted = np.empty_like(points)
        for start in range(0, len(points), _COORDINATES_AT_ONCE):
            part = slice(start, start + _COORDINATES_AT_ONCE)
            x, y = points[part, 0], points[part, 1]
            if crs != grid.crs:
                x, y = (np.asarray(axis) for axis in transform(crs, grid.crs, x, y))
            converted[part, 0] = inverse.a * x + inverse.b * y + inverse.c
            converted[part, 1] = inverse.d * x + inverse.e * y + inverse.f
        return converted

    return np.asarray(shapely.transform(geometries, convert))


def _cut_large(geometries: NDArray[np.object_], tile: Window) -> NDArray[np.object_]:
    """Geometries of many vertices cut to the tile and 8 pixels around it."""
    import shapely

    large = shapely.get_num_coordinates(geometries) > _MANY_VERTICES
    if large.any():
        window = (tile.left - 8, tile.top - 8, tile.right + 8, tile.bottom + 8)
        geometries[large] = shapely.clip_by_rect(geometries[large], *window)
    return geometries
