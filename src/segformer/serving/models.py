"""The models of a service and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segformer.checkpoints.opening import SHIPPED
from segformer.prediction.config import PredictConfig
from segformer.prediction.predictor import Predictor
from segformer.prediction.staged import StagedPredictor

_RUN_PARTS = ("best", "last")
"""Names of the models in a run folder, which say nothing without the name of the run."""


@dataclass(frozen=True)
class ServedModel:
    """A model and its name in requests.

    Attributes:
        name: Name.
        version: The name, and when the weights were written if they are on this machine: it changes
            when a model is trained again.
        predictor: Model and options.
        staged: The predictor in two stages.
    """

    name: str
    version: str
    predictor: Predictor
    staged: StagedPredictor

    def describe(self) -> dict[str, Any]:
        """What a client needs to know."""
        classes, preprocessing = self.predictor.model.classes, self.predictor.preprocessing
        return {
            "name": self.name,
            "version": self.version,
            "classes": classes.entries(),
            "ignore_index": classes.ignore_index,
            "in_channels": self.predictor.model.config.in_channels,
            "rgb_channels": preprocessing.rgb_channels,
            "expects_8_bit": preprocessing.expects_8_bit,
            "batch_size": self.staged.batch_size,
        }


def serve_model(name: str, predictor: Predictor, source: str = "") -> ServedModel:
    """A predictor under a name; ``source`` is the file or folder that it was loaded from."""
    written = _written(Path(source)) if source else None
    version = name if written is None else f"{name} {written:%Y-%m-%d %H:%M:%S}"
    return ServedModel(name, version, predictor, StagedPredictor(predictor))


def name_models(models: Sequence[str]) -> dict[str, str]:
    """Name -> model, from what a user gives: ``MODEL`` or ``NAME=MODEL``.

    Without a name, a model is called as its file or folder, those in a run folder as the run
    (``runs/parts/best`` is ``parts-best``), and others as they are given (a Hub id).

    Raises:
        ValueError: Two models would have the same name.
    """
    named: dict[str, str] = {}
    for given in models or (SHIPPED,):
        name, separator, model = given.partition("=")
        if not separator or Path(given).exists():
            name, model = _name_of(given), given
        if not name or not model:
            raise ValueError(f"{given!r}: give a model as MODEL or NAME=MODEL")
        if name in named:
            raise ValueError(
                f"two models are called {name!r}: {named[name]} and {model}; give NAME=MODEL"
            )
        named[name] = model
    return named


def load_models(models: Sequence[str], config: PredictConfig) -> dict[str, ServedModel]:
    """Load models, the first of which is the default.

    Raises:
        ValueError: Two models have the same name, or one cannot be loaded.
    """
    return {
        name: serve_model(name, Predictor(model, config), model)
        for name, model in name_models(models).items()
    }


def _written(path: Path) -> datetime | None:
    """When the newest file of a model was written (UTC); None if it is not on this machine."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    times = [file.stat().st_mtime for file in files]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _name_of(model: str) -> str:
    path = Path(model)
    if not path.exists():
        return model
    path = path.resolve()
    name = path.stem if path.is_file() else path.name
    return f"{path.parent.name}-{name}" if name in _RUN_PARTS else name
