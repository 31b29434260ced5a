"""Confidence intervals by resampling images (Efron & Tibshirani 1993, percentile method).

Pixels of one image are not independent of each other, so images are drawn, not pixels.

Legend: N images, K classes, M models, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segformer.evaluation.per_image import ImageCounts

LEVEL = 0.95
"""Part of the resamples inside of an interval."""

_BLOCK = 2048
"""Images whose counts are multiplied at a time."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Confidence intervals of values.

    Attributes:
        low: Lower ends, NaN where there is no value.
        high: Upper ends.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def excludes_zero(self) -> NDArray[np.bool_]:
        """Whether an interval lies on one side of zero."""
        return np.asarray((self.low > 0) | (self.high < 0))


def resampled_ious(
    models: Sequence[ImageCounts], classes: int, resamples: int, seed: int
) -> NDArray[np.float64]:
    """IoU of each class over images that are drawn with replacement.

    All models are given the same draws, so that their differences can be taken. The memory is that
    of the result and 2 N R bytes.

    Args:
        models: For each model the counts of the same N images, in the same order.
        classes: K.
        resamples: R.
        seed: Of the draws.

    Returns:
        (M, R, K); NaN where a class is neither in the masks nor in the predictions that were drawn.
    """
    rng = np.random.default_rng(seed)
    count = len(models[0])
    weights = np.empty((resamples, count), np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, count, count), minlength=count)
    totals = np.zeros((len(models), 2, resamples, classes))
    for start in range(0, count, _BLOCK):
        drawn = weights[:, start : start + _BLOCK].astype(np.float64)
        for number, model in enumerate(models):
            totals[number] += drawn @ model.dense(start, start + _BLOCK, classes)
    hits, unions = totals[:, 0], totals[:, 1]
    return np.divide(hits, unions, out=np.full_like(hits, np.nan), where=unions > 0)


def interval(values: NDArray[np.float64]) -> Interval:
    """Percentile intervals of resampled values (R, ...), NaN not counted; ends are (...)."""
    tail = (1 - LEVEL) / 2
    ends = np.full((2, *values.shape[1:]), np.nan)
    known = ~np.isnan(values).all(0)
    if known.any():
        ends[:, known] = np.nanquantile(values[:, known], (tail, 1 - tail), axis=0)
    return Interval(ends[0], ends[1])


def mean_over_classes(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., K) -> (...) mean over the classes that have a value; NaN if none has."""
    known = ~np.isnan(ious)
    count = known.sum(-1)
    sums = np.where(known, ious, 0).sum(-1)
    return np.divide(sums, count, out=np.full(sums.shape, np.nan), where=count > 0)
