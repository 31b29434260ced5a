"""What the files of a scene say of themselves: grid, types, no-data, scale, statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segformer.image.scene_bands import open_raster, retried
from segformer.image.scene_grid import Grid
from segformer.image.scene_items import ItemValues
from segformer.image.stored import UnreadableImage


@dataclass(frozen=True)
class BandFacts:
    """What a file says of a band.

    Attributes:
        dtype: Type of the stored values.
        nodata: Stored value that means that there is no data.
        scale: Factor from stored values to the quantity they stand for.
        offset: Added after it.
        highest: Stored value that means white, for integers of fewer bits than their type has.
        mean: Of the stored values, where the file says so.
        std: Standard deviation of the stored values, where the file says so.
    """

    dtype: np.dtype[Any]
    nodata: float | None
    scale: float
    offset: float
    highest: float | None
    mean: float | None
    std: float | None

    def completed(self, item: ItemValues) -> BandFacts:
        """With what a STAC item says, where the file itself says nothing.

        STAC does not say which counts. The file was written together with its pixels, so it does.
        A file without scale and offset cannot be told from one with 1 and 0.
        """
        nodata, scale, offset = self.nodata, self.scale, self.offset
        if nodata is None and item.nodata is not None and _can_hold(self.dtype, item.nodata):
            nodata = item.nodata
        if (scale, offset) == (1, 0):
            scale = 1.0 if item.scale is None else item.scale
            offset = item.offset or 0.0
        return replace(self, nodata=nodata, scale=scale, offset=offset)


def describe_raster(file: str) -> tuple[Grid, list[BandFacts]]:
    """The grid of a raster, and what it says of each of its bands.

    Raises:
        UnreadableImage: It cannot be read, or does not hold numbers.
    """

    def describe() -> tuple[Grid, list[BandFacts]]:
        with open_raster(file) as dataset:
            facts = [
                BandFacts(
                    np.dtype(dataset.dtypes[i]),
                    dataset.nodatavals[i],
                    dataset.scales[i],
                    dataset.offsets[i],
                    _highest(dataset, i),
                    *_declared_statistics(dataset, i),
                )
                for i in range(dataset.count)
            ]
            return grid_of(dataset), facts

    grid, facts = retried(describe, file)
    if any(fact.dtype.kind not in "uif" for fact in facts):
        raise UnreadableImage(f"{file}: a scene must hold numbers, this has {facts[0].dtype}")
    return grid, facts


def _can_hold(dtype: np.dtype[Any], value: float) -> bool:
    """Whether pixels of a type can have a value."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return value.is_integer() and limits.min <= value <= limits.max


def grid_of(dataset: Any) -> Grid:
    """The grid of an open rasterio dataset."""
    return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)


def _highest(dataset: Any, i: int) -> float | None:
    """The largest value of integers that use fewer bits than their type has (GDAL's NBITS)."""
    bits = dataset.tags(i + 1, ns="IMAGE_STRUCTURE").get("NBITS")
    return 2.0 ** int(bits) - 1 if bits and int(bits) > 8 else None


def _declared_statistics(dataset: Any, i: int) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the stored values of a band, where the file has both."""
    tags = dataset.tags(i + 1)
    try:
        return float(tags["STATISTICS_MEAN"]), float(tags["STATISTICS_STDDEV"])
    except (KeyError, ValueError):
        return None, None


def common_grid(grids: dict[str, Grid]) -> Grid:
    """The finest of the grids of files that cover the same area.

    Raises:
        UnreadableImage: They have different CRSs, or cover different areas.
    """
    finest_file, finest = max(grids.items(), key=lambda item: item[1].height * item[1].width)
    pixels = max(abs(value) for value in (finest.transform.a, finest.transform.e, 1e-12))
    for file, grid in grids.items():
        if grid.crs != finest.crs:
            raise UnreadableImage(
                f"{file}: its CRS is {grid.crs}, that of {finest_file} is {finest.crs}; files of "
                "one scene must have the same CRS"
            )
        apart = max(abs(a - b) for a, b in zip(grid.bounds, finest.bounds, strict=True))
        if apart > pixels / 2:
            raise UnreadableImage(
                f"{file}: does not cover the same area as {finest_file}; files of one scene must"
            )
    return finest
