"""SegFormer semantic segmentation: pretrained models, training, evaluation and prediction.

    >>> import segformer
    >>> prediction = segformer.Predictor()("photo.jpg")
    >>> prediction.label_map  # (H, W) class ids

A public name is imported when it is first used, so ``import segformer`` takes a few milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segformer.classes import ClassSet as ClassSet
    from segformer.config import SegFormerConfig as SegFormerConfig
    from segformer.evaluation.metrics import Scores as Scores
    from segformer.evaluation.scoring import evaluate as evaluate
    from segformer.image import Preprocessing as Preprocessing
    from segformer.model.encoder import MixTransformer as MixTransformer
    from segformer.model.segformer import SegFormer as SegFormer
    from segformer.model.segformer import SegFormerClassifier as SegFormerClassifier
    from segformer.prediction.classifier import ClassPredictor as ClassPredictor
    from segformer.prediction.config import PredictConfig as PredictConfig
    from segformer.prediction.prediction import Prediction as Prediction
    from segformer.prediction.predictor import Predictor as Predictor
    from segformer.prediction.video.predict import predict_video as predict_video
    from segformer.serving.client import Client as Client
    from segformer.training.config import ClassificationTrainConfig as ClassificationTrainConfig
    from segformer.training.config import SegmentationTrainConfig as SegmentationTrainConfig
    from segformer.training.run import resume as resume
    from segformer.training.run import train as train

_MODULES = {
    "ClassificationTrainConfig": "segformer.training.config",
    "ClassPredictor": "segformer.prediction.classifier",
    "ClassSet": "segformer.classes",
    "Client": "segformer.serving.client",
    "MixTransformer": "segformer.model.encoder",
    "PredictConfig": "segformer.prediction.config",
    "Prediction": "segformer.prediction.prediction",
    "Predictor": "segformer.prediction.predictor",
    "Preprocessing": "segformer.image",
    "Scores": "segformer.evaluation.metrics",
    "SegFormer": "segformer.model.segformer",
    "SegFormerClassifier": "segformer.model.segformer",
    "SegFormerConfig": "segformer.config",
    "SegmentationTrainConfig": "segformer.training.config",
    "evaluate": "segformer.evaluation.scoring",
    "predict_video": "segformer.prediction.video.predict",
    "resume": "segformer.training.run",
    "train": "segformer.training.run",
}

__all__ = [*_MODULES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'segformer' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
