"""One confusion matrix in integers, and everything that is read off it.

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
    """Counts of pixels by true and predicted class, added up over images.

    Attributes:
        classes: The classes; pixels of their ``ignore_index`` are not counted.
        counts: (K, K) int64, rows true, columns predicted.
    """

    classes: ClassSet
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def update(self, truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> None:
        """Count one image's pixels.

        Args:
            truth: Class ids of the mask, any shape.
            predicted: Class ids, same shape, all below K.

        Raises:
            ValueError: Shapes differ, or ids are outside the classes.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"a mask of {truth.shape} against a prediction of {predicted.shape}")
        counted = truth != self.classes.ignore_index
        rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        k = len(self.classes)
        for name, ids in (("mask", rows), ("prediction", columns)):
            if ids.size and not 0 <= ids.min() <= ids.max() < k:
                raise ValueError(f"the {name} has ids from {ids.min()} to {ids.max()}; K is {k}")
        self.counts += np.bincount(rows * k + columns, minlength=k * k).reshape(k, k)

    def scores(self) -> Scores:
        """Scores as of now."""
        hits = np.diag(self.counts).astype(np.float64)
        true = self.counts.sum(1).astype(np.float64)
        predicted = self.counts.sum(0).astype(np.float64)
        total = true.sum()
        return Scores(
            classes=self.classes,
            iou=_ratio(hits, true + predicted - hits),
            accuracy=_ratio(hits, true),
            dice=_ratio(2 * hits, true + predicted),
            frequency=true / total if total else np.zeros_like(true),
            pixel_accuracy=float(hits.sum() / total) if total else float("nan"),
        )


@dataclass(frozen=True)
class Scores:
    """Per class and in the mean; NaN where a class is neither in the masks nor predicted.

    Attributes:
        classes: The classes.
        iou: (K,) intersection over union.
        accuracy: (K,) fraction of a class's pixels found (recall).
        dice: (K,) twice the intersection over the sum of sizes (F1).
        frequency: (K,) fraction of the labeled pixels.
        pixel_accuracy: Fraction of labeled pixels that are right.
    """

    classes: ClassSet
    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    dice: NDArray[np.float64]
    frequency: NDArray[np.float64]
    pixel_accuracy: float

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that have one."""
        return _mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over the classes that are in the masks."""
        return _mean(self.accuracy)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the classes that have one."""
        return _mean(self.dice)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; NaN becomes None."""
        per_class = {
            name: {
                "iou": _json(self.iou[i]),
                "accuracy": _json(self.accuracy[i]),
                "dice": _json(self.dice[i]),
                "frequency": _json(self.frequency[i]),
            }
            for i, name in enumerate(self.classes.names)
        }
        return {
            "miou": _json(self.miou),
            "mean_accuracy": _json(self.mean_accuracy),
            "mean_dice": _json(self.mean_dice),
            "pixel_accuracy": _json(self.pixel_accuracy),
            "classes": per_class,
        }


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _json(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
