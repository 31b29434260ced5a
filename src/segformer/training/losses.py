"""Losses of low-resolution logits against full-resolution masks.

Legend: B batch, K classes, h w logits, H W mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.model.segformer import probabilities


def cross_entropy_at_mask_size(
    logits: Tensor,
    mask: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    average_over_ignored: bool = False,
) -> Tensor:
    """Cross-entropy of bilinearly upsampled logits, without keeping the upsampled logits.

    The gradient with respect to the logits is the adjoint of the upsampling applied to
    softmax - one-hot, so it is computed together with the loss, a picture at a time, and only
    its low-resolution form is kept. Memory of K x H x W is taken for one picture, not for B.

    Args:
        logits: (B, K, h, w); K = 1 means binary, with a sigmoid.
        mask: (B, H, W) class ids, int64.
        class_weights: (K,), or (2,) for a binary model; as in `torch.nn.functional.cross_entropy`.
        ignore_index: Class id of pixels that do not count.
        average_over_ignored: Divide by all pixels, as the original training did, rather than by
            the (weighted) labelled ones.

    Returns:
        Scalar, float32. 0 where nothing is labelled.
    """
    loss: Tensor = _CrossEntropyAtMaskSize.apply(  # type: ignore[no-untyped-call]
        logits, mask, class_weights, ignore_index, average_over_ignored
    )
    return loss


class _CrossEntropyAtMaskSize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        mask: Tensor,
        class_weights: Tensor | None,
        ignore_index: int,
        average_over_ignored: bool,
    ) -> Tensor:
        labelled = mask != ignore_index
        if average_over_ignored:
            divisor = torch.tensor(float(mask.numel()), device=mask.device)
        elif class_weights is None:
            divisor = labelled.sum()
        else:
            divisor = class_weights[mask[labelled]].sum()
        divisor = divisor.clamp(min=1e-12)
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits)
        for i, (low, ids) in enumerate(zip(logits, mask, strict=True)):
            with torch.enable_grad():
                leaf = low[None].detach().float().requires_grad_()
                loss = _plain(leaf, ids[None], class_weights, ignore_index) / divisor
                (gradient[i : i + 1],) = torch.autograd.grad(loss, leaf)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None, None


def _plain(logits: Tensor, mask: Tensor, class_weights: Tensor | None, ignore_index: int) -> Tensor:
    """Sum over the pixels of weight times cross-entropy."""
    full = F.interpolate(logits, size=mask.shape[1:], mode="bilinear", align_corners=False)
    if logits.shape[1] > 1:
        return F.cross_entropy(
            full, mask, weight=class_weights, ignore_index=ignore_index, reduction="sum"
        )
    labelled = mask != ignore_index
    target = (mask == 1).to(full.dtype)
    weights = labelled.to(full.dtype)
    if class_weights is not None:
        weights = weights * class_weights[(mask == 1).long()]
    return F.binary_cross_entropy_with_logits(full[:, 0], target, weights, reduction="sum")


def dice_loss(logits: Tensor, mask: Tensor, *, ignore_index: int = 255) -> Tensor:
    """1 - soft Dice, averaged over the classes that occur in the batch.

    At the logits' resolution, the mask sampled there: a region term that holds up classes of
    few pixels, beside cross-entropy, which minds the edges.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) class ids.
        ignore_index: Class id of pixels that do not count.

    Returns:
        Scalar in [0, 1], float32.
    """
    small = F.interpolate(mask[:, None].float(), size=logits.shape[2:], mode="nearest-exact")
    ids = small[:, 0].long()
    labelled = ids != ignore_index
    shares = probabilities(logits.float())
    one_hot = F.one_hot(ids.masked_fill(~labelled, 0), shares.shape[1]).movedim(-1, 1)
    one_hot = one_hot * labelled[:, None]
    shares = shares * labelled[:, None]
    overlap = (shares * one_hot).sum((0, 2, 3))
    size = shares.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
    occurs = one_hot.sum((0, 2, 3)) > 0
    dice = (2 * overlap + 1) / (size + 1)
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)
