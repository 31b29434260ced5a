"""Score a segmentation model on images with masks, and write a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from segformer.data.dataset import Dataset, DatasetError, Sample
from segformer.evaluation.confusion_plot import confusion_plot
from segformer.evaluation.details import Collector, Details, Scored
from segformer.evaluation.matching import MatchClasses
from segformer.evaluation.matching import match_classes as find_match
from segformer.evaluation.metrics import ConfusionMatrix, Scores
from segformer.evaluation.report.curves import Curves
from segformer.evaluation.report.segmentation import segmentation_page
from segformer.files import write_json, write_text
from segformer.image import ImageArray, ImageSource, image_name
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor

REPORT_FILES = ("report.json", "confusion.png", "report.html", "per_image.csv")
"""Files that a report consists of."""


_MAY_LACK_DATA = frozenset((".tif", ".tiff", ".npy"))
"""Suffixes of files that can mark pixels as being without data: by GDAL's tag or by NaN."""


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
    collector: Collector | None = None,
    on_prediction: Callable[[Prediction, NDArray[np.integer]], None] | None = None,
    partial: bool = False,
) -> ConfusionMatrix:
    """Compare predictions with masks of one class per pixel, each at the size of the mask.

    For classes that may overlap, see `segformer.evaluation.multilabel`.

    Args:
        dataset: Images and masks. If the model was trained with reduced labels
            (``do_reduce_labels``), class 0 of the masks is ignored; see `match_classes`.
        predictor: The model and how it sees images: size, windows, scales, flips.
        match_classes: Match the classes of model and data set by "name" or by "position".
        on_image: Called after each image, scored or skipped.
        on_error: Called with an image and the error if the image or its mask cannot be read; the
            image is then skipped. Default: the error is raised.
        collector: Sees each image that is scored, such as `Details`.
        on_prediction: Called with each prediction that is scored and its mask (H, W).
        partial: The data set is a part of a split: it may be empty, and all its images may be
            skipped.

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
        on_image=on_image,
        on_error=on_error,
        on_prediction=on_prediction,
        confidence_pixels=0 if collector is None else collector.confidence_pixels,
        partial=partial,
    )
    return matrix


def compare_images(
    dataset: Dataset,
    predictor: Predictor,
    compare: Callable[[Sample, NDArray[np.integer], Prediction], None],
    *,
    on_image: Callable[[], None] | None = None,
    on_error: Callable[[ImageSource, Exception], None] | None = None,
    on_prediction: Callable[[Prediction, NDArray[np.integer]], None] | None = None,
    confidence_pixels: int = 0,
    partial: bool = False,
) -> None:
    """Predict each image of a data set, and compare the prediction with the mask.

    Args:
        dataset: Images and masks.
        predictor: The model and how it sees images.
        compare: Called with the sample, its mask (H, W), as the data set reads it, and the
            prediction.
        on_image: Called after each image, compared or skipped.
        on_error: Called with an image and the error if the image or its mask cannot be read; the
            image is then skipped. Default: the error is raised.
        on_prediction: See `evaluate`.
        confidence_pixels: See `Predictor.stream`.
        partial: See `evaluate`.

    Raises:
        DatasetError: None of the images could be evaluated.
        ValueError: An image or mask cannot be read, and there is no ``on_error``.
    """
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
    stream = predictor.stream(with_masks, on_error=fail, confidence_pixels=confidence_pixels)
    for prediction in stream:
        assert prediction.source is not None
        sample = with_masks[prediction.source]
        try:
            truth = _truth(dataset, sample, predictor, prediction.image)
            compare(sample, truth, prediction)
            if on_prediction is not None:
                on_prediction(prediction, truth)
        except (ValueError, OSError, MemoryError) as error:
            fail(prediction.source, error)
        else:
            if on_image is not None:
                on_image()
    if errors and len(errors) == len(dataset) and not partial:
        raise none_evaluated(dataset, errors[0])


def _truth(
    dataset: Dataset, sample: Sample, predictor: Predictor, image: ImageArray
) -> NDArray[np.integer]:
    """Class ids of the mask of an image (H, W, C), as the predictor has read it.

    Pixels without data are ignored. If the predictor may have read the image in such a way that
    they can no longer be told from others, it is read again.
    """
    if dataset.nodata is None and not _MAY_LACK_DATA.intersection(
        file.suffix.lower() for file in sample.image_files
    ):
        return dataset.read_mask(sample, image)
    preprocessing = predictor.preprocessing
    if not preprocessing.expects_8_bit and dataset.nodata == preprocessing.nodata:
        return dataset.read_mask(sample, image)
    return dataset.read(sample)[1]


def none_evaluated(dataset: Dataset, first: object) -> DatasetError:
    """The error for a split of which no image could be evaluated.

    Args:
        dataset: The split.
        first: What is wrong with its first image.
    """
    return DatasetError(
        f"{dataset.root}: none of the {len(dataset)} images of split {dataset.split!r} can be "
        f"evaluated; the first error: {first}"
    )


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
