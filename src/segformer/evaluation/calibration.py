"""Calibration: whether predictions with a confidence of 80 % are right in 80 % of all cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.evaluation.metrics import as_json

BINS = 15
"""Bins of equal width between 0 and 1, as in Guo et al. 2017 (arXiv 1706.04599)."""


@dataclass
class Calibration:
    """Predictions (pixels or images) in bins of their confidence.

    The memory is that of the bins, however many predictions there are.

    Attributes:
        counts: (BINS,) int64 predictions.
        correct: (BINS,) int64 correct predictions.
        confidences: (BINS,) float64 sum of the confidences.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    correct: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    confidences: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def update(self, confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> None:
        """Add predictions.

        Args:
            confidence: Probability of the predicted class, 0..1, any shape. NaN is not counted.
            correct: Whether the prediction is right, same shape.
        """
        known = np.isfinite(confidence)
        values, right = confidence[known].astype(np.float64), correct[known]
        # Bins are open below and closed above, as in the reference implementation
        bins = np.clip(np.ceil(values * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)
        self.correct += np.bincount(bins[right], minlength=BINS)
        self.confidences += np.bincount(bins, values, minlength=BINS)

    def merge(self, other: Calibration) -> None:
        """Add the predictions of another evaluation, such as that of another process."""
        self.counts += other.counts
        self.correct += other.correct
        self.confidences += other.confidences

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(BINS,) fraction of correct predictions; NaN in empty bins."""
        return self._mean(self.correct)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(BINS,) mean confidence; NaN in empty bins."""
        return self._mean(self.confidences)

    @property
    def ece(self) -> float:
        """Expected calibration error, 0..1: mean difference of accuracy and confidence.

        Bins count by their predictions (Guo et al. 2017, equation 3). NaN without predictions.
        """
        total = self.counts.sum()
        if not total:
            return float("nan")
        return float(np.abs(self.correct - self.confidences).sum() / total)

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy, -1..1; NaN without predictions."""
        total = self.counts.sum()
        return float((self.confidences - self.correct).sum() / total) if total else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; NaN becomes None."""
        return {
            "ece": as_json(self.ece),
            "overconfidence": as_json(self.overconfidence),
            "predictions": int(self.counts.sum()),
            "bins": [
                {
                    "from": round(i / BINS, 6),
                    "to": round((i + 1) / BINS, 6),
                    "count": int(self.counts[i]),
                    "confidence": as_json(self.confidence[i]),
                    "accuracy": as_json(self.accuracy[i]),
                }
                for i in range(BINS)
            ],
        }

    def _mean(self, sums: NDArray[Any]) -> NDArray[np.float64]:
        unknown = np.full(BINS, np.nan)
        return np.divide(sums, self.counts, out=unknown, where=self.counts > 0)
