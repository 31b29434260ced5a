"""What a predictor is given, a model, a name or an exported folder -> what runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from segformer.prediction.config import PredictConfig
from segformer.prediction.runtimes.base import Runtime
from segformer.prediction.runtimes.exported import (
    ExportedModel,
    is_exported,
    open_exported,
    open_graph_runtime,
)

if TYPE_CHECKING:
    from segformer.model.segformer import SegFormer, SegFormerClassifier

_OTHER_KIND = {
    "segmenter": "is a segmentation model; open it with Predictor",
    "classifier": "is a classifier; open it with ClassPredictor",
}


@overload
def open_for_prediction(
    model: SegFormer | str | Path | None, config: PredictConfig, kind: Literal["segmenter"]
) -> tuple[SegFormer | ExportedModel, Runtime]: ...
@overload
def open_for_prediction(
    model: SegFormerClassifier | str | Path, config: PredictConfig, kind: Literal["classifier"]
) -> tuple[SegFormerClassifier | ExportedModel, Runtime]: ...
def open_for_prediction(
    model: SegFormer | SegFormerClassifier | str | Path | None,
    config: PredictConfig,
    kind: Literal["segmenter", "classifier"],
) -> tuple[SegFormer | SegFormerClassifier | ExportedModel, Runtime]:
    """A model of a kind, loaded if it is not, and what runs it."""
    if is_exported(model):
        assert isinstance(model, (str, Path))
        if config.compile:
            raise ValueError("compile is an option of runtime torch; this model is exported")
        exported = open_exported(model)
        if exported.kind != kind:
            raise ValueError(f"{model}: {_OTHER_KIND[exported.kind]}")
        return exported, open_graph_runtime(
            exported, config.runtime, config.device, config.precision
        )
    from segformer.checkpoints.opening import SHIPPED
    from segformer.model.segformer import SegFormer, SegFormerClassifier
    from segformer.prediction.runtimes.choice import open_runtime

    if model is None:
        model = SHIPPED
    if isinstance(model, (str, Path)):
        network = SegFormer if kind == "segmenter" else SegFormerClassifier
        model = network.from_pretrained(model)
    return model, open_runtime(
        model, config.runtime or "torch", config.device, config.precision, compile=config.compile
    )
