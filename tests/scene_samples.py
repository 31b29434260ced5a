"""Scenes drawn for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from conftest import TINY, randomize
from segformer import SegFormer
from segformer.image import Preprocessing

UTM = "EPSG:32632"


def tiny_scene_model() -> SegFormer:
    """A tiny model of three 8-bit channels whose classes all occur."""
    torch.manual_seed(0)
    model = randomize(SegFormer(TINY)).eval()
    model.preprocessing = Preprocessing(size=(64, 64))
    return model


def draw_pixels(height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, C) uint8: smooth fields and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (17 + 5 * i)) + np.cos(y / (23 - 3 * i)) for i in range(bands)]
    noise = rng.normal(0, 20, (height, width, bands))
    return (np.stack(waves, 2) * 50 + 128 + noise).clip(1, 255).astype(np.uint8)


def write_scene(path: Path, pixels: np.ndarray, **profile: Any) -> Path:
    """Write (H, W, C) as a GeoTIFF with 10 m pixels."""
    import rasterio
    from rasterio.transform import from_origin

    height, width, bands = pixels.shape
    profile = {
        "crs": UTM,
        "transform": from_origin(500_000, 5_300_000, 10, 10),
        "dtype": pixels.dtype,
        "photometric": "MINISBLACK",  # else GDAL takes the fourth of four bands for transparency
        **profile,
    }
    options = {"driver": "GTiff", "height": height, "width": width, "count": bands, **profile}
    with rasterio.open(path, "w", **options) as dataset:
        dataset.write(pixels.transpose(2, 0, 1))
    return path
