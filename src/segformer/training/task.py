"""What a task is for the training loop: the part that segmentation and classification differ in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from segformer.config import SegFormerConfig
from segformer.data.loader import ClassCrops, DrawSampler, TrainingCrops, crop_loader
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.training.config import TrainConfig
from segformer.training.processes import Processes
from segformer.training.samples import Files, describe_changes, pack_samples

Model: TypeAlias = SegFormer | SegFormerClassifier


@dataclass(frozen=True)
class Outcome:
    """Result of a validation.

    Attributes:
        row: Scores from 0 to 1, and the loss, by their columns in ``metrics.csv``; the first
            decides which model is the best.
        words: The main scores as text.
        table: All scores, for a terminal.
    """

    row: dict[str, float]
    words: str
    table: Table

    @property
    def score(self) -> float:
        """The score that decides which model is the best."""
        return next(iter(self.row.values()))


class Task(ABC):
    """A data set and a configuration.

    Attributes:
        score: Name of the score that decides which model is the best.
        config: The configuration, with all defaults filled in.
        images: Number of training images.
        validates: Whether there is a validation split.
        factors: (N,) how often to draw each training image, relative to each other; None: all
            equally often.
    """

    score: str
    images: int
    validates: bool
    factors: NDArray[np.float64] | None = None
    _config: Any

    def with_config(self, config: TrainConfig) -> Self:
        """The same data set with another configuration."""
        other = copy(self)
        other._config = config
        return other

    @property
    @abstractmethod
    def config(self) -> TrainConfig:
        """The configuration, with all defaults filled in."""

    @abstractmethod
    def build_model(self) -> Model:
        """The model at step 0."""

    @abstractmethod
    def restore_model(self, config: SegFormerConfig) -> Model:
        """A model of an architecture, whose weights are loaded later."""

    @abstractmethod
    def crops(self, model: Model, processes: int) -> TrainingCrops | ClassCrops:
        """The training images, augmented, for one of this many processes."""

    @abstractmethod
    def prepare(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Change a batch on its device before the model sees it."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, ()."""

    @abstractmethod
    def validate(self, model: Model, processes: Processes) -> Outcome:
        """Score a model on the validation split, divided among the processes.

        All processes must call this together; the result, or the error, is the same in all.
        """

    @abstractmethod
    def report(
        self, best: Path, folder: Path, processes: Processes, notes: dict[str, Any]
    ) -> Outcome:
        """Score the best model and write its report and images into the run folder.

        As `validate`; process 0 writes.
        """

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the data set."""

    @property
    @abstractmethod
    def files(self) -> Files:
        """Names and files of the samples, by split."""

    @cached_property
    def samples(self) -> Tensor:
        """The list of samples as the resume checkpoint holds it."""
        return pack_samples(self.files)

    def state(self) -> dict[str, Any]:
        """What the resume checkpoint holds of the task."""
        return {"classes": list(self.classes), "samples": self.samples}

    def check_state(self, state: dict[str, Any]) -> None:
        """Compare the data set with that of a resume checkpoint.

        Raises:
            ValueError: The data set has changed; the message says how.
        """
        if tuple(state["classes"]) != self.classes:
            raise ValueError(
                "the data set has other classes than when the run began: "
                f"{', '.join(self.classes[:5])}; then {', '.join(state['classes'][:5])}"
            )
        changes = describe_changes(state["samples"], self.samples)
        if changes is not None:
            raise ValueError(
                f"the data set has changed since the run began: {changes}. Restore it, or start a "
                "new run with --pretrained RUN/last"
            )

    def loader(
        self,
        model: Model,
        start_step: int,
        total_steps: int,
        num_workers: int,
        rank: int,
        world: int,
    ) -> DataLoader[Any]:
        """Batches of the training from a step on, for one of ``world`` processes."""
        assert isinstance(self.config.batch_size, int)
        crops = self.crops(model, world)
        sampler = DrawSampler(
            len(crops),
            self.config.batch_size,
            self.config.accumulate_grad_batches,
            start_step,
            total_steps,
            self.config.seed,
            rank,
            world,
            self.factors,
        )
        return crop_loader(crops, sampler, num_workers)
