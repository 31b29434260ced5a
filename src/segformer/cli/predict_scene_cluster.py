"""`segformer predict --cluster` of georeferenced scenes, whose blocks are computed by workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from glob import has_magic
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from segformer.cli.predict_many import output_uri
from segformer.cli.predict_scene import SceneJob, asks_for_scenes, find_scenes

if TYPE_CHECKING:
    from segformer.cluster.scenes import SceneWorkers
    from segformer.image.scene import Scene
    from segformer.prediction.predictor import Predictor
    from segformer.raster.computing import ComputeBlocks

_SCENES_ON_SERVERS = (".tif", ".tiff", ".vrt", ".json", ".geojson", ".jp2")
"""Suffixes of URIs that are scenes; others are images, or folders and lists of images."""


def find_cluster_scenes(options: Any, words: Sequence[str]) -> list[SceneJob]:
    """The inputs that are scenes; none where all are plain images.

    Args:
        options: Of the command.
        words: Of the command line.

    Raises:
        ValueError: Some of the inputs are scenes and some are not, the output folder is on another
            file system, or a package is missing.
    """
    if options.scenes.scene is False:
        return []
    others = [word for word in options.images if _is_no_scene(word)]
    named = tuple(word for word in options.images if word not in others)
    scenes = find_scenes(replace(options, images=named), words) if named else []
    if others and (scenes or asks_for_scenes(options, words)):
        raise ValueError(
            f"{others[0]}: georeferenced scenes on other file systems are named one by one, such "
            "as s3://bucket/scene.tif; predict plain images by a separate command, or pass --scene "
            "False to read all as plain images"
        )
    if not scenes:
        return []
    out = output_uri(options.out)
    if "://" in out:
        raise ValueError(
            f"{out}: scenes are written into a folder of this machine, which also keeps the work "
            "of interrupted runs; choose such a folder with --out and copy the results"
        )
    try:
        import segformer.cluster.scenes  # noqa: F401 - before the model is loaded
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; pip install 'segformer[cluster]' brings it"
        ) from None
    return scenes


@contextmanager
def scene_workers(options: Any, predictor: Predictor) -> Iterator[SceneWorkers | None]:
    """Workers on a cluster; None without ``--cluster``."""
    if options.machines.cluster is None:
        yield None
        return
    from segformer.cluster.scenes import SceneWorkers

    given = options.scenes.max_memory is not None
    with SceneWorkers(
        predictor.model,
        predictor.config,
        options.machines,
        max_memory=options.scenes.memory_limit if given else None,
    ) as workers:
        yield workers


def blocks_on(
    workers: SceneWorkers | None, options: Any, predictor: Predictor, scene: Scene, job: SceneJob
) -> ComputeBlocks | None:
    """What computes the blocks of a scene; None: this process."""
    if workers is None:
        return None
    from segformer.cluster.scene_work import SceneRequest, on_all_machines

    config = options.scenes
    request = SceneRequest(
        on_all_machines(job.source),
        bands=config.bands or None,
        resolution=config.resolution,
        area=None if config.area is None else str(config.area.absolute()),
        where=config.where,
        nodata=predictor.model.preprocessing.nodata,
        scaled=config.apply_scale,
        own_statistics=config.statistics == "scene",
    )
    return workers.computer(request, scene)


def lost_workers(workers: SceneWorkers | None) -> str:
    """The end of the last line, if workers died."""
    count = 0 if workers is None else workers.report.lost_workers
    return f"; {count} workers were lost" if count else ""


def _is_no_scene(word: str) -> bool:
    """Whether an input can only be a folder or a list of images, or an image on a server."""
    if "://" not in word:
        return word.endswith(".parquet")
    suffix = PurePosixPath(urlsplit(word).path).suffix.lower()
    return suffix not in _SCENES_ON_SERVERS or has_magic(urlsplit(word).path)
