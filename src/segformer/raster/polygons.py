"""Polygons of the regions of a georeferenced label map, with classes, areas and confidences.

Legend: N polygons.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.files import check_replaceable
from segformer.machine import available_memory
from segformer.raster.areas import GroundPlane
from segformer.raster.polygons_config import PolygonConfig, class_ids
from segformer.raster.polygons_regions import Regions
from segformer.raster.polygons_simplifying import check_simplification, simplified
from segformer.raster.polygons_tracing import check_memory, smallest_pixel, stored_labels
from segformer.raster.vector_files import Features, check_suffix, write_features

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

logger = logging.getLogger(__name__)

_DEFAULT_MEMORY = 4 << 30
"""Bytes that outlines may take where the system does not say how many are available."""


def write_polygons(
    label_map: str | Path,
    path: str | Path,
    *,
    confidence: str | Path | None = None,
    classes: ClassSet | None = None,
    skip_classes: Sequence[str] = (),
    min_area: float = 0,
    simplify: float = 0,
    max_memory: int | None = None,
    overwrite: bool = False,
) -> int:
    """Write a polygon for each connected region of a label map, with holes.

    Pixels are connected by their sides. Only the corners of outlines are in memory as a whole. The
    attributes are ``class_id``, ``class_name``, ``area_m2`` (of the polygon as written, see
    `GroundPlane`) and, with ``confidence``, ``mean_confidence`` (over the pixels of the region,
    before its outline is simplified).

    Args:
        label_map: Georeferenced raster of class ids, as `predict_scene` writes it.
        path: File to write: GeoPackage (.gpkg) or GeoParquet (.parquet). Its layer has its name.
        confidence: Raster of confidences on the same grid.
        classes: Names of the class ids. Default: those that the label map's metadata gives.
        skip_classes: Names of classes that get no polygons.
        min_area: Area in square meters: smaller regions get the class of their largest neighbor,
            and those without a neighbor get no polygon.
        simplify: Length in meters of details of outlines that are left out, without gaps or
            overlaps between neighbors. 0: outlines follow the pixels.
        max_memory: Bytes that outlines may take. Default: half of the memory that is available.
        overwrite: Replace a file that exists.

    Returns:
        The number of polygons.

    Raises:
        OutputExists: The file exists.
        NoGroundArea: The label map has no coordinate reference system with lengths.
        TooManyPolygons: The outlines do not fit into the memory.
        ValueError: Another suffix, an unknown class, a value that is no class, or a raster of
            confidences on another grid.
    """
    import rasterio

    path = Path(path)
    check_suffix(path)
    check_replaceable([path], overwrite=overwrite)
    options = PolygonConfig(skip_classes=tuple(skip_classes), min_area=min_area, simplify=simplify)
    path.parent.mkdir(parents=True, exist_ok=True)
    if max_memory is None:
        max_memory = (available_memory() or 2 * _DEFAULT_MEMORY) // 2
    with ExitStack() as opened:
        dataset = opened.enter_context(rasterio.open(label_map))
        values = None
        if confidence is not None:
            values = opened.enter_context(rasterio.open(confidence))
            _check_same_grid(dataset, values)
        ground = GroundPlane(dataset)
        classes = classes or tagged_classes(dataset)
        regions = _trace(dataset, values, ground, classes, options, path.parent, max_memory)
        names = np.array(classes.names, object)

        def features(batch: Regions) -> Features:
            polygons = batch.polygons()
            attributes: dict[str, NDArray[Any]] = {
                "class_id": batch.class_ids,
                "class_name": names[batch.class_ids],
                "area_m2": _areas(polygons, ground),
            }
            if values is not None:
                attributes["mean_confidence"] = batch.means()
            return Features(_georeferenced(polygons, dataset), attributes)

        write_features(
            path,
            (features(batch) for part in regions for batch in part.batches()),
            crs=dataset.crs,
            bounds=_bounds(regions, dataset),
            layer=path.stem,
        )
    count = sum(len(part) for part in regions)
    logger.info("%s: %d polygons", path, count)
    return count


def tagged_classes(dataset: DatasetReader) -> ClassSet:
    """The classes that the metadata of a label map gives.

    Raises:
        ValueError: It gives none.
    """
    try:
        names = json.loads(dataset.tags()["CLASS_NAMES"])
        colors = [bytes.fromhex(c[1:]) for c in json.loads(dataset.tags()["CLASS_COLORS"])]
    except (KeyError, ValueError):
        raise ValueError(
            f"{dataset.name} does not say what its classes are (CLASS_NAMES and CLASS_COLORS in "
            "its metadata); pass their names"
        ) from None
    nodata = dataset.nodata
    ignore_index = int(nodata) if nodata is not None and nodata >= len(names) else 1 << 30
    return ClassSet(tuple(names), tuple((r, g, b) for r, g, b in colors), ignore_index)


def _trace(
    dataset: DatasetReader,
    values: DatasetReader | None,
    ground: GroundPlane,
    classes: ClassSet,
    options: PolygonConfig,
    folder: Path,
    max_memory: int,
) -> list[Regions]:
    """The regions of at least the minimum area, without those of classes that are skipped."""
    skipped = class_ids(options.skip_classes, classes)
    with stored_labels(dataset, classes, folder) as store:
        if options.min_area:
            pixels = math.ceil(options.min_area / smallest_pixel(ground, dataset))
            store.merge_small_regions(min(pixels, dataset.width * dataset.height))
        store.leave_out(np.asarray(skipped))
        edges = store.count_edges()
        check_memory(int(edges.sum()), max_memory, dataset.name)
        regions = []
        for part in store.trace(edges, values):
            large = _large_enough(part, options.min_area, ground)
            if len(large):
                regions.append(large)
        if options.simplify and regions:
            size = ground.pixel_size((dataset.height, dataset.width))
            nodes = store.find_nodes()
            check_simplification(regions, len(nodes), max_memory, dataset.name)
            regions = [simplified(regions, nodes, options.simplify, size)]
    return regions or [Regions.joined([])]


def _large_enough(regions: Regions, min_area: float, ground: GroundPlane) -> Regions:
    """The regions of at least the minimum area, in square meters."""
    if not min_area:
        return regions
    areas = [_areas(batch.polygons(), ground) for batch in regions.batches()]
    return regions.take(np.concatenate(areas) >= min_area * (1 - 1e-9))


def _areas(polygons: NDArray[Any], ground: GroundPlane) -> NDArray[np.float64]:
    """(N,) square meters."""
    import shapely

    plane = shapely.transform(polygons, lambda xy: np.stack(ground.project(*xy.T), axis=1))
    return np.asarray(shapely.area(plane), np.float64).reshape(-1)


def _georeferenced(polygons: NDArray[Any], dataset: DatasetReader) -> NDArray[Any]:
    """Polygons in the coordinates of the raster, exteriors counterclockwise."""
    import shapely

    placed = shapely.transform(polygons, lambda xy: _placed(xy, dataset))
    return np.asarray(shapely.orient_polygons(placed))


def _placed(points: NDArray[Any], dataset: DatasetReader) -> NDArray[np.float64]:
    """(M, 2) pixel coordinates -> coordinates of the raster."""
    t = dataset.transform
    linear, origin = np.array([[t.a, t.d], [t.b, t.e]]), np.array([t.c, t.f])
    return np.asarray(points @ linear + origin)


def _bounds(regions: Sequence[Regions], dataset: DatasetReader) -> tuple[float, ...] | None:
    """Least x and y and largest x and y of all regions, or None if there are none."""
    batches = (batch for part in regions for batch in part.batches())
    placed = (_placed(batch.corners, dataset) for batch in batches if len(batch))
    sides = [(*points.min(axis=0), *points.max(axis=0)) for points in placed]
    if not sides:
        return None
    lower, upper = np.array(sides)[:, :2].min(axis=0), np.array(sides)[:, 2:].max(axis=0)
    return (*lower.tolist(), *upper.tolist())


def _check_same_grid(first: DatasetReader, second: DatasetReader) -> None:
    if first.shape != second.shape or not first.transform.almost_equals(second.transform):
        raise ValueError(
            f"{second.name} has {second.width} x {second.height} pixels on another grid than "
            f"{first.name}, which has {first.width} x {first.height}"
        )
