"""Score a classifier on images in one folder per class: top-1, top-5, accuracy per class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from segformer.data.class_folders import ClassFolders
from segformer.data.dataset import DatasetError
from segformer.evaluation.confusion_plot import confusion_plot
from segformer.evaluation.evaluate import REPORT_FILES, Failure, add_notes
from segformer.evaluation.matching import MatchClasses
from segformer.evaluation.matching import match_classes as find_match
from segformer.evaluation.metrics import ConfusionMatrix, absent_names, as_json, count_warnings
from segformer.files import write_json
from segformer.image import ImageSource
from segformer.prediction.classifier import ClassPredictor

_WORST = 20
"""Classes that the table shows, those with the lowest accuracy."""


@dataclass
class ClassScores:
    """Scores of a classifier.

    Attributes:
        matrix: Images by true and predicted class.
        in_top5: Images whose true class is among the five most probable.
        failed: Images that could not be read, and why.
        nll: Sum of the negative logarithms of the probabilities of the true classes.
    """

    matrix: ConfusionMatrix
    in_top5: int = 0
    failed: list[Failure] = field(default_factory=list)
    nll: float = 0.0

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.nll / max(self.images, 1)

    @property
    def images(self) -> int:
        """Number of images that were classified."""
        return int(self.matrix.counts.sum())

    @property
    def top1(self) -> float:
        """Fraction of images whose most probable class is the true one."""
        return float(np.trace(self.matrix.counts)) / max(self.images, 1)

    @property
    def top5(self) -> float:
        """Fraction of images whose true class is among the five most probable."""
        return self.in_top5 / max(self.images, 1)

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Names of the classes without an image."""
        return absent_names(self.matrix.classes, self.matrix.counts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the scores, as sentences; usually none."""
        return count_warnings(self.matrix.classes, self.matrix.counts, "image")


def evaluate_classes(
    dataset: ClassFolders,
    predictor: ClassPredictor,
    *,
    match_classes: MatchClasses = "name",
    on_image: Callable[[], None] | None = None,
) -> ClassScores:
    """Classify the images of a data set and compare with their folders.

    Unreadable images are skipped and listed in the result.

    Args:
        dataset: Images and their classes.
        predictor: The classifier.
        match_classes: Match the classes of model and data set by "name" or by "position".
        on_image: Called after each image, classified or skipped.

    Raises:
        ClassesDiffer: The classes cannot be matched.
        DatasetError: None of the images can be read.
    """
    match = find_match(dataset.classes, predictor.model.classes, match_classes)
    scores = ClassScores(ConfusionMatrix(match.classes))

    def fail(source: ImageSource, error: Exception) -> None:
        scores.failed.append(Failure(str(source), str(error)))
        if on_image is not None:
            on_image()

    truths = dict(dataset.samples)
    ids = match.map_ids(np.arange(len(predictor.model.classes)))
    for result in predictor.stream(truths, on_error=fail):
        assert result.source is not None
        truth = truths[result.source]
        best = match.map_ids(np.argsort(-result.probabilities, kind="stable")[:5])
        scores.matrix.update(np.array([truth]), best[:1])
        scores.in_top5 += int(truth in best)
        probability = result.probabilities[ids == truth].sum()
        scores.nll -= math.log(max(float(probability), 1e-12))
        if on_image is not None:
            on_image()
    if not scores.images:
        raise DatasetError(
            f"{dataset.root}: none of the images of split {dataset.split!r} can be read; "
            f"the first error: {scores.failed[0]}"
        )
    return scores


def class_table(scores: ClassScores) -> Table:
    """Accuracy per class in percent, for a terminal; of many classes the twenty worst."""
    title = f"top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%} of {scores.images} images"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("class", "accuracy", "images"):
        table.add_column(column, justify="left" if column == "class" else "right")
    counts = scores.matrix.counts.sum(1)
    accuracy = scores.matrix.scores().accuracy
    ids = np.flatnonzero(counts)
    if len(ids) > _WORST:
        ids = ids[np.argsort(accuracy[ids], kind="stable")]
    for i in ids[:_WORST]:
        table.add_row(scores.matrix.classes.names[i], f"{accuracy[i]:.2%}", str(counts[i]))
    if len(ids) > _WORST:
        table.add_row(f"({len(ids) - _WORST} classes with higher accuracy)", "", "")
    add_notes(table, scores.warnings, scores.absent_classes)
    return table


def write_class_report(
    scores: ClassScores, folder: str | Path, dataset: ClassFolders, protocol: Mapping[str, object]
) -> list[Path]:
    """Write ``report.json`` and ``confusion.png``.

    Args:
        scores: The result of `evaluate_classes`.
        folder: Created if it does not exist. Files of these names in it are replaced.
        dataset: The data set that was evaluated.
        protocol: Further entries for the report: the model, and how it saw the images.

    Returns:
        The files.
    """
    folder = Path(folder)
    names, accuracy = scores.matrix.classes.names, scores.matrix.scores().accuracy
    entries = {
        "dataset": str(dataset.root),
        "split": dataset.split,
        "images": scores.images,
        "failed": [asdict(failure) for failure in scores.failed],
        **protocol,
        "top1": as_json(scores.top1),
        "top5": as_json(scores.top5),
        "warnings": list(scores.warnings),
        "absent_classes": list(scores.absent_classes),
        "classes": {name: as_json(value) for name, value in zip(names, accuracy, strict=True)},
    }
    report, plot = (folder / name for name in REPORT_FILES)
    write_json(report, entries)
    confusion_plot(scores.matrix, plot, unit="images")
    return [report, plot]
