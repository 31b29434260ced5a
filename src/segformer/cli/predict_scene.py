"""`segformer predict` of georeferenced scenes: which inputs are scenes, and their results."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from segformer.cli.terminal import print_outcome, printable

if TYPE_CHECKING:
    from segformer.cluster.scenes import SceneWorkers
    from segformer.image.scene import Scene
    from segformer.image.scene_bands import SceneSource
    from segformer.prediction.predictor import Predictor
    from segformer.raster.computing import ComputeBlocks
    from segformer.raster.predicting import ScenePrediction
    from segformer.raster.stac import ModelFacts
    from segformer.raster.vector_outputs import SceneOutputs, SceneWriter

logger = logging.getLogger(__name__)

_SCENE_SUFFIXES = (".vrt", ".json")
_LOOKED_AT = 1000
"""Files of a folder among which scenes are looked for; without one, it is a folder of images."""

_TIFF_SUFFIXES = (".tif", ".tiff")
_GEOREFERENCE = {33550, 33922, 34264, 34735}
"""TIFF tags of a place on the earth: pixel scale, tie points, transformation, geographic keys."""


@dataclass(frozen=True)
class SceneJob:
    """A scene, and what its results are called.

    Attributes:
        source: What `segformer.image.scene.open_scene` takes.
        name: Name of the results without suffix.
    """

    source: SceneSource
    name: str


def find_scenes(options: Any, words: Sequence[str]) -> list[SceneJob]:
    """The inputs that are scenes; none where all are plain images.

    Args:
        options: Of the command.
        words: Of the command line.

    Raises:
        ValueError: Some of the inputs are scenes and some are plain images.
    """
    if options.scenes.scene is False:
        return []
    asked = asks_for_scenes(options, words)
    listed = _named_files(options)
    sources = list(islice(listed, _LOOKED_AT))
    if not asked and not any(map(_is_scene, sources)):
        return []
    sources += listed
    found = [source for source in sources if asked or _is_scene(source)]
    if len(found) < len(sources):
        other = next(source for source in sources if source not in found)
        raise ValueError(
            f"{found[0]} is a georeferenced scene and {other} is a plain image; predict them by "
            "separate commands, or pass --scene False to read all as plain images"
        )
    if not asked and importlib.util.find_spec("rasterio") is None and not _needs_rasterio(found):
        logger.warning(
            "georeferenced files are read as plain images, because rasterio is not installed; pip "
            "install 'segformer[geo]' for label maps that keep their place"
        )
        return []
    names = [_name(source) for source in found]
    for name, count in Counter(name.casefold() for name in names).items():
        if count > 1:
            raise ValueError(
                f"{count} scenes would be written to {name}.tif; predict them into different "
                "folders"
            )
    return [SceneJob(source, name) for source, name in zip(found, names, strict=True)]


def asks_for_scenes(options: Any, words: Sequence[str]) -> bool:
    """Whether the command has an option that only scenes have."""
    own = (options.scenes, options.scene_polygons, options.scene_item)
    return options.scenes.scene is True or any(_is_any_given(config, words) for config in own)


def predict_scenes(options: Any, jobs: Sequence[SceneJob]) -> int:
    """Predict scenes one after the other; returns the exit code."""
    from segformer.cli.models import open_model
    from segformer.cli.predict_scene_cluster import lost_workers, scene_workers
    from segformer.files import check_writable
    from segformer.prediction.predictor import Predictor
    from segformer.raster.vector_outputs import SceneWriter

    model = open_model(options.model)
    if model.kind == "classifier":
        raise ValueError("the model is a classifier, which gives no label map of a scene")
    out: Path = options.out
    if options.skip_existing and options.overwrite:
        raise ValueError("give overwrite or skip_existing, not both")
    check_writable(out)
    summary = _Summary(out, overwrite=options.overwrite)
    predictor = Predictor(model.load(), options.config)
    writer = SceneWriter(
        out, options.scene_polygons, options.scene_item, overwrite=options.overwrite
    )
    errors = []
    with scene_workers(options, predictor) as workers:
        for job in jobs:
            exists = options.skip_existing and (out / f"{job.name}.tif").exists()
            if exists and writer.is_complete(job.name):
                summary.skip()
                continue
            try:
                _predict_one(options, predictor, workers, writer, job, summary, exists=exists)
            except (ValueError, OSError) as error:
                errors.append(str(error))
                summary.fail(job, str(error))
    summary.write(finished=True)
    return print_outcome(
        f"scenes segmented into {out}",
        done=len(jobs) - len(errors),
        earlier=summary.skipped,
        failed=len(errors),
        errors=errors,
        note=lost_workers(workers),
    )


def _predict_one(
    options: Any,
    predictor: Predictor,
    workers: SceneWorkers | None,
    writer: SceneWriter,
    job: SceneJob,
    summary: _Summary,
    *,
    exists: bool,
) -> None:
    """Predict a scene unless its label map exists, and make what is made of the label map."""
    from segformer.cli.predict_scene_cluster import blocks_on
    from segformer.image.scene import open_scene

    config = options.scenes
    with open_scene(
        job.source,
        bands=config.bands or None,
        resolution=config.resolution,
        area=config.area,
        where=config.where,
        nodata=predictor.model.preprocessing.nodata,
        scaled=config.apply_scale,
    ) as scene:
        if scene.crs is None:
            logger.warning(f"{scene.name}: has no CRS, and neither will its label map")
        model = _model_facts(options, predictor, scene)
        writer.check(job.name, scene.crs, model, skip_existing=options.skip_existing)
        if not exists:
            compute = blocks_on(workers, options, predictor, scene, job)
            summary.add(job, _predict_label_map(options, predictor, scene, job, compute))
        confidence = options.out / f"{job.name}_confidence.tif"
        outputs = writer.write(
            options.out / f"{job.name}.tif",
            confidence if options.config.confidence and confidence.exists() else None,
            model,
            source=job.source,
            files=scene.files,
            skip_existing=options.skip_existing,
        )
        summary.add_outputs(job, outputs)
    if exists:
        summary.skip()


def _predict_label_map(
    options: Any,
    predictor: Predictor,
    scene: Scene,
    job: SceneJob,
    compute: ComputeBlocks | None,
) -> ScenePrediction:
    from segformer.progress import ProgressBar
    from segformer.raster.predicting import predict_scene

    config = options.scenes
    megapixels = max(1, round(scene.height * scene.width / 1e6))
    with ProgressBar(f"predicting {job.name}", megapixels, "megapixels") as bar:

        def show(done: int, total: int) -> None:
            bar.advance(round(megapixels * done / total) - bar.done)

        result = predict_scene(
            predictor,
            scene,
            options.out,
            name=job.name,
            max_memory=config.memory_limit,
            overlap=config.overlap,
            own_statistics=config.statistics == "scene",
            overwrite=options.overwrite,
            on_pixels=show,
            compute=compute,
        )
    best = list(result.class_fractions.items())[:5]
    print(printable(f"{job.name}: {', '.join(f'{n} {v:.0%}' for n, v in best)}"))
    return result


def _model_facts(options: Any, predictor: Predictor, scene: Scene) -> ModelFacts:
    """What the STAC item of a scene says of the model."""
    from segformer.checkpoints.opening import ASSETS, SHIPPED
    from segformer.prediction.runtimes.exported import ExportedModel
    from segformer.raster.job import scene_tiling
    from segformer.raster.stac import ModelFacts

    model = predictor.model
    framework, version, parameters = "PyTorch", None, None
    if isinstance(model, ExportedModel):
        framework = "ONNX" if model.graph.path.suffix == ".onnx" else "OpenVINO"
    else:
        import torch

        version = str(torch.__version__)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    tiling = scene_tiling(predictor, scene, None, options.scenes.overlap)
    return ModelFacts(
        str(ASSETS / SHIPPED) if options.model is None else options.model,
        model.classes,
        model.preprocessing,
        tuple(scene.bands),
        tiling.window,
        framework,
        version,
        parameters,
        {"overlap": tiling.overlap, "flip": options.config.flip},
    )


class _Summary:
    """``summary.json`` of a folder, which keeps what earlier commands wrote about other scenes."""

    def __init__(self, out: Path, *, overwrite: bool):
        from segformer.files import check_replaceable
        from segformer.prediction.outputs import SUMMARY, read_summary

        self.path, self.skipped = out / SUMMARY, 0
        previous = read_summary(self.path)
        if not previous:
            check_replaceable([self.path], overwrite=overwrite)
        self.rows: dict[str, dict[str, Any]] = {
            row["image"]: row for row in previous.get("images", [])
        }
        self.failed: list[dict[str, str]] = []
        self.write(finished=False)

    def add(self, job: SceneJob, result: ScenePrediction) -> None:
        image = _title(job.source)
        self.rows[image] = {
            "image": image,
            "height": result.height,
            "width": result.width,
            "crs": result.crs,
            "files": [file.name for file in result.files],
            "class_fractions": {
                name: round(value, 6) for name, value in result.class_fractions.items()
            },
            "nodata_fraction": round(result.nodata_fraction, 6),
        }
        self.write(finished=False)

    def add_outputs(self, job: SceneJob, outputs: SceneOutputs) -> None:
        """Note what was made of the label map of a scene that was added."""
        row = self.rows.setdefault(_title(job.source), {"image": _title(job.source)})
        names = [*row.get("files", []), *(file.name for file in outputs.files)]
        row["files"] = list(dict.fromkeys(names))
        areas = outputs.areas_m2()
        if areas is not None:
            row["class_areas_m2"] = {name: round(value, 3) for name, value in areas.items()}
        self.write(finished=False)

    def skip(self) -> None:
        self.skipped += 1

    def fail(self, job: SceneJob, error: str) -> None:
        self.failed.append({"image": _title(job.source), "error": error})

    def write(self, *, finished: bool) -> None:
        from segformer.files import write_json
        from segformer.prediction.outputs import Plan

        plan = Plan(self.path.parent, {}, {}, {})
        content = {"images": list(self.rows.values()), "failed": self.failed}
        write_json(self.path, plan.summary(finished, **content))


def _is_any_given(config: Any, words: Sequence[str]) -> bool:
    """Whether an option that only scenes have is on the command line."""
    names = {f"--{field.name.replace('_', '-')}" for field in fields(config)} - {"--scene"}
    names |= {name.replace("--", "--no-") for name in names}
    return any(word.partition("=")[0].replace("_", "-") in names for word in words)


def _named_files(options: Any) -> Iterator[SceneSource]:
    """The files that the command names, those in folders included."""
    from segformer.prediction.listing import find_channel_files, list_images

    if options.channel_files:
        for job in find_channel_files(options.images, options.channel_files):
            yield job.channel_files or job.image
        return
    for word in options.images:
        if _is_address(word) or Path(word).suffix.lower() in _SCENE_SUFFIXES:
            yield word
        else:
            yield from (job.image for job in list_images([word], out=options.out))


def _is_scene(source: SceneSource) -> bool:
    if not isinstance(source, (str, Path)):
        return all(_is_scene(file) for file in source)
    if _is_address(str(source)) or Path(source).suffix.lower() in _SCENE_SUFFIXES:
        return True
    return Path(source).suffix.lower() in _TIFF_SUFFIXES and _is_georeferenced(Path(source))


def _is_georeferenced(path: Path) -> bool:
    """Whether a TIFF says where on the earth it lies."""
    import tifffile

    from segformer.image.stored import quiet_tifffile

    try:
        with quiet_tifffile(), tifffile.TiffFile(path) as file:
            tags: Any = file.pages.first
            return any(tag in tags.tags for tag in _GEOREFERENCE)
    except Exception:  # tifffile raises many types on broken files, which are reported later
        return False


def _needs_rasterio(sources: Sequence[SceneSource]) -> bool:
    """Whether one of the sources can be read in no other way."""
    return any(
        isinstance(source, str)
        and (_is_address(source) or Path(source).suffix.lower() in _SCENE_SUFFIXES)
        for source in sources
    )


def _is_address(word: str) -> bool:
    return "://" in word or word.startswith("/vsi")


def _title(source: SceneSource) -> str:
    return str(source) if isinstance(source, (str, Path)) else str(source[0])


def _name(source: SceneSource) -> str:
    text = _title(source)
    return Path(urlsplit(text).path if _is_address(text) else text).stem
