"""GeoTIFF files of class ids: blocks of unfinished work, and the Cloud-Optimized result.

Legend: H W pixels, K classes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.image.scene_bands import gdal_settings, no_place_is_fine, rasterio
from segformer.image.scene_grid import Grid, Window
from segformer.raster.qgis import hex_colors, qgis_style

_BLOCK_SIDE = 512
"""Side in pixels of the tiles of a result."""

_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16"}


@dataclass(frozen=True)
class RasterLayer:
    """What a result says of its pixels.

    Attributes:
        description: What the values are.
        dtype: uint8 or uint16.
        nodata: Value where nothing is predicted.
        overviews: How overviews are made: by the most frequent value, or the mean.
        classes: Names and colors of the values; None where the values are no classes.
        scale: Factor from values to what they mean.
        tags: Other metadata.
    """

    description: str
    dtype: str
    nodata: int
    overviews: Literal["MODE", "AVERAGE"]
    classes: ClassSet | None = None
    scale: float = 1
    tags: Mapping[str, str] = field(default_factory=dict)


def encode_block(values: NDArray[np.integer], grid: Grid, nodata: int) -> bytes:
    """The content of a GeoTIFF of (H, W) values."""
    with no_place_is_fine(), rasterio().io.MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=grid.height,
            width=grid.width,
            count=1,
            dtype=values.dtype,
            crs=grid.crs,
            transform=grid.transform,
            nodata=nodata,
            compress="deflate",
            zlevel=1,
            tiled=True,
            blockxsize=_BLOCK_SIDE,
            blockysize=_BLOCK_SIDE,
            BIGTIFF="IF_SAFER",
        ) as dataset:
            dataset.write(values, 1)
        return bytes(memory.getbuffer())


def write_cog(
    path: Path,
    blocks: Mapping[Window, Path],
    grid: Grid,
    window: Window,
    layer: RasterLayer,
    *,
    cache: int,
) -> NDArray[np.int64]:
    """Join blocks to a Cloud-Optimized GeoTIFF, with overviews, without reading them all at once.

    Args:
        path: The result; it must not exist. For class ids, `sidecars` are written beside it.
        blocks: Files of blocks, by their pixels in ``grid``; pixels of none have no data.
        grid: The raster.
        window: The part of it that is written.
        layer: What the values mean.
        cache: Bytes that GDAL may take.

    Returns:
        How often each value of the layer's type occurs, (256,) or (65536,).

    Raises:
        OSError: It cannot be written, as when the disk is full.
    """
    rasterio_shutil = _module("rasterio.shutil")
    failures = (rasterio().errors.RasterioError, _module("rasterio._err").CPLE_BaseError)
    vrt = path.with_suffix(".vrt")
    vrt.write_text(_mosaic(blocks, grid, window, layer), encoding="utf-8")
    try:
        with no_place_is_fine(), gdal_settings(), rasterio().Env(GDAL_CACHEMAX=cache):
            rasterio_shutil.copy(
                str(vrt),
                str(path),
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL="6",
                BLOCKSIZE=str(_BLOCK_SIDE),
                OVERVIEW_RESAMPLING=layer.overviews,
                BIGTIFF="IF_SAFER",
                NUM_THREADS="ALL_CPUS",
            )
            counts = _read_back(path, layer.dtype)
    except failures as error:
        path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"{path}: cannot be written ({error}); {free / 1e6:.1f} MB of disk space are free, and "
            "it needs up to twice the size of the finished file"
        ) from None
    finally:
        vrt.unlink(missing_ok=True)
    if layer.classes is not None:
        for sidecar, describe in sidecars(path).items():
            sidecar.write_text(describe(layer.classes), encoding="utf-8")
    return counts


def sidecars(path: Path) -> dict[Path, Callable[[ClassSet], str]]:
    """Files beside a label map, and what writes the names of its classes for GDAL and for QGIS."""
    return {
        path.with_name(path.name + ".aux.xml"): _categories,
        path.with_suffix(".qml"): qgis_style,
    }


def _read_back(path: Path, dtype: str) -> NDArray[np.int64]:
    """How often each value occurs in a result, all of which is read.

    On a full disk, GDAL may end without an error.

    Raises:
        rasterio.errors.RasterioError: A part of it cannot be read.
    """
    counts = np.zeros(np.iinfo(dtype).max + 1, np.int64)
    with rasterio().open(path) as dataset:
        levels = len(dataset.overviews(1))
        for values in _rows(dataset):
            counts += np.bincount(values.ravel(), minlength=len(counts))
    for level in range(levels):
        with rasterio().open(path, overview_level=level) as dataset:
            for _ in _rows(dataset):
                pass
    return counts


def _rows(dataset: Any) -> Iterator[NDArray[np.integer]]:
    """All values of a raster, a row of its blocks at a time."""
    height = dataset.block_shapes[0][0]
    for top in range(0, dataset.height, height):
        rows = min(height, dataset.height - top)
        yield dataset.read(1, window=((top, top + rows), (0, dataset.width)))


def class_tags(classes: ClassSet) -> dict[str, str]:
    """Metadata with the names and colors of the classes as JSON."""
    return {
        "CLASS_NAMES": json.dumps(list(classes.names), ensure_ascii=False),
        "CLASS_COLORS": json.dumps(hex_colors(classes)),
    }


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _mosaic(blocks: Mapping[Window, Path], grid: Grid, window: Window, layer: RasterLayer) -> str:
    """The XML of a virtual raster of blocks."""
    part = grid.part(window)
    transform = ", ".join(repr(float(value)) for value in part.transform.to_gdal())
    crs = "" if grid.crs is None else f"<SRS>{escape(grid.crs.to_wkt())}</SRS>"
    tags = "".join(
        f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>" for key, value in layer.tags.items()
    )
    kind = _GDAL_TYPES[layer.dtype]
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(file.absolute()))}'
        f"</SourceFilename><SourceBand>1</SourceBand>"
        f'<SourceProperties RasterXSize="{pixels.width}" RasterYSize="{pixels.height}" '
        f'DataType="{kind}" BlockXSize="{_BLOCK_SIDE}" BlockYSize="{_BLOCK_SIDE}"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{pixels.width}" ySize="{pixels.height}"/>'
        f'<DstRect xOff="{pixels.left - window.left}" yOff="{pixels.top - window.top}" '
        f'xSize="{pixels.width}" ySize="{pixels.height}"/></SimpleSource>'
        for pixels, file in blocks.items()
    )
    color = "Gray" if layer.classes is None else "Palette"
    table = "" if layer.classes is None else _color_table(layer.classes)
    scale = "" if layer.scale == 1 else f"<Scale>{layer.scale!r}</Scale><Offset>0</Offset>"
    return (
        f'<VRTDataset rasterXSize="{window.width}" rasterYSize="{window.height}">{crs}'
        f"<GeoTransform>{transform}</GeoTransform><Metadata>{tags}</Metadata>"
        f'<VRTRasterBand dataType="{kind}" band="1">'
        f"<Description>{escape(layer.description)}</Description>"
        f"<NoDataValue>{layer.nodata}</NoDataValue><ColorInterp>{color}</ColorInterp>{table}{scale}"
        f"{sources}</VRTRasterBand></VRTDataset>"
    )


def _color_table(classes: ClassSet) -> str:
    entries = "".join(
        f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="255"/>'
        for red, green, blue in classes.palette[: len(classes)]
    )
    return f"<ColorTable>{entries}</ColorTable>"


def _categories(classes: ClassSet) -> str:
    """The XML from which GDAL takes the names of the classes."""
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes.names)
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    '
        f"<CategoryNames>{names}</CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )
