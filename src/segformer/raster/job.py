"""What a prediction of a scene is: its windows, and by what an unfinished one is recognized."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from segformer.image import Preprocessing
from segformer.image.scene import Scene
from segformer.image.scene_bands import is_remote
from segformer.prediction.predictor import Predictor
from segformer.prediction.runtimes.exported import ExportedModel
from segformer.raster.tiling import TOKEN, Tiling

logger = logging.getLogger(__name__)

_USUAL_WINDOW = 512
_WINDOW_RANGE = (64, 1024)
"""Pixels of the windows of models that do not say at which size they were trained."""


def check_predictor(predictor: Predictor) -> None:
    """Refuse models and options that cannot be used for scenes.

    Raises:
        ValueError: The message names the option.
    """
    config = predictor.config
    if predictor.model.config.multilabel:
        raise ValueError(
            "the model's classes may overlap, which the label map of a scene cannot show; scenes "
            "need a model of exclusive classes"
        )
    if config.size is not None or config.short_side is not None:
        raise ValueError(
            "scenes are run in windows at their own resolution; --size and --short-side cannot be "
            "used with them, --resolution can"
        )
    if config.scales != (1.0,):
        raise ValueError("--scales cannot be used with scenes; --resolution can")


def scene_tiling(
    predictor: Predictor, scene: Scene, window: int | None, overlap: int | None
) -> Tiling:
    """The windows over the whole file of a scene.

    Raises:
        ValueError: The window or the overlap is not possible.
    """
    config = predictor.config
    grid = scene.full_grid
    if window is None and config.window is not None and config.stride is not None:
        window = config.window
        if overlap is None:
            overlap = config.window - config.stride
    if window is not None and window > max(grid.height, grid.width):
        logger.warning(
            f"{scene.name}: a window of {window} pixels is larger than the scene of "
            f"{grid.width} x {grid.height} pixels, which is run as one window"
        )
    window = window or default_window(predictor.model.preprocessing)
    overlap = window // 4 // TOKEN * TOKEN if overlap is None else overlap
    return Tiling(grid.height, grid.width, window, overlap)


def default_window(preprocessing: Preprocessing) -> int:
    """The size at which a model was trained, as the side of a window."""
    size = preprocessing.size or _USUAL_WINDOW
    side = max(size) if isinstance(size, tuple) else size
    least, most = _WINDOW_RANGE
    return max(least, min(most, -(-side // 32) * 32))


def describe_job(
    predictor: Predictor, scene: Scene, tiling: Tiling, *, own_statistics: bool
) -> dict[str, Any]:
    """All on which the result depends; memory, batch size and device are not among it."""
    grid, config = scene.full_grid, predictor.config
    area = None if scene.area is None else hashlib.sha256(scene.area.geometry.wkb).hexdigest()
    return {
        "scene": scene.name,
        "files": [_file_state(file) for file in scene.files],
        "bands": list(scene.bands),
        "size": [grid.width, grid.height],
        "transform": list(grid.transform)[:6],
        "crs": None if grid.crs is None else grid.crs.to_wkt(),
        "part": list(scene.window),
        "area": area,
        "nodata": scene.nodata,
        "scale and offset": scene.scaled and [(fact.scale, fact.offset) for fact in scene.facts],
        "model": model_hash(predictor),
        "window": tiling.window,
        "overlap": tiling.overlap,
        "flip": config.flip,
        "confidence": config.confidence,
        "precision": config.precision,
        "value range": config.value_range,
        "statistics": "scene" if own_statistics else "model",
    }


def model_hash(predictor: Predictor) -> str:
    """A short hash of the weights and of how the model sees images."""
    model = predictor.model
    digest = hashlib.sha256(repr((model.preprocessing, model.classes.names)).encode())
    if isinstance(model, ExportedModel):
        digest.update(model.graph.path.read_bytes())
    else:
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().reshape(-1).numpy())
    return digest.hexdigest()[:16]


def _file_state(file: str) -> list[Any]:
    """A file's name, size and time of change; of one on a server only the name."""
    if is_remote(file) or not Path(file).exists():
        return [file]
    state = Path(file).stat()
    return [file, state.st_size, state.st_mtime_ns]
