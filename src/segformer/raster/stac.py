"""STAC items of predicted scenes, with the fields of the Machine Learning Model extension.

The fields are those of STAC 1.1.0 (https://github.com/radiantearth/stac-spec) and of the extensions
mlm, projection, raster and classification (https://stac-extensions.github.io).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segformer
from segformer.classes import ClassSet
from segformer.image import Preprocessing
from segformer.raster.areas import NoGroundArea
from segformer.raster.stac_footprint import footprint

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)

_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_VECTOR_TYPES = {
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
}

_ARTIFACTS = {
    ".safetensors": "safetensors",
    ".bin": "torch.save",
    ".pth": "torch.save",
    ".onnx": "onnx",
    ".xml": "openvino",
    ".h5": "h5",
}


@dataclass(frozen=True)
class ModelFacts:
    """What an item says of the model.

    Attributes:
        source: Hub id, or path of a folder or file.
        classes: Its classes.
        preprocessing: What it does to images.
        bands: Name of each of the scene's bands, in the order of the model's channels.
        window: Side in pixels of the windows.
        framework: What ran it, such as PyTorch.
        framework_version: Its version.
        parameters: Number of its parameters, where known.
        settings: Other options of the prediction, by name.
    """

    source: str
    classes: ClassSet
    preprocessing: Preprocessing
    bands: tuple[str, ...]
    window: int
    framework: str = "PyTorch"
    framework_version: str | None = None
    parameters: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def scene_item(
    label_map: str | Path,
    model: ModelFacts,
    *,
    folder: str | Path,
    source: str | Path | Sequence[str | Path],
    confidence: str | Path | None = None,
    polygons: str | Path | None = None,
    acquired: datetime | None = None,
) -> dict[str, Any]:
    """The STAC item of a label map, ready for JSON.

    Args:
        label_map: Georeferenced raster of class ids; the item is called as its file.
        model: The model that made it.
        folder: Where the item will be written; links to files are relative to it.
        source: Files or URL of the scene. If it is a STAC item, this one is derived from it.
        confidence: Raster of confidences.
        polygons: GeoPackage or GeoParquet file.
        acquired: When the scene was acquired; without a time zone it is in UTC. Default: now, the
            time of the prediction.

    Raises:
        NoGroundArea: The label map has no coordinate reference system.
    """
    import rasterio

    folder, now = Path(folder), datetime.now(UTC)
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    with rasterio.open(label_map) as dataset:
        if not dataset.crs:
            raise NoGroundArea(
                f"{dataset.name} has no coordinate reference system, so it has no place on the "
                "earth that a STAC item could give"
            )
        geometry, projection = footprint(dataset), _projection(dataset)
        band = {"name": "class", "data_type": dataset.dtypes[0]}
        if dataset.nodata is not None:
            band["nodata"] = int(dataset.nodata)
    classes = _classes(model.classes)
    assets: dict[str, Any] = {
        "label_map": {
            "href": _href(label_map, folder),
            "type": _COG,
            "title": "Class of each pixel",
            "roles": ["data"],
            "bands": [{**band, "classification:classes": classes}],
        }
    }
    if confidence is not None:
        assets["confidence"] = _confidence_asset(Path(confidence), folder)
    if polygons is not None:
        assets["polygons"] = {
            "href": _href(polygons, folder),
            "type": _VECTOR_TYPES[Path(polygons).suffix.lower()],
            "title": "Polygon of each connected region",
            "roles": ["data"],
        }
    assets["model"] = _model_asset(model.source, folder)
    links = []
    for number, file in enumerate(sources):
        if str(file).endswith(".json"):
            links.append(
                {"rel": "derived_from", "href": _href(file, folder), "type": "application/geo+json"}
            )
        else:
            key = "source" if len(sources) == 1 else f"source_{number + 1}"
            assets[key] = {
                "href": _href(file, folder),
                "title": "Scene that was segmented",
                "roles": ["source"],
            }
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": Path(label_map).stem,
        "geometry": geometry,
        "properties": {
            "datetime": _timestamp(acquired or now),
            "created": _timestamp(now),
            **projection,
            "bands": [{"name": name} for name in model.bands],
            **_model_fields(model, classes),
        },
        "links": links,
        "assets": assets,
    }
    if geometry is not None:  # STAC wants bounds with a geometry, and none without
        item["bbox"] = _bounds(geometry)
    return item


def acquisition_time(files: Sequence[str | Path]) -> datetime | None:
    """When a scene was acquired, where the metadata of its first file says so.

    It is read from GDAL's ACQUISITIONDATETIME, or else from the tag DateTime of a TIFF.
    """
    import rasterio

    with rasterio.open(files[0]) as dataset:
        texts = [
            dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME"),
            dataset.tags().get("TIFFTAG_DATETIME"),
        ]
    for text in texts:
        if text:
            for form in ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S", "%Y:%m:%d %H:%M:%S"):
                try:
                    return datetime.strptime(text, form).replace(tzinfo=UTC)
                except ValueError:
                    continue
    return None


def _model_fields(model: ModelFacts, classes: list[dict[str, Any]]) -> dict[str, Any]:
    """The properties of the extension MLM."""
    preprocessing, window = model.preprocessing, model.window
    shape = [-1, len(preprocessing.mean), window, window]
    dimensions = ["batch", "channel", "height", "width"]
    fields: dict[str, Any] = {
        "mlm:name": _model_name(model.source),
        "mlm:architecture": "SegFormer",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": model.framework,
        "mlm:input": [
            {
                "name": "windows of the scene",
                "bands": list(model.bands),
                "input": {"shape": shape, "dim_order": dimensions, "data_type": "float32"},
                # Of stored values: (value * rescale - mean) / std
                "value_scaling": [
                    {
                        "type": "z-score",
                        "mean": mean / preprocessing.rescale,
                        "stddev": std / preprocessing.rescale,
                    }
                    for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
                ],
                "resize_type": None,
                "pre_processing_function": None,
            }
        ],
        "mlm:output": [
            {
                "name": "logits",
                "tasks": ["semantic-segmentation"],
                "result": {
                    "shape": [-1, len(classes), -(-window // 4), -(-window // 4)],
                    "dim_order": ["batch", "class", "height", "width"],
                    "data_type": "float32",
                },
                "classification:classes": classes,
                "post_processing_function": None,
            }
        ],
        "mlm:hyperparameters": {
            "window": window,
            **model.settings,
            "segformer_version": segformer.__version__,
        },
    }
    if model.framework_version and re.match(r"\d+\.\d+\.\d+", model.framework_version):
        fields["mlm:framework_version"] = model.framework_version
    if model.parameters is not None:
        fields["mlm:total_parameters"] = model.parameters
    return fields


def _model_name(source: str) -> str:
    """The last part of a Hub id or path, with the characters that the extension allows."""
    name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", Path(source).name).strip("-._")
    return name if re.match("[a-zA-Z]..", name) else f"segformer-{name}".rstrip("-")


def _model_asset(source: str, folder: Path) -> dict[str, Any]:
    path, kind = Path(source), _ARTIFACTS.get(Path(source).suffix.lower(), "safetensors")
    for name in ("model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "openvino_model.xml"):
        if (path / name).is_file():
            path = path / name
            kind = _ARTIFACTS[path.suffix]
            break
    if path.exists():
        href = _href(path, folder)
    else:
        href = source if "://" in source else f"https://huggingface.co/{source}"
    return {
        "href": href,
        "type": "application/octet-stream" if path.is_file() else "text/html",
        "title": "Model",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": kind,
    }


def _confidence_asset(path: Path, folder: Path) -> dict[str, Any]:
    import rasterio

    with rasterio.open(path) as dataset:
        band = {
            "name": "confidence",
            "data_type": dataset.dtypes[0],
            "raster:scale": dataset.scales[0],
            "raster:offset": dataset.offsets[0],
        }
        if dataset.nodata is not None:
            band["nodata"] = dataset.nodata
    return {
        "href": _href(path, folder),
        "type": _COG,
        "title": "Probability of the class of each pixel",
        "roles": ["data"],
        "bands": [band],
    }


def _classes(classes: ClassSet) -> list[dict[str, Any]]:
    """Class objects; their ``name`` may only have ASCII letters, digits, - and _."""
    colors = ["{:02X}{:02X}{:02X}".format(*color) for color in classes.palette]
    names: list[str] = []
    for i, title in enumerate(classes.names):
        name = re.sub(r"[^0-9A-Za-z_-]+", "-", title).strip("-") or f"class-{i}"
        names.append(f"{name}-{i}" if name in names else name)
    return [
        {
            "value": i,
            "name": names[i],
            "title": title,
            "description": title,
            "color_hint": colors[i],
        }
        for i, title in enumerate(classes.names)
    ]


def _projection(dataset: DatasetReader) -> dict[str, Any]:
    authority = dataset.crs.to_authority()
    fields: dict[str, Any] = {
        "proj:code": None if authority is None else ":".join(authority),
        "proj:shape": list(dataset.shape),
        "proj:transform": list(dataset.transform)[:6],
        "proj:bbox": list(dataset.bounds),
    }
    if authority is None:
        fields["proj:wkt2"] = dataset.crs.to_wkt(version="WKT2_2019")
    return fields


def _href(file: str | Path, folder: Path) -> str:
    """A relative link to a file, or its address."""
    text = str(file)
    if "://" in text or text.startswith("/vsi"):
        return text
    try:
        relative = Path(os.path.relpath(text, folder)).as_posix()
    except ValueError:  # on another drive
        return Path(text).absolute().as_uri()
    return relative if relative.startswith("../") else f"./{relative}"


def _bounds(geometry: dict[str, Any]) -> list[float]:
    """West, south, east, north; west is larger than east across the antimeridian."""
    import shapely

    shape = shapely.geometry.shape(geometry)
    west, south, east, north = shape.bounds
    parts = shapely.get_parts(shape)
    eastern = [part.bounds[0] for part in parts if part.bounds[0] >= 0]
    western = [part.bounds[2] for part in parts if part.bounds[2] <= 0]
    if west == -180 and east == 180 and len(eastern) + len(western) == len(parts):
        west, east = min(eastern), max(western)
    return [west, south, east, north]


def _timestamp(when: datetime) -> str:
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")
