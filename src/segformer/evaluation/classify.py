"""Score a classifier on images in one folder per class: top-1, top-5, accuracy per class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from segformer.data.class_folders import ClassFolders
from segformer.evaluation.calibration import Calibration
from segformer.evaluation.confusion_plot import confusion_plot
from segformer.evaluation.evaluate import REPORT_FILES, Failure, add_notes
from segformer.evaluation.images import none_evaluated
from segformer.evaluation.matching import MatchClasses
from segformer.evaluation.matching import match_classes as find_match
from segformer.evaluation.metrics import ConfusionMatrix, absent_names, as_json, count_warnings
from segformer.evaluation.per_image import write_csv
from segformer.evaluation.report.classification import classification_page
from segformer.evaluation.report.curves import Curves
from segformer.evaluation.speed import Speed
from segformer.files import write_json, write_text
from segformer.image import ImageSource
from segformer.prediction.classifier import ClassPredictor

_WORST = 20
"""Classes that the table shows, those with the lowest accuracy."""


@dataclass(frozen=True)
class ClassResult:
    """What was predicted for an image.

    Attributes:
        path: The image.
        truth: True class id.
        predicted: Most probable class id.
        confidence: Probability of the predicted class, 0..1.
        true_probability: Probability of the true class, 0..1.
        in_top5: Whether the true class is among the five most probable.
    """

    path: Path
    truth: int
    predicted: int
    confidence: float
    true_probability: float
    in_top5: bool


@dataclass
class ClassScores:
    """Scores of a classifier.

    Attributes:
        matrix: Images by true and predicted class.
        in_top5: Images whose true class is among the five most probable.
        failed: Images that could not be read, and why.
        results: The result of each image.
        calibration: Confidence and correctness of the images.
        speed: Time and memory.
        channels: Channels of the images.
    """

    matrix: ConfusionMatrix
    in_top5: int = 0
    failed: list[Failure] = field(default_factory=list)
    results: list[ClassResult] = field(default_factory=list, repr=False)
    calibration: Calibration = field(default_factory=Calibration)
    speed: Speed = field(default_factory=lambda: Speed("cpu"))
    channels: int = 3

    def merge(self, other: ClassScores) -> None:
        """Add the images of another evaluation, such as that of another process."""
        self.matrix.merge(other.matrix)
        self.in_top5 += other.in_top5
        self.failed += other.failed
        self.results += other.results
        self.calibration.merge(other.calibration)
        self.speed.merge(other.speed)

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        losses = [-math.log(max(result.true_probability, 1e-12)) for result in self.results]
        return math.fsum(losses) / max(len(losses), 1)

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
    partial: bool = False,
) -> ClassScores:
    """Classify the images of a data set and compare with their folders.

    Unreadable images are skipped and listed in the result.

    Args:
        dataset: Images and their classes.
        predictor: The classifier.
        match_classes: Match the classes of model and data set by "name" or by "position".
        on_image: Called after each image, classified or skipped.
        partial: The data set is a part of a split: it may be empty, and all its images may be
            skipped.

    Raises:
        ClassesDiffer: The classes cannot be matched.
        DatasetError: None of the images can be read.
    """
    match = find_match(dataset.classes, predictor.model.classes, match_classes)
    scores = ClassScores(
        ConfusionMatrix(match.classes),
        speed=Speed(str(predictor.runtime.device)),
        channels=predictor.model.config.in_channels,
    )

    def fail(source: ImageSource, error: Exception) -> None:
        scores.failed.append(Failure(str(source), str(error)))
        if on_image is not None:
            on_image()

    truths = dict(dataset.samples)
    for result in predictor.stream(truths, on_error=fail):
        assert result.source is not None
        truth = truths[result.source]
        order = np.argsort(-result.probabilities, kind="stable")
        ranked, best = match.map_ids(order), float(result.probabilities[order[0]])
        scores.matrix.update(np.array([truth]), ranked[:1])
        in_top5 = truth in ranked[:5]
        scores.in_top5 += int(in_top5)
        scores.calibration.update(np.array([best]), ranked[:1] == truth)
        of_truth = float(result.probabilities[order[ranked == truth][0]])
        scores.results.append(
            ClassResult(result.source, truth, int(ranked[0]), best, of_truth, in_top5)
        )
        scores.speed.image_done()
        if on_image is not None:
            on_image()
    if not scores.images and not partial:
        raise none_evaluated(dataset, scores.failed[0])
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
    scores: ClassScores,
    folder: str | Path,
    dataset: ClassFolders,
    protocol: Mapping[str, object],
    curves: Curves | None = None,
) -> list[Path]:
    """Write ``report.json``, ``confusion.png``, ``report.html`` and ``per_image.csv``.

    Args:
        scores: The result of `evaluate_classes`.
        folder: Created if it does not exist. Files of these names in it are replaced.
        dataset: The data set that was evaluated.
        protocol: Further entries for the report: the model, and how it saw the images.
        curves: Of the training, if it is the report of one.

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
        "calibration": scores.calibration.as_dict(),
        "speed": scores.speed.as_dict(),
    }
    about = {**protocol, "dataset": str(dataset.root), "split": dataset.split}
    paths = [folder / name for name in REPORT_FILES]
    report, plot, page, per_image = paths
    write_json(report, entries)
    confusion_plot(scores.matrix, plot, unit="images")
    write_text(page, classification_page(scores, about, curves))
    _write_results(scores, per_image, dataset.root / dataset.split)
    return paths


def _write_results(scores: ClassScores, path: Path, root: Path) -> None:
    """A CSV file with a row for each image, named relative to ``root``."""
    names = scores.matrix.classes.names
    columns = "image class predicted confidence probability_of_class correct in_top5".split()
    rows = (
        (
            result.path.relative_to(root).as_posix(),
            names[result.truth],
            names[result.predicted],
            as_json(result.confidence),
            as_json(result.true_probability),
            int(result.truth == result.predicted),
            int(result.in_top5),
        )
        for result in scores.results
    )
    write_csv(path, columns, rows)
