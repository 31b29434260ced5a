"""Georeferenced label maps for the tests of their areas, polygons and metadata."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segformer.classes import ClassSet

rasterio = pytest.importorskip("rasterio", reason='needs the extra "geo"')
pytest.importorskip("shapely", reason='needs the extra "geo"')
pytest.importorskip("pyogrio", reason='needs the extra "geo"')

from affine import Affine  # noqa: E402

CLASSES = ClassSet(("background", "water", "forest", "field"))
UTM, DEGREES, FEET, WEB = "EPSG:32633", "EPSG:4326", "EPSG:2263", "EPSG:3857"
TRANSFORMS = {
    UTM: Affine(10, 0, 500000, 0, -10, 5000000),
    DEGREES: Affine(0.001, 0, 15.0, 0, -0.002, 60.0),
    FEET: Affine(5, 0, 980000, 0, -5, 200000),
    WEB: Affine(10, 0, 1669792, 0, -10, 8399738),
}


def blobs(height: int, width: int, *, seed: int = 0, classes: int = 4, sigma: float = 3):
    """(H, W) class ids of smooth regions, with holes."""
    rng = np.random.default_rng(seed)
    fields = rng.standard_normal((classes, height, width)).astype(np.float32)
    smooth = [cv2.GaussianBlur(field, (0, 0), sigma) for field in fields]
    return np.argmax(smooth, axis=0).astype(np.uint8)


def write_raster(
    path: Path, values: NDArray, crs: str | None = UTM, *, nodata: float | None = 255, **options
) -> Path:
    transform = options.pop("transform", None) or (TRANSFORMS.get(crs or UTM, TRANSFORMS[UTM]))
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=values.shape[0],
        width=values.shape[1],
        count=1,
        dtype=values.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
        **options,
    ) as dataset:
        dataset.write(values, 1)
    return path
