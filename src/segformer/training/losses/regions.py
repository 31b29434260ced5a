"""Losses of regions: Tversky and Dice, and what the other losses of regions need.

These losses compare whole regions, so a class of few pixels counts as much as one of many. They
are computed at the resolution of the logits, with the mask sampled to that size.

Legend: B batch, K classes, h w logits, H W mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.data.multilabel import IGNORED
from segformer.model.products import full_precision
from segformer.model.segformer import probabilities
from segformer.training.losses.binary_cross_entropy import unpacked

_P = ParamSpec("_P")

_SMOOTHING = 0.5
"""Pixels added to both sides of the Tversky index, so that small regions have smooth gradients."""


def in_full_precision(loss: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Decorate a loss function so that it runs without autocast."""

    @wraps(loss)
    def without_autocast(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        logits = args[0]
        assert isinstance(logits, Tensor)
        with full_precision(logits.device):
            return loss(*args, **kwargs)

    return without_autocast


@dataclass(frozen=True)
class Regions:
    """Predicted and true regions of the classes at the resolution of the logits.

    Attributes:
        probs: (B, K, h, w) probabilities, 0 where pixels are ignored. A binary model has two
            classes here.
        truth: (B, K, h, w) 1 where a class is present, 0 elsewhere and where pixels are ignored.
        labeled: (B, h, w) which pixels are not ignored.
    """

    probs: Tensor
    truth: Tensor
    labeled: Tensor

    @classmethod
    def of(cls, logits: Tensor, mask: Tensor, ignore_index: int, multilabel: bool) -> Regions:
        """Convert logits to probabilities, and sample the mask at their resolution.

        Args:
            logits: (B, K, h, w).
            mask: (B, H, W) class ids, or packed classes for ``multilabel``.
            ignore_index: Class id of pixels that are ignored; not used for ``multilabel``.
            multilabel: Classes may overlap; each has its own sigmoid.
        """
        precise = logits if logits.dtype == torch.float64 else logits.float()
        rows, columns = (
            _nearest(pixels, tokens, mask.device)
            for pixels, tokens in zip(mask.shape[1:], logits.shape[2:], strict=True)
        )
        targets = mask[:, rows[:, None], columns]
        if multilabel:
            labeled = targets != IGNORED
            probs, present = precise.sigmoid(), unpacked(targets, logits.shape[1])
        else:
            labeled = targets != ignore_index
            probs = probabilities(precise)
            present = F.one_hot(targets.where(labeled, 0), probs.shape[1])
        truth = present.movedim(-1, 1) * labeled[:, None]
        return cls(probs * labeled[:, None], truth.to(probs), labeled)


def _nearest(pixels: int, tokens: int, device: torch.device) -> Tensor:
    """(tokens,) pixel at the center of each token, as "nearest-exact" of PyTorch chooses it."""
    centers = (torch.arange(tokens, device=device) + 0.5) * (pixels / tokens)
    return centers.long().clamp(max=pixels - 1)


@in_full_precision
def tversky_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    ignore_index: int = 255,
    multilabel: bool = False,
) -> Tensor:
    """Tversky loss: 1 - Tversky index, averaged over the classes in the batch.

    The index is TP / (TP + alpha FP + beta FN), with sums of probabilities over all images of the
    batch (Salehi et al. 2017, arXiv 1706.05721, equation 3). A ``beta`` above ``alpha`` gives more
    recall and less precision.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) class ids, or packed classes for ``multilabel``.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        ignore_index: Class id of pixels that are ignored.
        multilabel: Classes may overlap; see `segformer.data.multilabel`.

    Returns:
        Scalar in [0, 1], float32 (float64 for float64 logits).
    """
    regions = Regions.of(logits, mask, ignore_index, multilabel)
    hits = (regions.probs * regions.truth).sum((0, 2, 3))
    false_positives = regions.probs.sum((0, 2, 3)) - hits
    truth = regions.truth.sum((0, 2, 3))
    errors = alpha * false_positives + beta * (truth - hits)
    index = (hits + _SMOOTHING) / (hits + errors + _SMOOTHING)
    occurs = truth > 0
    return ((1 - index) * occurs).sum() / occurs.sum().clamp(min=1)


def dice_loss(
    logits: Tensor, mask: Tensor, *, ignore_index: int = 255, multilabel: bool = False
) -> Tensor:
    """Dice loss: 1 - soft Dice coefficient, averaged over the classes in the batch.

    The Tversky loss with ``alpha`` = ``beta`` = 0.5 (Milletari et al. 2016, arXiv 1606.04797, with
    probabilities instead of their squares in the denominator). It is used together with
    cross-entropy: Dice improves classes with few pixels, cross-entropy the edges.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) class ids, or packed classes for ``multilabel``.
        ignore_index: Class id of pixels that are ignored.
        multilabel: Classes may overlap; see `segformer.data.multilabel`.

    Returns:
        Scalar in [0, 1], float32 (float64 for float64 logits).
    """
    return tversky_loss(
        logits, mask, alpha=0.5, beta=0.5, ignore_index=ignore_index, multilabel=multilabel
    )
