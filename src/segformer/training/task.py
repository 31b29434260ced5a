"""What a training is of: the part of it that differs between segmentation and classification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from segformer.config import SegFormerConfig
from segformer.data.loader import ClassCrops, DrawSampler, TrainingCrops, crop_loader
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.training.config import TrainConfig

Model: TypeAlias = SegFormer | SegFormerClassifier


@dataclass(frozen=True)
class Outcome:
    """What a validation found.

    Attributes:
        row: Scores from 0 to 1 by their columns in ``metrics.csv``; the first decides which model
            is the best.
        words: The same in a sentence.
        table: The same in full, for a terminal.
    """

    row: dict[str, float]
    words: str
    table: Table

    @property
    def score(self) -> float:
        """The score that decides."""
        return next(iter(self.row.values()))


class Task(ABC):
    """A data set and a recipe, and what they mean together.

    Attributes:
        score: What the score that decides is called.
        config: The recipe, with every default filled in.
        images: Training images.
        validates: Whether there is a validation split.
    """

    score: str
    config: TrainConfig
    images: int
    validates: bool

    @abstractmethod
    def build_model(self) -> Model:
        """The model at step 0."""

    @abstractmethod
    def restore_model(self, config: SegFormerConfig) -> Model:
        """A model for the weights of a resume checkpoint."""

    @abstractmethod
    def crops(self, model: Model) -> TrainingCrops | ClassCrops:
        """The training images, augmented."""

    @abstractmethod
    def prepare(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to a batch on its device before the model sees it."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, ()."""

    @abstractmethod
    def validate(self, model: Model, device: str) -> Outcome:
        """Score a model on the validation split."""

    @abstractmethod
    def report(self, best: Path, folder: Path, device: str, notes: dict[str, Any]) -> Outcome:
        """Score the best model once more, and write its report and images into the run folder."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the data set has now."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of the task beside its recipe."""
        return {"classes": list(self.classes)}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise a ValueError if the data set has other classes than when the run began."""
        if tuple(state["classes"]) != self.classes:
            raise ValueError(
                "the data set has other classes than when the run began: "
                f"{', '.join(self.classes[:5])}; then {', '.join(state['classes'][:5])}"
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
        """Batches of the training from a step on."""
        crops = self.crops(model)
        sampler = DrawSampler(
            len(crops),
            self.config.batch_size,
            self.config.accumulate_grad_batches,
            start_step,
            total_steps,
            self.config.seed,
            rank,
            world,
        )
        return crop_loader(crops, sampler, num_workers)
