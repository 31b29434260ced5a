"""Where the numbers of a run go, other than metrics.csv: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from segformer.files import write_json
from segformer.training.config import TrainConfig

logger = logging.getLogger(__name__)

TRACKING_FILE = "tracking.json"
"""File in the run folder with the ids under which trackers know the run."""


class Logger(Protocol):
    """Takes the numbers of a run. One that raises is left out for the rest of the training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of an optimizer step, by the columns of metrics.csv."""

    def close(self, finished: bool) -> None:
        """Take leave of the run, which has finished, or was interrupted or failed."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder."""

    def __init__(self, folder: Path, config: TrainConfig, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # Hides what was logged of the steps that a resumed run does again
        purge_step = step + 1 if step else None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, offline where ``WANDB_MODE`` says so.

    The project is that of ``WANDB_PROJECT``, else "segformer". If a run is active, it is used and
    stays open.
    """

    def __init__(self, folder: Path, config: TrainConfig, step: int):
        wandb: Any = import_module("wandb")
        self._run = wandb.run
        self._own = self._run is None
        if self._own:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "segformer"),
                name=folder.resolve().name,
                id=_tracking_id(folder, "wandb", lambda: uuid4().hex[:12]),
                resume="allow",
                dir=str(folder),
                config=config.as_dict(),
            )
        # A resumed run repeats steps, and the service takes its own step numbers in order only
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers together with the step."""
        self._run.log({"step": step, **values})

    def close(self, finished: bool) -> None:
        """End the run."""
        if self._own:
            self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow, where ``MLFLOW_TRACKING_URI`` says.

    The experiment is that of ``MLFLOW_EXPERIMENT_NAME``, else MLflow's default. If a run is active,
    it is used and stays open.
    """

    def __init__(self, folder: Path, config: TrainConfig, step: int):
        self._mlflow: Any = import_module("mlflow")
        self._own = self._mlflow.active_run() is None
        if not self._own:
            return
        known = _tracking_ids(folder).get("mlflow")
        run = self._mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        _tracking_id(folder, "mlflow", lambda: str(run.info.run_id))
        if known is None:
            self._mlflow.log_params(config.as_dict())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers at the step."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, finished: bool) -> None:
        """End the run."""
        if self._own:
            self._mlflow.end_run("FINISHED" if finished else "KILLED")


_KINDS: dict[str, Callable[[Path, TrainConfig, int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Loggers:
    """The loggers of a run.

    Args:
        loggers: Those that are open.
    """

    def __init__(self, loggers: Sequence[Logger] = ()):
        self._loggers = list(loggers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass numbers to each logger."""
        self._each(lambda one: one.log(step, values))

    def close(self, finished: bool) -> None:
        """Close each logger."""
        self._each(lambda one: one.close(finished))
        self._loggers = []

    def _each(self, work: Callable[[Logger], None]) -> None:
        """A logger that fails, as without a network, does not end the training."""
        for one in list(self._loggers):
            try:
                work(one)
            except Exception as error:
                logger.warning("%s takes no more numbers: %s", type(one).__name__, error)
                self._loggers.remove(one)


def open_loggers(config: TrainConfig, folder: Path, step: int) -> Loggers:
    """Open the loggers that the configuration names; by default TensorBoard if it is installed.

    Args:
        config: The configuration of the run.
        folder: The run folder.
        step: Steps that a resumed run has done, else 0.

    Raises:
        ValueError: One that is named is not installed, or cannot be opened.
    """
    opened: list[Logger] = []
    for name in ("tensorboard",) if config.loggers is None else config.loggers:
        if name == "csv":
            continue
        try:
            opened.append(_KINDS[name](folder, config, step))
        except ModuleNotFoundError:
            if config.loggers is None:
                logger.info("no TensorBoard logs: pip install 'segformer[tensorboard]' brings it")
                continue
            raise ValueError(
                f"loggers: {name} is not installed; pip install 'segformer[{name}]' brings it"
            ) from None
        except Exception as error:
            raise ValueError(f"loggers: {name} cannot be opened: {error}") from error
    return Loggers(opened)


def _tracking_ids(folder: Path) -> dict[str, str]:
    file = folder / TRACKING_FILE
    ids: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return ids


def _tracking_id(folder: Path, tracker: str, make: Callable[[], str]) -> str:
    """The id of the run at a tracker, the same when the run is resumed."""
    ids = _tracking_ids(folder)
    if tracker not in ids:
        ids[tracker] = make()
        write_json(folder / TRACKING_FILE, ids)
    return ids[tracker]
