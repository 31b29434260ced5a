"""Scores of models whose classes may overlap.

Legend: K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from segformer.classes import ClassSet
from segformer.data.dataset import Dataset, DatasetError, Sample
from segformer.data.multilabel import IGNORED, unpack
from segformer.evaluation.evaluate import REPORT_FILES, Failure
from segformer.evaluation.images import ImageHooks, compare_images
from segformer.evaluation.matching import ClassesDiffer
from segformer.evaluation.metrics import ConfusionMatrix, as_json
from segformer.evaluation.thresholds import PixelCounts, ProbabilityHistogram
from segformer.files import write_json
from segformer.prediction.multilabel import MultiLabelPrediction
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor


@dataclass(frozen=True, eq=False)
class MultiLabelScores:
    """Scores per class and their means, from 0 to 1; NaN where a score is not defined.

    Attributes:
        classes: The classes.
        thresholds: (K,) probability above which each class is present.
        counts: Numbers of pixels that the scores are computed from.
    """

    classes: ClassSet
    thresholds: tuple[float, ...]
    counts: PixelCounts

    def merge(self, other: MultiLabelScores) -> None:
        """Add the pixels of other images."""
        self.counts.merge(other.counts)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; NaN if a class is neither present nor predicted."""
        c = self.counts
        return _ratio(c.hits, c.hits + c.extra + c.missed)

    @property
    def dice(self) -> NDArray[np.float64]:
        """(K,) twice the intersection over the sum of both areas (F1)."""
        c = self.counts
        return _ratio(2 * c.hits, 2 * c.hits + c.extra + c.missed)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) fraction of the predicted pixels that are right."""
        return _ratio(self.counts.hits, self.counts.hits + self.counts.extra)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) fraction of the pixels of a class that were found."""
        return _ratio(self.counts.hits, self.counts.hits + self.counts.missed)

    @property
    def class_fractions(self) -> NDArray[np.float64]:
        """(K,) fraction of the labeled pixels where each class is present."""
        c = self.counts
        return _ratio(c.hits + c.missed, c.hits + c.missed + c.extra + c.rest)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that have one."""
        return _mean(self.iou)

    @property
    def mean_recall(self) -> float:
        """Mean recall over the classes that occur in the masks."""
        return _mean(self.recall)

    @property
    def accuracy(self) -> float:
        """Fraction of the decisions, one for each class at each labeled pixel, that are right."""
        c = self.counts
        right = c.hits.sum() + c.rest.sum()
        return float(_ratio(right, right + c.extra.sum() + c.missed.sum()))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; NaN becomes None."""
        return {
            "miou": as_json(self.miou),
            "mean_dice": as_json(_mean(self.dice)),
            "mean_precision": as_json(_mean(self.precision)),
            "mean_recall": as_json(self.mean_recall),
            "accuracy": as_json(self.accuracy),
            "classes": {
                name: {
                    "iou": as_json(self.iou[i]),
                    "dice": as_json(self.dice[i]),
                    "precision": as_json(self.precision[i]),
                    "recall": as_json(self.recall[i]),
                    "fraction": as_json(self.class_fractions[i]),
                    "threshold": self.thresholds[i],
                }
                for i, name in enumerate(self.classes.names)
            },
        }

    def table(self) -> Table:
        """Scores per class in percent, for a terminal."""
        table = Table(title=f"mIoU {self.miou:.2%}", title_justify="left", title_style="bold")
        table.add_column("class")
        columns = {
            "IoU": self.iou,
            "Dice": self.dice,
            "precision": self.precision,
            "recall": self.recall,
            "fraction": self.class_fractions,
        }
        for column in (*columns, "threshold"):
            table.add_column(column, justify="right")
        for i, name in enumerate(self.classes.names):
            values = [_percent(column[i]) for column in columns.values()]
            table.add_row(name, *values, f"{self.thresholds[i]:.3f}")
        table.add_section()
        table.add_row("mean", *(_percent(_mean(column)) for column in columns.values()), "")
        return table


def evaluate_multilabel(
    dataset: Dataset,
    predictor: Predictor,
    **hooks: Unpack[ImageHooks],
) -> MultiLabelScores:
    """Compare the masks of a model with those of a data set, class by class.

    Args:
        dataset: Images and masks of classes that may overlap.
        predictor: The model and how it sees images.
        **hooks: See `ImageHooks`.

    Raises:
        ClassesDiffer: The classes of the model and the data set have other names.
        DatasetError: One of them has one class per pixel, or no image could be evaluated.
        ValueError: An image or mask cannot be read, and there is no ``on_error``.
    """
    config, order = predictor.model.config, _matching_order(dataset, predictor)
    dataset = replace(dataset, channels=config.in_channels)
    total = np.zeros((4, len(dataset.classes)), np.int64)

    def compare(_: Sample, packed: NDArray[np.integer], prediction: Prediction) -> None:
        assert isinstance(prediction, MultiLabelPrediction)
        labeled = packed != IGNORED
        truth = unpack(packed, len(dataset.classes))[:, labeled]
        found = prediction.masks[order][:, labeled]
        parts = (truth & found, ~truth & found, truth & ~found, ~truth & ~found)
        total[:] += np.stack([part.sum(1) for part in parts])

    compare_images(dataset, predictor, compare, **hooks)
    thresholds = tuple(config.decision_thresholds[i] for i in order)
    return MultiLabelScores(dataset.classes, thresholds, PixelCounts(*total))


def measure_probabilities(
    dataset: Dataset,
    predictor: Predictor,
    **hooks: Unpack[ImageHooks],
) -> ProbabilityHistogram:
    """Collect the probabilities of a model with sigmoids, to fit its thresholds.

    Args:
        dataset: Images and masks with the classes of the model.
        predictor: A binary model or one of classes that may overlap, with ``confidence``.
        **hooks: See `ImageHooks`.

    Returns:
        Counts by probability; of a binary model for the foreground alone.

    Raises:
        DatasetError: No image could be evaluated.
        ValueError: An image or mask cannot be read, and there is no ``on_error``.
    """
    histogram = ProbabilityHistogram(predictor.model.config.num_sigmoids)

    def compare(_: Sample, mask: NDArray[np.integer], prediction: Prediction) -> None:
        labeled = mask != dataset.classes.ignore_index
        probs = prediction.confidence
        assert probs is not None
        if dataset.multilabel:
            histogram.update(unpack(mask, len(dataset.classes)), probs, labeled)
        else:
            foreground = np.where(prediction.label_map == 1, probs, 1 - probs)
            histogram.update((mask == 1)[None], foreground[None], labeled)

    compare_images(dataset, predictor, compare, **hooks)
    return histogram


def binary_matrix(classes: ClassSet, counts: PixelCounts) -> ConfusionMatrix:
    """The confusion matrix of background and foreground from the counts of the foreground."""
    matrix = ConfusionMatrix(classes)
    (hits,), (extra,), (missed,), (rest,) = (
        part.tolist() for part in (counts.hits, counts.extra, counts.missed, counts.rest)
    )
    matrix.counts[:] = [[rest, extra], [missed, hits]]
    return matrix


def write_multilabel_report(
    scores: MultiLabelScores,
    folder: str | Path,
    dataset: Dataset,
    protocol: Mapping[str, object],
    failed: Sequence[Failure] = (),
) -> list[Path]:
    """Write ``report.json``; overlapping classes have no confusion matrix.

    Args:
        scores: The result of `evaluate_multilabel`.
        folder: Created if it does not exist. A file of this name in it is replaced.
        dataset: The data set that was evaluated.
        protocol: Further entries for the report: the model, and how it saw the images.
        failed: Images that were skipped.

    Returns:
        The file.
    """
    report = Path(folder) / REPORT_FILES[0]
    write_json(
        report,
        {
            "dataset": str(dataset.root),
            "split": dataset.split,
            "images": len(dataset) - len(failed),
            "failed": [asdict(failure) for failure in failed],
            **protocol,
            **scores.as_dict(),
        },
    )
    return [report]


def _matching_order(dataset: Dataset, predictor: Predictor) -> list[int]:
    """For each class of the data set, the class id of the model with the same name."""
    model = predictor.model
    if not (dataset.multilabel and model.config.multilabel):
        which = "data set" if model.config.multilabel else "model"
        raise DatasetError(
            f"{dataset.root}: the classes of the {which} cannot overlap, those of the other can"
        )
    ours, theirs = dataset.classes.names, model.classes.names
    if sorted(ours) != sorted(theirs):
        raise ClassesDiffer(
            f"{dataset.root}: the data set has the classes {', '.join(ours)}; the model has "
            f"{', '.join(theirs)}"
        )
    return [theirs.index(name) for name in ours]


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2%}"
