"""Validation divided among the processes: each takes a part of the images.

Counts are integers, so their sum does not depend on the division.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, Unpack

from torch import Tensor

from segformer.data.class_folders import ClassFolders
from segformer.data.dataset import Dataset
from segformer.evaluation.classify import ClassScores, evaluate_classes
from segformer.evaluation.details import Details
from segformer.evaluation.evaluate import Failure, evaluate
from segformer.evaluation.images import ImageHooks, none_evaluated
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.prediction.classifier import ClassPredictor
from segformer.prediction.predictor import Predictor
from segformer.progress import ProgressBar
from segformer.training.processes import Processes
from segformer.training.validation_loss import LossMeter

Split = TypeVar("Split", Dataset, ClassFolders)


class Mergeable(Protocol):
    """What is measured over images, in parts."""

    def merge(self, other: Any) -> None:
        """Add what was measured over other images."""


Measured = TypeVar("Measured", bound=Mergeable)


@dataclass(frozen=True)
class Measurement(Generic[Measured]):
    """What all processes have measured over the validation images.

    Attributes:
        value: The sum of what each has measured.
        failed: Images that could not be read, in the order of the data set.
        loss: Mean loss of the others.
    """

    value: Measured
    failed: list[Failure]
    loss: float


@dataclass
class DetailedMatrix:
    """The confusion matrix of an evaluation, and what else its report shows."""

    matrix: ConfusionMatrix
    details: Details

    def merge(self, other: DetailedMatrix) -> None:
        """Add the evaluation of other images."""
        self.matrix.merge(other.matrix)
        self.details.merge(other.details)


def evaluate_in_detail(
    dataset: Dataset, predictor: Predictor, **hooks: Unpack[ImageHooks]
) -> DetailedMatrix:
    """As `segformer.evaluation.evaluate.evaluate`, with what a report shows."""
    details = Details.of(predictor)
    return DetailedMatrix(evaluate(dataset, predictor, collector=details, **hooks), details)


def measure_together(
    measure: Callable[..., Measured],
    dataset: Dataset,
    predictor: Callable[[], Predictor],
    processes: Processes,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Measurement[Measured]:
    """Measure something over the images of all processes, which must call this together.

    Args:
        measure: Such as `segformer.evaluation.evaluate.evaluate`.
        dataset: The validation split, the same in all processes.
        predictor: Makes the predictor, in each process.
        processes: The processes.
        loss: See `LossMeter`.

    Returns:
        What was measured over all images, the same in all processes.

    Raises:
        ClassesDiffer: The classes cannot be matched.
        DatasetError: None of the images could be evaluated.
    """
    own = _part_of(dataset, processes)

    def work() -> tuple[Measured, list[Failure], list[float]]:
        failed: list[Failure] = []
        used, meter = predictor(), LossMeter(loss)
        used.on_logits = meter.keep
        with ProgressBar("validating", len(own), "images", scale=processes.count) as bar:
            measured = measure(
                own,
                used,
                on_image=bar.advance,
                on_error=lambda source, error: failed.append(Failure(str(source), str(error))),
                on_prediction=meter.add,
                partial=True,
            )
        used.on_logits = None
        return measured, failed, meter.losses

    parts = processes.collect(work)
    total, _, _ = parts[0]
    for part, _, _ in parts[1:]:
        total.merge(part)
    failed = _in_order([f for _, part, _ in parts for f in part], [str(s.image) for s in dataset])
    if failed and len(failed) == len(dataset):
        raise none_evaluated(dataset, failed[0])
    losses = [value for _, _, part in parts for value in part]
    # The sum of fsum does not depend on the order, so not on the number of processes
    return Measurement(total, failed, math.fsum(losses) / max(len(losses), 1))


def evaluate_classes_together(
    dataset: ClassFolders, predictor: Callable[[], ClassPredictor], processes: Processes
) -> ClassScores:
    """As `segformer.evaluation.classify.evaluate_classes`; see `measure_together`."""
    own = _part_of(dataset, processes)

    def work() -> ClassScores:
        with ProgressBar("validating", len(own), "images", scale=processes.count) as bar:
            return evaluate_classes(own, predictor(), on_image=bar.advance, partial=True)

    total, *others = processes.collect(work)
    for part in others:
        total.merge(part)
    total.failed = _in_order(total.failed, [str(path) for path, _ in dataset])
    if not total.images:
        raise none_evaluated(dataset, total.failed[0])
    return total


def _part_of(dataset: Split, processes: Processes) -> Split:
    """Every n-th sample, so that all processes have equal work where sizes are sorted."""
    return replace(dataset, samples=dataset.samples[processes.rank :: processes.count])


def _in_order(failed: Sequence[Failure], images: Sequence[str]) -> list[Failure]:
    place = {image: i for i, image in enumerate(images)}
    return sorted(failed, key=lambda failure: place[failure.image])
