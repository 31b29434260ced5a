"""The models of a service and their names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from segformer.checkpoints.opening import SHIPPED
from segformer.prediction.config import PredictConfig
from segformer.prediction.predictor import Predictor
from segformer.prediction.staged import StagedPredictor

logger = logging.getLogger(__name__)

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
    """Load models, the first of which is the default, and run each once.

    This is done in a thread that ends. OpenMP keeps a pool of threads for each thread that has run
    PyTorch, and with more of them than CPUs they wait passively: a forward pass in the thread that
    runs the models then takes a third longer (measured with two CPUs).

    Raises:
        ValueError: Two models have the same name, or one cannot be loaded.
    """

    def load() -> dict[str, ServedModel]:
        loaded = {}
        for name, model in name_models(models).items():
            predictor = Predictor(model, config)
            _warm_up(predictor)
            loaded[name] = serve_model(name, predictor, model)
            logger.info("model %s is ready", name)
        return loaded

    with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
        return pool.submit(load).result()


def _warm_up(predictor: Predictor) -> None:
    """Run an image, so that what is prepared at the first one is done."""
    window = predictor.config.window
    height, width = (480, 640) if window is None else (window, window)
    predictor(np.zeros((height, width, predictor.model.config.in_channels), np.uint8))


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
