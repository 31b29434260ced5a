"""Georeferenced scenes of any size, read window by window. Needs the extra ``geo``.

Legend: H W pixels, C bands.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.image.channels import missing_pixels
from segformer.image.preprocessing import ImageArray
from segformer.image.scene_bands import (
    Band,
    SceneSource,
    choose_bands,
    find_bands,
    gdal_settings,
    no_place_is_fine,
    rasterio,
    retried,
)
from segformer.image.scene_facts import BandFacts, common_grid, describe_raster, grid_of
from segformer.image.scene_grid import Area, Grid, Window
from segformer.image.stored import UnreadableImage

_ANY_CRS = "EPSG:3857"
"""For GDAL, which resamples nothing without a CRS: it is that of source and result."""

_TOLERANCE = 0.001
"""Error in pixels that GDAL may make in the place of resampled pixels."""

_SAMPLE_SIDE = 256
"""Side in pixels of the windows of a sample."""

_SAMPLES = 8
"""Windows of a sample along each side."""


class Scene:
    """A raster with bands and a place on the earth, whatever its size. Only windows are in memory.

    Made by `open_scene`. It may be read from several threads; each opens the files itself.

    Attributes:
        name: What to call it: its path or URL; of several files, the first.
        files: Paths or URLs of its files.
        bands: Name of each band, in the order in which `read` gives them.
        full_grid: All pixels at the resolution that is read, also those that ``area`` and
            ``where`` leave out.
        window: The part of ``full_grid`` that is the scene.
        area: The region that is wanted, or None.
        facts: What the files, or else the STAC item, say of each band.
        dtype: Type of the values that `read` gives.
        nodata: Value in them that means that there is no data, or None.
    """

    def __init__(
        self,
        bands: Sequence[Band],
        full_grid: Grid,
        facts: Sequence[BandFacts],
        *,
        window: Window,
        area: Area | None,
        nodata: float | None,
        scaled: bool,
    ):
        self._bands, self.facts = tuple(bands), tuple(facts)
        self.full_grid, self.window, self.area = full_grid, window, area
        self.files = tuple(dict.fromkeys(band.file for band in bands))
        self.name = self.files[0]
        self.bands = tuple(band.name for band in bands)
        self.scaled = scaled and any((fact.scale, fact.offset) != (1, 0) for fact in facts)
        stored = np.result_type(*(fact.dtype for fact in facts))
        self.dtype = np.dtype(np.float32) if self.scaled else stored
        known = {fact.nodata for fact in facts if fact.nodata is not None}
        self._nodata = [fact.nodata if nodata is None else nodata for fact in facts]
        value = nodata if nodata is not None else (known.pop() if len(known) == 1 else None)
        self.nodata = None if self.scaled else value
        self._local = threading.local()
        self._opened: list[ExitStack] = []
        self._lock = threading.Lock()

    @property
    def grid(self) -> Grid:
        """The pixels of the scene."""
        return self.full_grid.part(self.window)

    @property
    def height(self) -> int:
        """Rows."""
        return self.window.height

    @property
    def width(self) -> int:
        """Columns."""
        return self.window.width

    @property
    def crs(self) -> Any:
        """`rasterio.crs.CRS`, or None."""
        return self.full_grid.crs

    @property
    def transform(self) -> Any:
        """`affine.Affine`: column and row of the scene -> x and y."""
        return self.grid.transform

    def read(
        self, window: Window, *, surroundings: bool = False
    ) -> tuple[ImageArray, NDArray[np.bool_]]:
        """The pixels of a window, which may reach over the border.

        Args:
            window: In pixels of the scene.
            surroundings: Also give pixels that the files have beside the scene: outside of the
                ``area`` or ``where`` that it was opened with.

        Returns:
            Pixels (H, W, C) of the type `dtype`, and (H, W) whether there is data: all bands have
            data, or, for 8-bit values, at least one band. Pixels outside are 0 and have no data.

        Raises:
            UnreadableImage: The files cannot be read; over a network, after some attempts.
        """
        pixels = np.zeros((window.height, window.width, len(self.bands)), self.dtype)
        valid = np.zeros((window.height, window.width), bool)
        there = window.moved(self.window.top, self.window.left)
        inside = there.within(self.full_grid.window if surroundings else self.window)
        if inside.is_empty:
            return pixels, valid
        place = inside.moved(-there.top, -there.left).slices
        pixels[place], valid[place] = self._read_files(inside)
        if self.area is not None and not surroundings:
            valid &= self.area.covers(there)
        return pixels, valid

    def sample(self) -> ImageArray:
        """(N, C) pixels with data, from windows on a regular grid over the scene.

        At most 64 windows of 256 x 256 pixels are read, always the same ones.
        """
        found = []
        for top in _spread(self.height):
            for left in _spread(self.width):
                height, width = (
                    min(_SAMPLE_SIDE, side) for side in (self.height - top, self.width - left)
                )
                pixels, valid = self.read(Window(top, left, height, width))
                found.append(pixels[valid])
        return np.concatenate(found)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each band over pixels with data.

        As the files declare them, else of `sample`. They are never written into the files.

        Raises:
            UnreadableImage: No pixel of the sample has data.
        """
        declared = [(fact.mean, fact.std) for fact in self.facts]
        if all(mean is not None and std for mean, std in declared):
            scales = [(fact.scale, fact.offset) if self.scaled else (1, 0) for fact in self.facts]
            pairs = list(zip(declared, scales, strict=True))
            means = tuple((mean or 0) * scale + offset for (mean, _), (scale, offset) in pairs)
            return means, tuple((std or 1) * abs(scale) for (_, std), (scale, _) in pairs)
        sample = self.sample().astype(np.float64)
        if not len(sample):
            raise UnreadableImage(f"{self.name}: has no data in a sample of its pixels")
        stds = np.nanstd(sample, axis=0)
        means = np.nanmean(sample, axis=0).tolist()
        return tuple(means), tuple(np.where(stds > 0, stds, 1).tolist())

    def wanted(self, window: Window) -> NDArray[np.bool_]:
        """(H, W) whether each pixel of a window belongs to the scene, with or without data."""
        there = window.moved(self.window.top, self.window.left)
        inside = there.within(self.window)
        found = np.zeros((window.height, window.width), bool)
        if not inside.is_empty:
            place = inside.moved(-there.top, -there.left).slices
            found[place] = True if self.area is None else self.area.covers(inside)
        return found

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for opened in self._opened:
                opened.close()
            self._opened.clear()
            self._local = threading.local()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read_files(self, inside: Window) -> tuple[ImageArray, NDArray[np.bool_]]:
        """Pixels (H, W, C) and validity (H, W) of a window that lies in the full grid."""
        pixels = np.empty((inside.height, inside.width, len(self.bands)), self.dtype)
        have_data = np.ones((inside.height, inside.width), bool)
        known: list[NDArray[np.bool_]] = []
        for file in self.files:
            numbers = [i for i, band in enumerate(self._bands) if band.file == file]
            values, masked = self._read_file(file, numbers, inside)
            if masked is not None:
                have_data &= masked
            for number, plane in zip(numbers, values, strict=True):
                there = _has_data(plane, self._nodata[number])
                if there is not None:
                    known.append(there)
                pixels[:, :, number] = self._quantity(plane, there, number)
        if known:
            all_8_bit = all(fact.dtype == np.uint8 for fact in self.facts)
            if all_8_bit and len(known) == len(self.bands):
                have_data &= np.logical_or.reduce(known)
            elif not all_8_bit:
                have_data &= np.logical_and.reduce(known)
        return pixels, have_data

    def _quantity(
        self, plane: ImageArray, there: NDArray[np.bool_] | None, number: int
    ) -> ImageArray:
        """(H, W) stored values of a band -> with scale and offset, NaN where there is no data."""
        if not self.scaled:
            return plane
        fact = self.facts[number]
        values = plane.astype(np.float32) * np.float32(fact.scale) + np.float32(fact.offset)
        if there is not None:
            values[~there] = np.nan
        return values

    def _read_file(
        self, file: str, numbers: Sequence[int], inside: Window
    ) -> tuple[ImageArray, NDArray[np.bool_] | None]:
        """(C, H, W) stored values of some bands, and (H, W) what a mask or alpha band says."""
        from rasterio.enums import MaskFlags
        from rasterio.windows import Window as Rectangle

        place = Rectangle(inside.left, inside.top, inside.width, inside.height)
        indexes = [self._bands[i].index for i in numbers]
        failed = False

        def read() -> tuple[ImageArray, NDArray[np.bool_] | None]:
            nonlocal failed
            with gdal_settings(fresh=failed):
                try:
                    dataset = self._dataset(file, numbers)
                    values = dataset.read(indexes, window=place)
                    masks = None
                    if MaskFlags.per_dataset in dataset.mask_flag_enums[indexes[0] - 1]:
                        masks = dataset.read_masks(indexes[0], window=place) > 0
                    return values, masks
                except Exception:
                    failed = True
                    self._forget(file)
                    raise

        return retried(read, file)

    def _dataset(self, file: str, numbers: Sequence[int]) -> Any:
        """The file as this thread has opened it, on the scene's grid."""
        opened: dict[str, Any] = self._local.__dict__.setdefault("opened", {})
        if file not in opened:
            stack = ExitStack()
            with no_place_is_fine():
                dataset = stack.enter_context(rasterio().open(file))
            if not grid_of(dataset).matches(self.full_grid):
                dataset = stack.enter_context(
                    _warped(dataset, self.full_grid, self._nodata[numbers[0]])
                )
            opened[file] = dataset
            with self._lock:
                self._opened.append(stack)
        return opened[file]

    def _forget(self, file: str) -> None:
        """Open a file again at the next read."""
        self._local.__dict__.get("opened", {}).pop(file, None)


def open_scene(
    source: SceneSource,
    *,
    bands: Sequence[int | str] | None = None,
    resolution: float | None = None,
    area: str | Path | None = None,
    where: Sequence[int] | None = None,
    nodata: float | None = None,
    scaled: bool = True,
) -> Scene:
    """Open a raster of any size to read it window by window.

    Args:
        source: Path of a raster or VRT, URL of one, path or URL of a STAC item, or a sequence of
            files with one band each that cover the same area; coarser ones are resampled to the
            finest.
        bands: Numbers, from 1, or names of the bands to read, in the order wanted. Default: all,
            without transparency.
        resolution: Side of a pixel in the units of the CRS, to which the scene is resampled
            bilinearly when it is read.
        area: Vector file with polygons in any CRS; pixels outside have no data.
        where: Column, row, width and height in pixels of the window to take, at the resolution
            that is read.
        nodata: Value that means that there is no data, in place of what the files say.
        scaled: Apply the scale and offset that the files, or else the STAC item, declare for their
            bands; values become float32.

    Returns:
        A scene, which is a context manager.

    Raises:
        UnreadableImage: A file is missing or broken, or the files do not cover the same area.
        ValueError: Options that do not fit the scene; the message names them.
        ModuleNotFoundError: rasterio is not installed.
    """
    name = str(source) if isinstance(source, (str, Path)) else str(next(iter(source), ""))
    rasterio()
    found = find_bands(source)
    chosen = found if bands is None else choose_bands(found, bands, name)
    if not chosen:
        raise ValueError(f"{name}: no bands are chosen")
    described = {
        file: describe_raster(file) for file in dict.fromkeys(band.file for band in chosen)
    }
    grid = common_grid({file: facts[0] for file, facts in described.items()})
    if resolution is not None:
        grid = grid.resampled(resolution)
    region = None if area is None else Area(area, grid)
    window = grid.window if region is None else region.window
    if where is not None:
        column, row, width, height = where
        window = window.within(Window(row, column, height, width))
        if window.is_empty:
            raise ValueError(
                f"{name}: the window of {width} x {height} pixels at column {column}, row {row} "
                f"has none of the {grid.width} x {grid.height} pixels of the scene"
                + (" that are in the area" if region is not None else "")
            )
    facts = [described[band.file][1][band.index - 1].completed(band.item) for band in chosen]
    return Scene(chosen, grid, facts, window=window, area=region, nodata=nodata, scaled=scaled)


def _warped(dataset: Any, grid: Grid, nodata: float | None) -> Any:
    """A dataset resampled to another grid when it is read."""
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.vrt import WarpedVRT

    has_alpha = ColorInterp.alpha in dataset.colorinterp
    crs = grid.crs or _ANY_CRS
    return WarpedVRT(
        dataset,
        crs=crs,
        src_crs=crs,
        transform=grid.transform,
        height=grid.height,
        width=grid.width,
        resampling=Resampling.bilinear,
        src_nodata=nodata,
        nodata=nodata,
        add_alpha=nodata is None and not has_alpha,
        tolerance=_TOLERANCE,
        warp_mem_limit=64,
    )


def _spread(length: int) -> list[int]:
    """First pixels of the samples along a side."""
    if length <= _SAMPLES * _SAMPLE_SIDE:
        return list(range(0, length, _SAMPLE_SIDE))
    last = length - _SAMPLE_SIDE
    return [round(i * last / (_SAMPLES - 1)) for i in range(_SAMPLES)]


def _has_data(plane: ImageArray, nodata: float | None) -> NDArray[np.bool_] | None:
    """(H, W) stored values of a band -> where they are data; None where they all are."""
    if nodata is None and plane.dtype.kind != "f":
        return None
    missing = missing_pixels(plane[:, :, None], None if nodata is None else nodata)
    if missing is not None and plane.dtype.kind == "f" and nodata is not None:
        with np.errstate(over="ignore"):
            missing |= plane == plane.dtype.type(nodata)
    return None if missing is None else ~missing
