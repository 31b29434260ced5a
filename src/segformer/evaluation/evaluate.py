"""Score a segmentation model on images with masks, and write a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from segformer.data.dataset import Dataset, DatasetError
from segformer.evaluation.confusion_plot import confusion_plot
from segformer.evaluation.matching import MatchClasses
from segformer.evaluation.matching import match_classes as find_match
from segformer.evaluation.metrics import ConfusionMatrix, Scores
from segformer.files import write_json
from segformer.image import ImageSource, image_name
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor

REPORT_FILES = ("report.json", "confusion.png")
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
    on_image: Callable[[], None] | None = None,
    on_error: Callable[[ImageSource, Exception], None] | None = None,
    on_prediction: Callable[[Prediction, NDArray[np.integer]], None] | None = None,
) -> ConfusionMatrix:
    """Compare predictions with masks, each at the size of the mask.

    Args:
        dataset: Images and masks. If the model was trained with reduced labels
            (``do_reduce_labels``), class 0 of the masks is ignored; see `match_classes`.
        predictor: The model and how it sees images: size, windows, scales, flips.
        match_classes: Match the classes of model and data set by "name" or by "position".
        on_image: Called after each image, scored or skipped.
        on_error: Called with an image and the error if the image or its mask cannot be read; the
            image is then skipped. Default: the error is raised.
        on_prediction: Called with each prediction that is scored and the true class ids (H, W).

    Returns:
        The confusion matrix in the classes of the data set.

    Raises:
        ClassesDiffer: The classes cannot be matched.
        DatasetError: None of the images could be evaluated.
        ValueError: An image or mask cannot be read, and there is no ``on_error``.
    """
    match = find_match(
        dataset.classes,
        predictor.model.classes,
        match_classes,
        reduce_labels=predictor.model.preprocessing.reduce_labels,
    )
    dataset = replace(dataset, classes=match.classes, channels=predictor.model.config.in_channels)
    matrix = ConfusionMatrix(dataset.classes)
    errors: list[Exception] = []

    def fail(source: ImageSource, error: Exception) -> None:
        if on_error is None:
            raise error
        errors.append(error)
        on_error(source, error)
        if on_image is not None:
            on_image()

    with_masks = {}
    for sample in dataset:
        if sample.mask is None:  # found before any image is predicted
            name = image_name(sample.image)
            fail(sample.image, DatasetError(f"{name}: there is no mask for this image"))
        else:
            with_masks[sample.image] = sample
    for prediction in predictor.stream(with_masks, on_error=fail):
        assert prediction.source is not None
        try:
            _, truth = dataset.read(with_masks[prediction.source])
            matrix.update(truth, match.map_ids(prediction.label_map))
            if on_prediction is not None:
                on_prediction(prediction, truth)
        except (ValueError, OSError, MemoryError) as error:
            fail(prediction.source, error)
        else:
            if on_image is not None:
                on_image()
    if errors and len(errors) == len(dataset):
        raise DatasetError(
            f"{dataset.root}: none of the {len(dataset)} images of split {dataset.split!r} can be "
            f"evaluated; the first error: {errors[0]}"
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
    failed: Sequence[Failure] = (),
) -> list[Path]:
    """Write ``report.json`` and ``confusion.png``.

    Args:
        matrix: The result of `evaluate`.
        folder: Created if it does not exist. Files of these names in it are replaced.
        dataset: The data set that was evaluated.
        protocol: Further entries for the report: the model, and how it saw the images.
        failed: Images that were skipped.

    Returns:
        The files.
    """
    folder = Path(folder)
    entries = {
        "dataset": str(dataset.root),
        "split": dataset.split,
        "images": len(dataset) - len(failed),
        "failed": [asdict(failure) for failure in failed],
        **protocol,
        **matrix.scores().as_dict(),
        "confusion": matrix.counts.tolist(),
    }
    report, plot = (folder / name for name in REPORT_FILES)
    write_json(report, entries)
    confusion_plot(matrix, plot)
    return [report, plot]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"
