"""Predictions of a small scene, with and without workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from segformer import Predictor, SegFormer
from segformer.cluster.scene_work import SceneRequest
from segformer.image.scene import Scene
from segformer.prediction.config import PredictConfig
from segformer.raster.computing import ComputeBlocks
from segformer.raster.predicting import predict_scene

CONFIG = PredictConfig(device="cpu", confidence=True)

Workers: TypeAlias = Callable[[SceneRequest, Scene], ComputeBlocks]
"""What computes the blocks of a scene."""


def run(
    path: Path, out: Path, model: SegFormer, workers: Workers | None = None, **options: Any
) -> dict[str, bytes]:
    """The content of the files that a prediction writes."""
    request = SceneRequest(str(path))
    with request.open() as scene:
        compute = None if workers is None else workers(request, scene)
        settings = {"window": 64, "overlap": 16, "max_memory": 10**12, **options}
        predict_scene(Predictor(model, CONFIG), scene, out, compute=compute, **settings)
    return {file.name: file.read_bytes() for file in out.iterdir()}
