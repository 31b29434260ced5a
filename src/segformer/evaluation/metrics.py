"""The confusion matrix of a model, and the scores computed from it.

Legend: K classes, N pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet


@dataclass
class ConfusionMatrix:
    """Counts of pixels (or images) by true and predicted class, summed over images.

    Attributes:
        classes: The classes; pixels with their ``ignore_index`` are not counted.
        counts: (K, K) int64; rows are true classes, columns predicted classes.
    """

    classes: ClassSet
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of other images."""
        self.counts += other.counts

    def update(self, truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> None:
        """Add the pixels of one image.

        Args:
            truth: Class ids of the mask, any shape.
            predicted: Predicted class ids, same shape, all below K.

        Raises:
            ValueError: The shapes differ, or ids are outside the classes.
        """
        if truth.shape != predicted.shape:
            raise ValueError(
                f"the mask has shape {truth.shape}, the prediction {predicted.shape}; "
                "they must be equal"
            )
        counted = truth != self.classes.ignore_index
        rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        k = len(self.classes)
        for name, ids in (("mask", rows), ("prediction", columns)):
            if ids.size and not 0 <= ids.min() <= ids.max() < k:
                raise ValueError(
                    f"the {name} has class ids from {ids.min()} to {ids.max()}, "
                    f"the classes are 0..{k - 1}"
                )
        if rows.size < k * k // 16:  # a few values, such as one class per image
            np.add.at(self.counts, (rows, columns), 1)
        else:
            self.counts += np.bincount(rows * k + columns, minlength=k * k).reshape(k, k)

    def scores(self) -> Scores:
        """Scores of everything counted so far."""
        hits = np.diag(self.counts).astype(np.float64)
        true = self.counts.sum(1).astype(np.float64)
        predicted = self.counts.sum(0).astype(np.float64)
        total = true.sum()
        return Scores(
            classes=self.classes,
            iou=_ratio(hits, true + predicted - hits),
            accuracy=_ratio(hits, true),
            dice=_ratio(2 * hits, true + predicted),
            class_fractions=true / total if total else np.zeros_like(true),
            pixel_accuracy=float(hits.sum() / total) if total else float("nan"),
            confusion=self.counts.copy(),
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores per class and their means, from 0 to 1; NaN where a score is not defined.

    IoU and Dice of a class are NaN if it occurs neither in the masks nor in the predictions. A
    class that is predicted but never occurs in the masks has an IoU of 0, which lowers the mean,
    as in the reference implementations.

    Attributes:
        classes: The classes.
        iou: (K,) intersection over union.
        accuracy: (K,) fraction of the pixels of a class that were found (recall).
        dice: (K,) twice the intersection over the sum of both areas (F1).
        class_fractions: (K,) fraction of the labeled pixels.
        pixel_accuracy: Fraction of the labeled pixels that are right.
        confusion: (K, K) int64 pixels; rows are true classes, columns predicted classes.
    """

    classes: ClassSet
    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    dice: NDArray[np.float64]
    class_fractions: NDArray[np.float64]
    pixel_accuracy: float
    confusion: NDArray[np.int64] = field(repr=False)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that have one."""
        return _mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over the classes that occur in the masks."""
        return _mean(self.accuracy)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the classes that have one."""
        return _mean(self.dice)

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Names of the classes that never occur in the masks."""
        return absent_names(self.classes, self.confusion)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the scores, as sentences; usually none."""
        return count_warnings(self.classes, self.confusion, "pixel")

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the confusion matrix; NaN becomes None."""
        per_class = {
            name: {
                "iou": as_json(self.iou[i]),
                "accuracy": as_json(self.accuracy[i]),
                "dice": as_json(self.dice[i]),
                "fraction": as_json(self.class_fractions[i]),
            }
            for i, name in enumerate(self.classes.names)
        }
        return {
            "miou": as_json(self.miou),
            "mean_accuracy": as_json(self.mean_accuracy),
            "mean_dice": as_json(self.mean_dice),
            "pixel_accuracy": as_json(self.pixel_accuracy),
            "warnings": list(self.warnings),
            "absent_classes": list(self.absent_classes),
            "classes": per_class,
        }


def absent_names(classes: ClassSet, counts: NDArray[np.int64]) -> tuple[str, ...]:
    """Names of the classes without a true pixel or image in ``counts`` (K, K)."""
    true = counts.sum(1)
    return tuple(name for name, count in zip(classes.names, true, strict=True) if not count)


def count_warnings(classes: ClassSet, counts: NDArray[np.int64], unit: str) -> tuple[str, ...]:
    """Reasons not to trust scores from ``counts`` (K, K); ``unit`` is "pixel" or "image"."""
    (present,) = np.nonzero(counts.sum(1))
    if not present.size:
        return (f"no {unit} of this split is labeled; there is nothing to score",)
    if present.size == 1 and len(classes) > 1:
        return (
            f"only one class occurs in this split, {classes.names[present[0]]!r}; the scores say "
            "nothing about the others",
        )
    return ()


def as_json(value: float) -> float | None:
    """A score rounded for a report; NaN becomes None."""
    return None if np.isnan(value) else round(float(value), 6)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
