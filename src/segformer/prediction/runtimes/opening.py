"""What a predictor is given, a model, a name or an exported folder -> what runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segformer.prediction.config import PredictConfig
from segformer.prediction.runtimes.base import Runtime
from segformer.prediction.runtimes.exported import (
    ExportedModel,
    is_exported,
    open_exported,
    open_graph_runtime,
)

if TYPE_CHECKING:
    from segformer.model.segformer import SegFormer


def open_for_prediction(
    model: SegFormer | str | Path | None, config: PredictConfig
) -> tuple[SegFormer | ExportedModel, Runtime]:
    """A model, loaded if it is not, and what runs it."""
    if is_exported(model):
        assert isinstance(model, (str, Path))
        if config.compile:
            raise ValueError("compile is an option of runtime torch; this model is exported")
        exported = open_exported(model)
        if exported.kind != "segmenter":
            raise ValueError(f"{model}: is a classifier; open it with ClassPredictor")
        return exported, open_graph_runtime(
            exported, config.runtime, config.device, config.precision
        )
    from segformer.checkpoints.opening import SHIPPED
    from segformer.model.segformer import SegFormer
    from segformer.prediction.runtimes.choice import open_runtime

    if not isinstance(model, SegFormer):
        model = SegFormer.from_pretrained(SHIPPED if model is None else model)
    return model, open_runtime(
        model, config.runtime or "torch", config.device, config.precision, compile=config.compile
    )
