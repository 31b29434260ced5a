"""Score a segmentation model on images with masks, and write a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from segformer.data.dataset import Dataset, DatasetError, Sample
from segformer.evaluation.confusion_plot import confusion_plot
from segformer.evaluation.details import Collector, Details, Scored
from segformer.evaluation.images import ImageHooks, compare_images
from segformer.evaluation.matching import MatchClasses
from segformer.evaluation.matching import match_classes as find_match
from segformer.evaluation.metrics import ConfusionMatrix, Scores
from segformer.evaluation.report.curves import Curves
from segformer.evaluation.report.segmentation import segmentation_page
from segformer.files import write_json, write_text
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor

REPORT_FILES = ("report.json", "confusion.png", "report.html", "per_image.csv")
"""Files that a report consists of."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be evaluated.

    Attributes:
        image: Path of the image.
        error: What is wrong with it or with its mask.
    """

    image: str
    error: str

    def __str__(self) -> str:
        return self.error


def evaluate(
    dataset: Dataset,
    predictor: Predictor,
    *,
    match_classes: MatchClasses = "name",
    collector: Collector | None = None,
    **hooks: Unpack[ImageHooks],
) -> ConfusionMatrix:
    """Compare predictions with masks of one class per pixel, each at the size of the mask.

    For classes that may overlap, see `segformer.evaluation.multilabel`.

    Args:
        dataset: Images and masks. If the model was trained with reduced labels
            (``do_reduce_labels``), class 0 of the masks is ignored; see `match_classes`.
        predictor: The model and how it sees images: size, windows, scales, flips.
        match_classes: Match the classes of model and data set by "name" or by "position".
        collector: Sees each image that is scored, such as `Details`.
        **hooks: See `ImageHooks`.

    Returns:
        The confusion matrix in the classes of the data set.

    Raises:
        ClassesDiffer: The classes cannot be matched.
        DatasetError: None of the images could be evaluated.
        ValueError: An image or mask cannot be read, and there is no ``on_error``.
    """
    dataset.require_single_labels("a confusion matrix")
    if predictor.model.config.multilabel:
        raise DatasetError(
            f"{dataset.root}: the masks have one class per pixel, but the classes of the model may "
            "overlap; give a data set with multilabel: true"
        )
    match = find_match(
        dataset.classes,
        predictor.model.classes,
        match_classes,
        reduce_labels=predictor.model.preprocessing.reduce_labels,
    )
    dataset = replace(dataset, classes=match.classes, channels=predictor.model.config.in_channels)
    matrix = ConfusionMatrix(dataset.classes)

    def compare(sample: Sample, truth: NDArray[np.integer], prediction: Prediction) -> None:
        counts, predicted = ConfusionMatrix(dataset.classes), match.map_ids(prediction.label_map)
        counts.update(truth, predicted)
        matrix.counts += counts.counts
        if collector is not None:
            collector.add(Scored(sample, prediction, truth, predicted, counts))

    compare_images(
        dataset,
        predictor,
        compare,
        confidence_pixels=0 if collector is None else collector.confidence_pixels,
        **hooks,
    )
    return matrix


def score_table(scores: Scores) -> Table:
    """Scores per class in percent, for a terminal; warnings are printed below the table."""
    table = Table(title=f"mIoU {scores.miou:.2%}", title_justify="left", title_style="bold")
    table.add_column("class")
    for column in ("IoU", "accuracy", "Dice", "fraction"):
        table.add_column(column, justify="right")
    rows = zip(
        scores.classes.names,
        scores.iou,
        scores.accuracy,
        scores.dice,
        scores.class_fractions,
        strict=True,
    )
    for name, *values in rows:
        table.add_row(name, *(_percent(value) for value in values))
    table.add_section()
    means = (scores.miou, scores.mean_accuracy, scores.mean_dice)
    table.add_row("mean", *(_percent(value) for value in means), "")
    table.add_row("all pixels", "", _percent(scores.pixel_accuracy), "", "")
    add_notes(table, scores.warnings, scores.absent_classes)
    return table


def add_notes(table: Table, warnings: Sequence[str], absent: Sequence[str]) -> None:
    """Put warnings below a table, or else the classes that never occur."""
    notes = [f"warning: {sentence}" for sentence in warnings]
    if absent and not warnings:
        more = f" and {len(absent) - 12} more" if len(absent) > 12 else ""
        notes.append(f"never in this split: {', '.join(absent[:12])}{more}")
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"


def write_report(
    matrix: ConfusionMatrix,
    folder: str | Path,
    dataset: Dataset,
    protocol: Mapping[str, object],
    details: Details,
    failed: Sequence[Failure] = (),
    curves: Curves | None = None,
) -> list[Path]:
    """Write ``report.json``, ``confusion.png``, ``report.html`` and ``per_image.csv``.

    Args:
        matrix: The result of `evaluate`.
        folder: Created if it does not exist. Files of these names in it are replaced.
        dataset: The data set that was evaluated.
        protocol: Further entries for the report: the model, and how it saw the images.
        details: What `evaluate` has collected.
        failed: Images that were skipped.
        curves: Of the training, if it is the report of one.

    Returns:
        The files.
    """
    folder = Path(folder)
    about = {**protocol, "dataset": str(dataset.root), "split": dataset.split}
    entries: dict[str, Any] = {
        "dataset": str(dataset.root),
        "split": dataset.split,
        "images": len(dataset) - len(failed),
        "failed": [asdict(failure) for failure in failed],
        **protocol,
        **matrix.scores().as_dict(),
        "calibration": details.calibration.as_dict(),
        "speed": details.speed.as_dict(),
        "confusion": matrix.counts.tolist(),
    }
    paths = [folder / name for name in REPORT_FILES]
    report, plot, page, per_image = paths
    write_json(report, entries)
    confusion_plot(matrix, plot)
    write_text(page, segmentation_page(matrix, details, about, failed, curves))
    details.images.write(per_image, matrix.classes)
    return paths


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"
