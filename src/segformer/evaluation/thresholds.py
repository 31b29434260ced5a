"""Thresholds of probabilities, fitted on a validation split.

Legend: K classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 1024
"""Thresholds are multiples of 1 / BINS. As it is a power of two, they are exact in binary."""


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Numbers of pixels of each class over a split, (K,) int64 each.

    Attributes:
        hits: Pixels of the class that were found (true positives).
        extra: Pixels where the class was found but is absent (false positives).
        missed: Pixels of the class that were not found (false negatives).
        rest: All other labeled pixels (true negatives).
    """

    hits: NDArray[np.int64]
    extra: NDArray[np.int64]
    missed: NDArray[np.int64]
    rest: NDArray[np.int64]

    def merge(self, other: PixelCounts) -> None:
        """Add the pixels of other images."""
        for name in ("hits", "extra", "missed", "rest"):
            getattr(self, name)[:] += getattr(other, name)


@dataclass
class ProbabilityHistogram:
    """Counts of pixels by class, truth and probability, summed over images.

    Attributes:
        num_classes: Number K of classes.
        counts: (K, 2, BINS + 1) int64: for each class, absent and present pixels whose probability
            exceeds n / BINS for exactly n of the thresholds 0, 1 / BINS, 2 / BINS ...
    """

    num_classes: int
    counts: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.num_classes, 2, BINS + 1), np.int64)

    def merge(self, other: ProbabilityHistogram) -> None:
        """Add the pixels of other images."""
        self.counts += other.counts

    def update(
        self, present: NDArray[np.bool_], probs: NDArray[np.float32], labeled: NDArray[np.bool_]
    ) -> None:
        """Add the pixels of one image.

        Args:
            present: (K, H, W) where each class is present.
            probs: (K, H, W) probability of each class.
            labeled: (H, W) which pixels count.
        """
        for class_id, (truth, prob) in enumerate(zip(present, probs, strict=True)):
            bins = np.ceil(prob[labeled] * np.float32(BINS)).astype(np.int64)
            bins += truth[labeled] * (BINS + 1)
            found = np.bincount(bins, minlength=2 * (BINS + 1))
            self.counts[class_id] += found.reshape(2, BINS + 1)

    def fit(self) -> tuple[float, ...]:
        """The threshold of each class with the highest IoU, (K,).

        As Dice = 2 IoU / (1 + IoU), it is also the threshold with the highest Dice. Of equally good
        thresholds the one nearest to 0.5 is taken. Classes that do not occur have 0.5.
        """
        above = self.counts[:, :, ::-1].cumsum(2)[:, :, ::-1][:, :, 2:]  # (K, 2, BINS - 1)
        extra, hits = above[:, 0], above[:, 1]
        total = self.counts[:, 1].sum(1, keepdims=True)
        iou = hits / np.maximum(total + extra, 1)
        thresholds = np.arange(1, BINS) / BINS
        order = np.argsort(np.abs(thresholds - 0.5), kind="stable")
        best = order[iou[:, order].argmax(1)]
        return tuple(np.where(total[:, 0] > 0, thresholds[best], 0.5).tolist())

    def at(self, thresholds: tuple[float, ...]) -> PixelCounts:
        """The counts with thresholds (K,), which must be multiples of 1 / BINS."""
        above = np.array(
            [
                counts[:, round(threshold * BINS) + 1 :].sum(1)
                for counts, threshold in zip(self.counts, thresholds, strict=True)
            ]
        )
        below = self.counts.sum(2) - above
        return PixelCounts(
            hits=above[:, 1], extra=above[:, 0], missed=below[:, 1], rest=below[:, 0]
        )
