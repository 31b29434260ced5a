"""Files of polygons with attributes: GeoPackage and GeoParquet.

Legend: N polygons.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

import segformer
from segformer.files import whole_file

if TYPE_CHECKING:
    from rasterio.crs import CRS

SUFFIXES = (".gpkg", ".parquet")
"""Suffixes of the files that can be written."""


@dataclass
class Features:
    """Polygons with attributes.

    Attributes:
        polygons: (N,) shapely polygons, exteriors counterclockwise.
        attributes: Name of each attribute -> its (N,) values.
    """

    polygons: NDArray[Any]
    attributes: Mapping[str, NDArray[Any]]


def write_features(
    path: str | Path,
    batches: Iterable[Features],
    *,
    crs: CRS,
    bounds: tuple[float, ...] | None,
    layer: str,
) -> None:
    """Write a GeoPackage (.gpkg) or GeoParquet file (.parquet), whole or not at all.

    Args:
        path: The file; one that exists is replaced.
        batches: What to write, some polygons at a time, all with the same attributes. There is at
            least one batch, which may be empty.
        crs: Coordinate reference system of the polygons.
        bounds: Least x and y and largest x and y of all, or None if there are none.
        layer: Name of the layer of a GeoPackage.

    Raises:
        ValueError: The suffix is another one.
        ImportError: A package is missing; the message names the extra.
        OSError: It cannot be written, as when the disk is full.
    """
    path = Path(path)
    check_suffix(path)
    with whole_file(path) as partial:
        partial.unlink()  # GDAL makes files itself
        if path.suffix.lower() == ".parquet":
            _write_geoparquet(partial, batches, crs, bounds)
        else:
            _write_geopackage(partial, batches, crs, layer)


def check_suffix(path: Path) -> None:
    """Refuse files of other formats, and GeoParquet without its package.

    Raises:
        ValueError: The suffix is another one.
        ImportError: pyarrow is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: polygons are written as GeoPackage (.gpkg) or GeoParquet (.parquet)"
        )
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ImportError(
                'GeoParquet needs pyarrow: pip install "segformer[parquet]"; GeoPackage '
                "(.gpkg) does not"
            ) from None


def _write_geopackage(path: Path, batches: Iterable[Features], crs: CRS, layer: str) -> None:
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError
    from pyogrio.raw import write

    for number, features in enumerate(batches):
        try:
            write(
                path,
                geometry=shapely.to_wkb(features.polygons),
                field_data=list(features.attributes.values()),
                fields=list(features.attributes),
                layer=layer,
                driver="GPKG",
                geometry_type="Polygon",
                crs=crs.to_wkt(),
                append=number > 0,
            )
        except (DataLayerError, DataSourceError) as error:
            free = disk_usage(path.parent).free
            raise OSError(
                f"{path.parent}: polygons cannot be written ({error}); {free / 1e6:.1f} MB of disk "
                "space are free"
            ) from None


def _write_geoparquet(
    path: Path, batches: Iterable[Features], crs: CRS, bounds: tuple[float, ...] | None
) -> None:
    """Version 1.1.0 of the specification, with the bounds of each polygon for fast searches."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    sides = ("xmin", "ymin", "xmax", "ymax")
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [] if bounds is None else ["Polygon"],
        "crs": crs.to_dict(projjson=True),
        "orientation": "counterclockwise",
        "covering": {"bbox": {side: ["bbox", side] for side in sides}},
    }
    if bounds is not None:
        column["bbox"] = list(bounds)
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    batches = iter(batches)
    first = next(batches)
    types = {name: _arrow_type(values) for name, values in first.attributes.items()}
    schema = pa.schema(
        {
            **types,
            "bbox": pa.struct(dict.fromkeys(sides, pa.float64())),
            "geometry": pa.binary(),
        },
        metadata={"geo": json.dumps(geo), "creator": f"segformer {segformer.__version__}"},
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for features in chain([first], batches):
            columns = [
                pa.array(values, types[name], from_pandas=True)
                for name, values in features.attributes.items()
            ]
            boxes = pa.StructArray.from_arrays(
                [pa.array(side) for side in shapely.bounds(features.polygons).reshape(-1, 4).T],
                names=list(sides),
            )
            geometry = pa.array(shapely.to_wkb(features.polygons), pa.binary())
            writer.write_table(pa.Table.from_arrays([*columns, boxes, geometry], schema=schema))


def _arrow_type(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    return pa.string() if values.dtype == object else pa.from_numpy_dtype(values.dtype)
