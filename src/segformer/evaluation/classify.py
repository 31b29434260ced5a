"""Classifiers on data sets of classes: top-1, top-5, accuracy of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from segformer.data.class_folders import ClassFolders
from segformer.data.dataset import DatasetError
from segformer.evaluation.evaluate import check_classes
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.files import write_json
from segformer.image import ImageSource
from segformer.prediction.classifier import ClassPredictor


@dataclass
class ClassScores:
    """How often a classifier is right.

    Attributes:
        matrix: Images by true and predicted class.
        in_top5: Images whose class is among the five most probable.
        failed: What was wrong with the images that could not be read.
    """

    matrix: ConfusionMatrix
    in_top5: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many were classified."""
        return int(self.matrix.counts.sum())

    @property
    def top1(self) -> float:
        """Fraction of images whose most probable class is the true one."""
        return float(np.trace(self.matrix.counts)) / max(self.images, 1)

    @property
    def top5(self) -> float:
        """Fraction of images whose class is among the five most probable."""
        return self.in_top5 / max(self.images, 1)


def evaluate_classes(
    dataset: ClassFolders,
    predictor: ClassPredictor,
    *,
    on_image: Callable[[], None] | None = None,
) -> ClassScores:
    """Classify a data set and count.

    Args:
        dataset: Its classes must be the model's.
        predictor: The classifier.
        on_image: Called after each image.

    Raises:
        DatasetError: The classes differ in number.
    """
    check_classes(dataset, predictor)
    scores = ClassScores(ConfusionMatrix(dataset.classes))

    def note(source: ImageSource, error: Exception) -> None:
        scores.failed.append(str(error))
        if on_image is not None:
            on_image()

    results = predictor.stream((path for path, _ in dataset), on_error=note)
    truths = dict(dataset.samples)
    for result in results:
        assert result.source is not None
        truth = truths[result.source]
        best = np.argsort(-result.probabilities, kind="stable")[:5]
        scores.matrix.update(np.array([truth]), best[:1])
        scores.in_top5 += truth in best
        if on_image is not None:
            on_image()
    if not scores.images:
        raise DatasetError(f"{dataset.root}: no image can be read, first {scores.failed[0]}")
    return scores


def class_table(scores: ClassScores) -> Table:
    """Scores in percent, for a terminal; with many classes the twenty worst."""
    title = f"top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%} of {scores.images} images"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("class", "accuracy", "images"):
        table.add_column(column, justify="left" if column == "class" else "right")
    counts = scores.matrix.counts.sum(1)
    accuracy = scores.matrix.scores().accuracy
    ids = np.flatnonzero(counts)
    for i in ids[np.argsort(accuracy[ids], kind="stable")][:20]:
        table.add_row(scores.matrix.classes.names[i], f"{accuracy[i]:.2%}", str(counts[i]))
    if len(ids) > 20:
        table.add_row(f"({len(ids) - 20} better ones)", "", "")
    return table


def write_class_report(
    scores: ClassScores, folder: str | Path, dataset: ClassFolders, protocol: Mapping[str, object]
) -> list[Path]:
    """Write ``report.json`` and ``confusion.png``.

    Args:
        scores: What was counted.
        folder: Made if it is not there.
        dataset: What was evaluated.
        protocol: How: model, sizes.
    """
    from segformer.evaluation.plots import confusion_plot

    folder = Path(folder)
    names, accuracy = scores.matrix.classes.names, scores.matrix.scores().accuracy
    entries = {
        "dataset": str(dataset.root),
        "split": dataset.split,
        "images": scores.images,
        **protocol,
        "top1": round(scores.top1, 6),
        "top5": round(scores.top5, 6),
        "classes": {
            name: None if np.isnan(value) else round(float(value), 6)
            for name, value in zip(names, accuracy, strict=True)
        },
        "failed": scores.failed,
    }
    write_json(folder / "report.json", entries)
    confusion_plot(scores.matrix, folder / "confusion.png", of="images")
    return [folder / "report.json", folder / "confusion.png"]
