"""A scene of any size to a Cloud-Optimized GeoTIFF. Reading, computing and writing overlap."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.files import check_replaceable, check_writable
from segformer.image import UnreadableImage
from segformer.image.scene import Scene
from segformer.image.scene_bands import rasterio
from segformer.image.scene_grid import Window
from segformer.prediction.predictor import Predictor
from segformer.raster.blocks import BlockPredictor
from segformer.raster.computing import BlockFailed, ComputeBlocks, EncodedBlock, compute_blocks
from segformer.raster.config import default_memory
from segformer.raster.geotiff import RasterLayer, class_tags, sidecars, write_cog
from segformer.raster.job import check_predictor, describe_job, scene_tiling
from segformer.raster.journal import Journal, missing_blocks
from segformer.raster.memory import plan_memory
from segformer.raster.pixels import ScenePixels
from segformer.raster.tiling import Block, plan_blocks

logger = logging.getLogger(__name__)

_WAITING_WRITES = 1
"""Blocks that may wait to be written, so that memory stays bounded."""


@dataclass(frozen=True)
class ScenePrediction:
    """The files of a predicted scene.

    Attributes:
        label_map: Cloud-Optimized GeoTIFF of class ids.
        confidence: That of confidences, or None.
        height: Pixels.
        width: Pixels.
        crs: Name or definition of the CRS, or None.
        class_fractions: Fraction of the predicted pixels of each class that occurs, largest first.
        nodata_fraction: Fraction of the pixels at which nothing is predicted.
    """

    label_map: Path
    confidence: Path | None
    height: int
    width: int
    crs: str | None
    class_fractions: dict[str, float]
    nodata_fraction: float

    @property
    def files(self) -> list[Path]:
        """Every file that was written."""
        confidence = [self.confidence] if self.confidence else []
        return [self.label_map, *sidecars(self.label_map), *confidence]


def predict_scene(
    predictor: Predictor,
    scene: Scene,
    out: str | Path,
    *,
    name: str | None = None,
    max_memory: int | None = None,
    window: int | None = None,
    overlap: int | None = None,
    own_statistics: bool = False,
    overwrite: bool = False,
    on_pixels: Callable[[int, int], None] | None = None,
    compute: ComputeBlocks | None = None,
) -> ScenePrediction:
    """Segment a scene of any size, in bounded memory, and write ``NAME.tif``.

    While it is unfinished there is a folder ``NAME.unfinished``, from which the next call with the
    same scene, model and options continues. ``NAME.tif`` appears when it is complete.

    Args:
        predictor: Model and options; of its options ``window``, ``stride``, ``flip``,
            ``confidence``, ``value_range`` and those of the arithmetic count.
        scene: From `segformer.image.scene.open_scene`.
        out: Output folder; created if it does not exist.
        name: Name of the results without suffix. Default: that of the file.
        max_memory: Bytes that the process may take in all; the result does not depend on them.
            Default: a quarter of the machine's memory.
        window: Side in pixels of windows. Default: that of the predictor's options, else the size
            at which the model was trained.
        overlap: Pixels by which windows overlap. Default: a quarter of a window.
        own_statistics: Normalize bands by their own mean and standard deviation.
        overwrite: Replace existing files, and unfinished work with other options.
        on_pixels: Called after each block with the number of pixels done and of all.
        compute: Computes the blocks, for example on other machines. Default: this process does.

    Raises:
        ValueError: Options that are not possible, a model that cannot be used, or a scene that
            does not fit the model.
        OutputExists: A file would be replaced; nothing is written.
        UnreadableImage: The scene cannot be read; what is done is kept.
        BlockFailed: ``compute`` could not compute a block; what is done is kept.
        OSError: A result cannot be written, as when the disk is full; what is done is kept.
    """
    check_predictor(predictor)
    out, name = Path(out), name or Path(scene.name).stem
    tiling = scene_tiling(predictor, scene, window, overlap)
    channels = predictor.model.config.in_channels
    pixels = ScenePixels(
        scene,
        predictor.model.preprocessing,
        channels,
        value_range=predictor.config.value_range,
        own_statistics=own_statistics,
    )
    predict = BlockPredictor(predictor, pixels)
    job = describe_job(predictor, scene, tiling, own_statistics=own_statistics)
    journal = Journal(out / f"{name}.unfinished", job)
    targets = {"label_map": out / f"{name}.tif"}
    if predictor.config.confidence:
        targets["confidence"] = out / f"{name}_confidence.tif"
    if not journal.is_begun:  # else the run was killed while it put its results in place
        written = [*targets.values(), *sidecars(targets["label_map"])]
        check_replaceable(written, overwrite=overwrite)
    check_writable(out)
    journal.begin(overwrite=overwrite)
    plan = plan_memory(predictor, pixels, tiling, max_memory or default_memory())
    blocks = plan_blocks(tiling, scene.window, cells=plan.cells)
    missing = missing_blocks(blocks, journal.done(tiling))
    progress = _Progress(scene.window, missing, on_pixels)
    if progress.done:
        logger.info(f"{scene.name}: {progress.done / progress.total:.0%} of the pixels exist")
    compute = compute or partial(compute_blocks, predict)
    again = f"; what is done is kept in {journal.folder}: run the same command again to continue"
    try:
        with rasterio().Env(GDAL_CACHEMAX=plan.cache):
            if missing:
                _keep(compute(missing), journal, progress)
            counts = _finish(journal, targets, scene, predict, cache=plan.cache)
    except (UnreadableImage, BlockFailed) as error:
        raise type(error)(f"{error}{again}") from None
    except OSError as error:
        raise OSError(f"{out}: {error.strerror or error}{again}") from None
    journal.remove()
    return _describe(counts, targets, scene, predict)


class _Progress:
    """Counts pixels of a scene that are done."""

    def __init__(
        self, scene: Window, missing: Sequence[Block], on_pixels: Callable[[int, int], None] | None
    ):
        self.total = scene.height * scene.width
        self.done = self.total - sum(one.pixels.height * one.pixels.width for one in missing)
        self.on_pixels = on_pixels
        if self.done:
            self._show()

    def count(self, pixels: Window) -> None:
        self.done += pixels.height * pixels.width
        self._show()

    def _show(self) -> None:
        if self.on_pixels is not None:
            self.on_pixels(self.done, self.total)


def _keep(
    finished: Generator[EncodedBlock, None, None], journal: Journal, progress: _Progress
) -> None:
    """Keep blocks on disk while further ones are computed."""
    writing: deque[tuple[Window, Future[None]]] = deque()

    def finish_first() -> None:
        pixels, written = writing.popleft()
        written.result()
        progress.count(pixels)

    with closing(finished), ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        for block in finished:
            writing.append((block.pixels, writer.submit(journal.add, block)))
            while len(writing) > _WAITING_WRITES:
                finish_first()
        while writing:
            finish_first()


def _finish(
    journal: Journal,
    targets: dict[str, Path],
    scene: Scene,
    predict: BlockPredictor,
    *,
    cache: int,
) -> NDArray[np.int64]:
    """Join the blocks, and put the results in place, the label map last.

    Returns:
        Pixels of each class, (K,).
    """
    for unfinished in journal.folder.glob("result*"):
        unfinished.unlink()
    classes = predict.predictor.model.classes
    about = {key: str(journal.job[key]) for key in ("model", "window", "overlap")}
    layers = {
        "label_map": RasterLayer(
            "class",
            predict.dtype.__name__,
            predict.nodata,
            "MODE",
            classes,
            tags={**class_tags(classes), **_tags(about)},
        ),
        "confidence": RasterLayer(
            "confidence", "uint8", 0, "AVERAGE", scale=1 / 255, tags=_tags(about)
        ),
    }
    counts = {}
    for output, target in sorted(targets.items()):
        path = journal.folder / f"result_{output}.tif"
        files = journal.files(confidence=output == "confidence")
        layer = layers[output]
        counts[output] = write_cog(path, files, scene.full_grid, scene.window, layer, cache=cache)
        for sidecar, place in zip(sidecars(path), sidecars(target), strict=True):
            if sidecar.exists():
                _put(sidecar, place)
        _put(path, target)
    return counts["label_map"][: len(classes)]


def _tags(about: dict[str, str]) -> dict[str, str]:
    return {f"SEGFORMER_{key.upper()}": value for key, value in about.items()}


def _put(source: Path, target: Path) -> None:
    """Rename a file that is whole, after it is on the disk."""
    with source.open("r+b") as written:
        os.fsync(written.fileno())
    os.replace(source, target)


def _describe(
    counts: NDArray[np.int64], targets: dict[str, Path], scene: Scene, predict: BlockPredictor
) -> ScenePrediction:
    classes = predict.predictor.model.classes
    total = int(counts.sum())
    order = (int(i) for i in (-counts).argsort(kind="stable") if counts[i])
    crs: Any = scene.crs
    return ScenePrediction(
        targets["label_map"],
        targets.get("confidence"),
        scene.height,
        scene.width,
        None if crs is None else crs.to_string(),
        {classes.names[i]: float(counts[i] / total) for i in order},
        1 - total / (scene.height * scene.width),
    )
