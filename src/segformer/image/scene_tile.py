"""Tiles of scenes: windows of large georeferenced rasters that are read as images.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.image.preprocessing import ImageArray
from segformer.image.scene import Scene, open_scene
from segformer.image.scene_bands import decoding_threads, rasterio
from segformer.image.scene_grid import Window
from segformer.image.stored import StoredPixels

_OPEN_SCENES = 8
"""Scenes that a thread keeps open."""


@dataclass(frozen=True, slots=True)
class SceneTile:
    """A window of a scene, which is read as an image when it is needed.

    Any thread or process can read it: each opens the scene itself, and keeps a few open.

    Attributes:
        file: File of the scene.
        window: Which pixels of it.
        bands: Numbers of the bands, from 1, in the order of the channels. Default: all.
        resolution: Size of a pixel in the units of the scene's coordinates. Default: as stored.
    """

    file: Path
    window: Window
    bands: tuple[int, ...] | None = None
    resolution: float | None = None

    def __str__(self) -> str:
        return f"{self.file}, tile at row {self.window.top}, column {self.window.left}"

    def read(self) -> StoredPixels:
        """The pixels (H, W, C). Where a mask or alpha band says so, floats are NaN.

        Raises:
            UnreadableImage: The scene cannot be read.
        """
        with self._scene() as scene:
            pixels, valid = scene.read(self.window)
        highest = [fact.highest for fact in scene.facts if fact.highest is not None]
        if scene.nodata is None and pixels.dtype != np.uint8 and not valid.all():
            pixels = pixels.astype(np.float64 if pixels.dtype == np.float64 else np.float32)
            pixels[~valid] = np.nan
        return StoredPixels(
            pixels, max(highest) if len(highest) == len(scene.facts) else None, nodata=scene.nodata
        )

    def valid(self) -> NDArray[np.bool_]:
        """(H, W) whether there is data.

        Raises:
            UnreadableImage: The scene cannot be read.
        """
        with self._scene() as scene:
            return scene.read(self.window)[1]

    def save(self, path: Path) -> None:
        """Write the pixels as a GeoTIFF, as the scene holds them.

        Raises:
            UnreadableImage: The scene cannot be read.
        """
        stored = self.read()
        self.write(path, stored.values, stored.nodata)

    def write(self, path: Path, values: ImageArray, nodata: float | None = None) -> None:
        """Write an array as a GeoTIFF that lies where the tile lies.

        Args:
            path: File to write.
            values: (H, W, C) with the bands of the scene, or (H, W); of the size of the tile.
            nodata: Value that means that there is no data.
        """
        with self._scene() as scene:
            grid, bands = scene.grid.part(self.window), scene.bands
        channels = values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)
        is_rgb = values.dtype == np.uint8 and len(channels) == 3
        with rasterio().open(
            path,
            "w",
            driver="GTiff",
            height=grid.height,
            width=grid.width,
            count=len(channels),
            dtype=values.dtype,
            crs=grid.crs,
            transform=grid.transform,
            nodata=nodata,
            compress="deflate",
            photometric="RGB" if is_rgb else "MINISBLACK",
            alpha="NO",
        ) as file:
            file.write(channels)
            if values.ndim == 3:
                file.descriptions = bands

    @contextmanager
    def _scene(self) -> Iterator[Scene]:
        """The scene, as this thread has opened it.

        GDAL decodes in one thread here: in a process that is forked, the threads of its parent do
        not exist, and it would wait for them for ever.
        """
        # Processes that are forked must not use the file positions of their parent
        if getattr(_local, "process", None) != os.getpid():
            _local.process, _local.scenes = os.getpid(), OrderedDict()
        scenes: OrderedDict[Any, Scene] = _local.scenes
        key = (self.file, self.bands, self.resolution, _stamp(self.file))
        before = decoding_threads.set(1)
        try:
            if key not in scenes:
                scenes[key] = open_scene(self.file, bands=self.bands, resolution=self.resolution)
                if len(scenes) > _OPEN_SCENES:
                    scenes.popitem(last=False)[1].close()
            scenes.move_to_end(key)
            yield scenes[key]
        finally:
            decoding_threads.reset(before)


_local = threading.local()
"""The scenes that each thread has open."""


def _stamp(file: Path) -> int:
    """Changes when the file is replaced."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0  # opening it says what is wrong
