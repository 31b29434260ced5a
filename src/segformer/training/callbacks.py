"""The user's own code that is called during a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segformer.training.task import Model


@dataclass
class Progress:
    """What a callback sees of the training.

    Attributes:
        folder: Folder of the run.
        model: The model in training, on its device. Validation and files use its moving average,
            unless ``ema_decay`` is 0.
        total_steps: Number of optimizer steps of the whole training.
        step: Optimizer steps done.
        epoch: Passes over the training images done.
        loss: Loss of the last step.
        lr: Learning rate of the encoder in the last step.
        scores: Scores of the last validation, by their columns in metrics.csv.
        stopping: Whether a callback has asked the training to end.
    """

    folder: Path
    model: Model
    total_steps: int
    step: int = 0
    epoch: float = 0.0
    loss: float = float("nan")
    lr: float = float("nan")
    scores: Mapping[str, float] = field(default_factory=dict)
    stopping: bool = False

    def stop(self) -> None:
        """End the training after this step: it is validated, and the report is written."""
        self.stopping = True


class Callback:
    """Methods that are called during a training, in process 0 only. All do nothing here.

    An exception ends the training; the last checkpoint is kept.

    Example:
        >>> class StopAtGoodScore(segformer.training.callbacks.Callback):
        ...     def on_validation(self, progress):
        ...         if progress.scores["val_miou"] > 0.8:
        ...             progress.stop()
        >>> segformer.train("water", callbacks=[StopAtGoodScore()])
    """

    def on_start(self, progress: Progress) -> None:
        """Called before the first step of a new or resumed run."""

    def on_step(self, progress: Progress) -> None:
        """Called after each optimizer step."""

    def on_validation(self, progress: Progress) -> None:
        """Called after each validation that gave scores."""

    def on_end(self, progress: Progress) -> None:
        """Called after the last step of a run that was not interrupted, before the report."""


@dataclass
class Callbacks:
    """All callbacks of a training; those of other processes than the first are empty."""

    callbacks: Sequence[Callback]
    progress: Progress

    def start(self) -> None:
        """Call ``on_start`` of each."""
        for callback in self.callbacks:
            callback.on_start(self.progress)

    def step(self, step: int, epoch: float, loss: float, lr: float) -> None:
        """Call ``on_step`` of each."""
        progress = self.progress
        progress.step, progress.epoch, progress.loss, progress.lr = step, epoch, loss, lr
        for callback in self.callbacks:
            callback.on_step(progress)

    def validation(self, scores: Mapping[str, float]) -> None:
        """Call ``on_validation`` of each."""
        self.progress.scores = scores
        for callback in self.callbacks:
            callback.on_validation(self.progress)

    def end(self) -> None:
        """Call ``on_end`` of each."""
        for callback in self.callbacks:
            callback.on_end(self.progress)
