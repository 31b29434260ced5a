"""Labels of scenes: class ids of a tile, from polygons or from a raster.

Legend: H W pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.errors import DatasetError
from segformer.data.masks import to_class_ids
from segformer.data.scenes.vectors import Polygons, VectorLayer
from segformer.image import SceneTile
from segformer.image.scene_bands import rasterio
from segformer.image.scene_grid import Grid, Window

_TOLERANCE = 0.01
"""Pixels by which a label raster may be displaced when it is resampled."""


class SceneLabels(Protocol):
    """What is labeled in a scene, whatever it is stored as."""

    @property
    def file(self) -> Path:
        """File of the labels."""

    def rasterize(self, window: Window) -> NDArray[np.integer]:
        """Class ids (H, W) of a window of the scene.

        Raises:
            ValueError: The labels cannot be read or have values outside the classes.
        """


class PolygonLabels:
    """Labels as polygons. They are read when first needed, once in each process.

    Processes that are forked after that use the memory of their parent.

    Args:
        layer: The polygons and what they mean.
        grid: Of the scene.
        scene: File of the scene, for messages.
        fill: Class id of pixels that no polygon covers.
        all_touched: A polygon covers all pixels that it touches, not only those whose centers it
            contains.
    """

    def __init__(
        self, layer: VectorLayer, grid: Grid, scene: Path, fill: int, *, all_touched: bool = False
    ):
        self.layer, self.grid, self.scene = layer, grid, scene
        self.fill, self.all_touched = fill, all_touched
        self._polygons: Polygons | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes that are spawned: they read the polygons themselves."""
        return {**self.__dict__, "_polygons": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def file(self) -> Path:
        """File of the polygons."""
        return self.layer.file

    @property
    def polygons(self) -> Polygons:
        """The polygons that touch the scene.

        Raises:
            DatasetError: They cannot be read or placed on the scene.
        """
        with self._lock:
            if self._polygons is None:
                self._polygons = self.layer.read(self.grid, self.scene)
            return self._polygons

    def rasterize(self, window: Window) -> NDArray[np.integer]:
        """Class ids (H, W) of a window of the scene."""
        return self.polygons.rasterize(window, self.fill, all_touched=self.all_touched)


@dataclass(frozen=True)
class RasterLabels:
    """Labels as a raster of one band. Another grid than that of the scene is resampled to it.

    The class of a pixel is that of the nearest pixel of the raster. Pixels outside of the raster,
    and those with its no-data value, are not labeled.

    Attributes:
        file: The raster.
        grid: Of the scene.
        scene: File of the scene, for messages.
        classes: Classes, and the mapping of values that are no class ids.
    """

    file: Path
    grid: Grid
    scene: Path
    classes: ClassSet

    def rasterize(self, window: Window) -> NDArray[np.integer]:
        """Class ids (H, W) of a window of the scene."""
        from rasterio.windows import Window as Place

        place = Place(window.left, window.top, window.width, window.height)
        try:
            with self._opened() as labels:
                values = labels.read(1, window=place)
                # Not the mask: of signed values, that leaves out the alpha band
                has_alpha = labels.count == 2
                read = partial(labels.read, 2) if has_alpha else partial(labels.read_masks, 1)
                known = read(window=place) > 0
        except rasterio().errors.RasterioIOError as error:
            raise DatasetError(f"{self.file}: cannot be read ({error})") from None
        ignore_index = self.classes.ignore_index
        class_ids = np.full(values.shape, ignore_index, np.int64)
        if known.any():
            class_ids[known] = to_class_ids(values[known][None], self.file, self.classes, {})[0]
        return class_ids

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The raster on the grid of the scene.

        Raises:
            DatasetError: It cannot be placed on the scene, or does not hold class ids.
        """
        from rasterio.vrt import WarpedVRT

        with ExitStack() as stack:
            raster = stack.enter_context(rasterio().open(self.file))
            if raster.count != 1 or np.dtype(raster.dtypes[0]).kind not in "ui":
                raise DatasetError(
                    f"{self.file}: holds {raster.count} bands of {raster.dtypes[0]}; labels must "
                    "be whole numbers in one band"
                )
            grid = Grid(raster.height, raster.width, raster.transform, raster.crs)
            if None in (grid.crs, self.grid.crs):
                if (grid.height, grid.width) != (self.grid.height, self.grid.width):
                    without = self.file if grid.crs is None else self.scene
                    raise DatasetError(
                        f"{without}: has no coordinate reference system, so the labels of "
                        f"{grid.width} x {grid.height} pixels cannot be placed on the scene of "
                        f"{self.grid.width} x {self.grid.height}; assign one (gdal_edit.py -a_srs "
                        "EPSG:...)"
                    )
            elif not grid.matches(self.grid):
                raster = stack.enter_context(
                    WarpedVRT(
                        raster,
                        crs=self.grid.crs,
                        transform=self.grid.transform,
                        height=self.grid.height,
                        width=self.grid.width,
                        tolerance=_TOLERANCE,
                        add_alpha=raster.nodata is None,
                    )
                )
            yield raster


@dataclass(frozen=True)
class TileLabels:
    """The labels of a tile, an `segformer.data.annotation.Annotation`.

    Pixels outside of the labeled area and those without data in the scene are ignored.

    Attributes:
        tile: The tile.
        labels: Of its scene.
        ignore_index: Class id of pixels that are not labeled.
        area: Polygons of the labeled area, or None: all of the scene.
    """

    tile: SceneTile
    labels: SceneLabels
    ignore_index: int
    area: PolygonLabels | None = None

    @property
    def file(self) -> Path:
        """File of the labels."""
        return self.labels.file

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W).

        Raises:
            ValueError: The labels or the scene cannot be read.
        """
        assert (height, width) == self.tile.window[2:]
        ignored = np.int64(self.ignore_index)
        class_ids = self.labels.rasterize(self.tile.window)
        if self.area is not None:
            class_ids = np.where(self.area.rasterize(self.tile.window), class_ids, ignored)
        if (class_ids == ignored).all():
            return class_ids
        return np.where(self.tile.valid(), class_ids, ignored)
