"""Where a raster has data, in longitude and latitude."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_SIDE = 512
"""Pixels of the reduced mask from which footprints are traced."""

_EDGE_POINTS = 8
"""Points per side of a rectangle, whose sides are curves in longitude and latitude."""


def footprint(dataset: DatasetReader) -> dict[str, Any] | None:
    """The GeoJSON polygon or multipolygon around the pixels that have data, in WGS 84.

    It is exact where all pixels have data. Otherwise it is traced in a mask of at most 512 pixels
    a side, and simplified by one pixel of it; holes are left out.

    Args:
        dataset: The raster, open, with a coordinate reference system.

    Returns:
        None if no pixel has data.
    """
    import shapely
    from affine import Affine
    from rasterio.enums import Resampling
    from rasterio.features import shapes
    from rasterio.warp import transform_geom

    factor = max(1.0, max(dataset.shape) / _SIDE)
    shape = tuple(max(1, round(side / factor)) for side in dataset.shape)
    # Pixels of the reduced mask are averages, so that those with any data have more than 0
    mask = dataset.read_masks(1, out_shape=shape, resampling=Resampling.average) > 0
    if not mask.any():
        return None
    if mask.all():
        region = shapely.box(0, 0, shape[1], shape[0])
        region = shapely.segmentize(region, max(shape) / _EDGE_POINTS)
    else:
        outlines = [
            shapely.Polygon(outline["coordinates"][0])
            for outline, value in shapes(mask.astype(np.uint8), mask=mask)
        ]
        region = shapely.simplify(shapely.union_all(outlines), 1.0)
    to_pixels = Affine(dataset.width / shape[1], 0, 0, 0, dataset.height / shape[0], 0)
    transform = dataset.transform @ to_pixels
    placed = shapely.transform(region, lambda xy: np.stack(transform @ xy.T, axis=1))
    geometry = transform_geom(
        dataset.crs, "EPSG:4326", shapely.geometry.mapping(placed), antimeridian_cutting=True
    )
    found = _within_180_degrees(shapely.geometry.shape(geometry))
    rounded = shapely.transform(shapely.orient_polygons(found), lambda xy: np.round(xy, 7))
    return dict(json.loads(shapely.to_geojson(rounded)))


def _within_180_degrees(shape: Any) -> Any:
    """A shape of which parts are beyond 180 degrees of longitude, with these on the other side."""
    import shapely

    west, _, east, _ = shape.bounds
    if west >= -180 and east <= 180:
        return shape
    parts = []
    for turn in (-360, 0, 360):
        moved = shapely.transform(shape, lambda xy, turn=turn: xy + np.array([turn, 0]))
        parts.append(shapely.intersection(moved, shapely.box(-180, -90, 180, 90)))
    return shapely.union_all(parts)
