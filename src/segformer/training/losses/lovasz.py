"""The Lovasz loss.

Legend: B batch, K classes, h w logits, H W mask, n labeled pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segformer.training.losses.regions import Regions, in_full_precision


@in_full_precision
def lovasz_loss(
    logits: Tensor, mask: Tensor, *, ignore_index: int = 255, multilabel: bool = False
) -> Tensor:
    """Lovasz-softmax loss: a convex surrogate of 1 - IoU, averaged over the classes in the batch.

    The loss is computed at the resolution of the logits, with the mask sampled to that size, over
    all images of the batch together. See Berman et al. 2018, arXiv 1705.08790, equations 9 and 11.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) class ids, or packed classes for ``multilabel``.
        ignore_index: Class id of pixels that are ignored.
        multilabel: Classes may overlap, and each has its own sigmoid instead of the softmax; see
            `segformer.data.multilabel`.

    Returns:
        Scalar in [0, 1], float32 (float64 for float64 logits).
    """
    regions = Regions.of(logits, mask, ignore_index, multilabel)
    probs = regions.probs.movedim(1, -1)[regions.labeled]  # (n, K)
    truth = regions.truth.movedim(1, -1)[regions.labeled]
    losses = []
    for class_id in truth.any(0).nonzero()[:, 0].tolist():
        foreground = truth[:, class_id]
        errors, order = (foreground - probs[:, class_id]).abs().sort(descending=True)
        sorted_foreground = foreground[order]
        remaining = sorted_foreground.sum() - sorted_foreground.cumsum(0)
        union = sorted_foreground.sum() + (1 - sorted_foreground).cumsum(0)
        jaccard = 1 - remaining / union
        losses.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean() if losses else probs.sum()
