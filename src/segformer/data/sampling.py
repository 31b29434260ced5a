"""The order in which training samples are drawn, and how often each is.

Legend: N samples, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def repeat_factors(presence: NDArray[np.bool_], threshold: float) -> NDArray[np.float64]:
    """How often to draw each sample, relative to the samples of frequent classes only.

    Repeat factor sampling (Gupta et al. 2019, arXiv 1908.03195, section 5.2): with f the fraction
    of the samples that contain a class, the factor of the class is max(1, sqrt(threshold / f)).
    The factor of a sample is the largest of its classes.

    Args:
        presence: (N, K) which classes each sample contains.
        threshold: Classes in a smaller fraction of the samples are drawn more often.

    Returns:
        (N,) factors of at least 1.
    """
    frequency = np.maximum(presence.mean(0), 1e-12)
    factors = np.maximum(1, np.sqrt(threshold / frequency))
    largest: NDArray[np.float64] = np.where(presence, factors, 1).max(1, initial=1)
    return largest


def epoch_order(
    size: int, seed: int, epoch: int, factors: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """The samples of an epoch, shuffled.

    An epoch always has as many draws as there are samples. With factors, a sample is drawn
    factor / mean factor times on average; in each epoch this number is rounded up or down, by
    systematic sampling. The order depends on the arguments alone, so it is the same in a resumed
    training and in all processes.

    Args:
        size: Number N of samples.
        seed: Seed of the training.
        epoch: Number of the epoch.
        factors: (N,) how often to draw each sample, relative to each other. Default: once each.

    Returns:
        (N,) indices of samples.
    """
    rng = np.random.default_rng((seed, 0, epoch))
    order = rng.permutation(size)
    if factors is None:
        return order
    ends = np.cumsum(factors[order])
    marks = (np.arange(size) + rng.random()) * (ends[-1] / size)
    drawn = np.searchsorted(ends, marks, side="right").clip(max=size - 1)
    return rng.permutation(order[drawn])
