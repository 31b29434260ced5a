"""A data set and a predictor -> scores, a report, an image of the confusions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.table import Table

from segformer.data.class_folders import ClassFolders
from segformer.data.dataset import Dataset, DatasetError
from segformer.evaluation.metrics import ConfusionMatrix, Scores
from segformer.prediction.classifier import ClassPredictor
from segformer.prediction.predictor import Predictor


def evaluate(
    dataset: Dataset,
    predictor: Predictor,
    *,
    on_image: Callable[[], None] | None = None,
) -> ConfusionMatrix:
    """Compare predictions with masks, each at the mask's own resolution.

    Args:
        dataset: Its classes must be the model's.
        predictor: With the protocol of the evaluation: size, windows, scales, flips.
        on_image: Called after each image.

    Returns:
        The confusion matrix, from which `ConfusionMatrix.scores` reads everything.

    Raises:
        DatasetError: The classes differ in number, or an image or mask is broken.
    """
    check_classes(dataset, predictor)
    dataset = dataset.with_channels(predictor.model.config.in_channels)
    matrix = ConfusionMatrix(dataset.classes)
    images = (sample.image for sample in dataset)
    for sample, prediction in zip(dataset, predictor.stream(images), strict=True):
        _, truth = dataset.read(sample)
        matrix.update(truth, prediction.label_map)
        if on_image is not None:
            on_image()
    return matrix


def check_classes(dataset: Dataset | ClassFolders, predictor: Predictor | ClassPredictor) -> None:
    """Raise a DatasetError if data set and model do not speak of the same number of classes."""
    here, there = dataset.classes.names, predictor.model.classes.names
    if len(here) != len(there):
        raise DatasetError(
            f"{dataset.root}: the data set has {len(here)} classes ({', '.join(here[:5])}, ...), "
            f"the model {len(there)} ({', '.join(there[:5])}, ...)"
        )


def score_table(scores: Scores) -> Table:
    """Per-class scores in percent, for a terminal."""
    table = Table(title=f"mIoU {scores.miou:.2%}", title_justify="left", title_style="bold")
    table.add_column("class")
    for column in ("IoU", "accuracy", "Dice", "frequency"):
        table.add_column(column, justify="right")
    rows = zip(
        scores.classes.names,
        scores.iou,
        scores.accuracy,
        scores.dice,
        scores.frequency,
        strict=True,
    )
    for name, *values in rows:
        table.add_row(name, *(_percent(value) for value in values))
    table.add_section()
    means = (scores.miou, scores.mean_accuracy, scores.mean_dice)
    table.add_row("mean", *(_percent(value) for value in means), "")
    table.add_row("all pixels", "", _percent(scores.pixel_accuracy), "", "")
    return table


def write_report(
    matrix: ConfusionMatrix, folder: str | Path, dataset: Dataset, protocol: Mapping[str, object]
) -> list[Path]:
    """Write ``report.json`` and ``confusion.png``.

    Args:
        matrix: What was counted.
        folder: Made if it is not there.
        dataset: What was evaluated.
        protocol: How: model, sizes, scales.
    """
    from segformer.evaluation.plots import confusion_plot
    from segformer.files import write_json

    folder = Path(folder)
    entries = {
        "dataset": str(dataset.root),
        "split": dataset.split,
        "images": len(dataset),
        **protocol,
        **matrix.scores().as_dict(),
        "confusion": matrix.counts.tolist(),
    }
    write_json(folder / "report.json", entries)
    confusion_plot(matrix, folder / "confusion.png")
    return [folder / "report.json", folder / "confusion.png"]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"
