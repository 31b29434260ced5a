"""Binary cross-entropy of each class, for masks where classes may overlap.

Legend: B batch, K classes, h w logits, H W mask, n pixels of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.data.multilabel import IGNORED
from segformer.training.losses.at_mask_size import PixelLoss, mean_at_mask_size


def binary_cross_entropy_at_mask_size(
    logits: Tensor,
    mask: Tensor,
    *,
    class_weights: Tensor | None = None,
    avg_non_ignore: bool = True,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Binary cross-entropy of bilinearly upsampled logits, averaged over pixels and classes.

    See `segformer.training.losses.at_mask_size`.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) packed classes, int64; see `segformer.data.multilabel`.
        class_weights: (K,) weights of the pixels where a class is present: ``pos_weight`` of
            `torch.nn.functional.binary_cross_entropy_with_logits`.
        avg_non_ignore: If true, divide by the number of pixels that are not ignored. If false,
            divide by the number of all pixels.
        label_smoothing: Move the targets 0 and 1 by half of this fraction towards each other.
        focal_gamma: Multiply the loss of each class at each pixel by (1 - p) to this power, where
            p is the probability of the truth: the focal loss (Lin et al. 2017, arXiv 1708.02002,
            equation 4).

    Returns:
        Scalar, float32 (float64 for float64 logits). 0 if no pixel is labeled.

    Raises:
        ValueError: ``label_smoothing`` or ``focal_gamma`` is out of range, or both are used.
    """
    if not 0 <= label_smoothing < 1 or focal_gamma < 0 or (label_smoothing and focal_gamma):
        raise ValueError(
            "label_smoothing must be at least 0 and less than 1, focal_gamma at least 0, and one "
            f"of them 0; they are {label_smoothing} and {focal_gamma}"
        )
    return mean_at_mask_size(
        logits,
        mask,
        _BinaryCrossEntropy(IGNORED, class_weights, label_smoothing, focal_gamma),
        avg_non_ignore=avg_non_ignore,
    )


def unpacked(mask: Tensor, num_classes: int) -> Tensor:
    """Which classes are present: packed classes (...), int64 -> bool (..., K)."""
    bits = torch.arange(num_classes, device=mask.device)
    return (mask[..., None] >> bits & 1).bool()


@dataclass(frozen=True)
class _BinaryCrossEntropy(PixelLoss):
    ignore_index: int
    class_weights: Tensor | None
    label_smoothing: float
    focal_gamma: float

    def __call__(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss over the pixels that are not ignored, and the gradients.

        Of the focal loss, with s = 1 where a class is present and -1 elsewhere, and
        p = sigmoid(s x), the loss is w (1 - p)^gamma (-log p), and its derivative
        -s w (1 - p)^gamma (gamma p (-log p) + 1 - p).
        """
        classes = logits.shape[1]
        present = unpacked(targets, classes)
        scale = (targets != self.ignore_index)[:, None].to(logits) / classes
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        if self.focal_gamma:
            signed = logits.where(present, -logits)
            rest, nll = torch.sigmoid(-signed), F.softplus(-signed)
            focused = scale * rest**self.focal_gamma
            if weights is not None:
                focused = focused * weights.where(present, 1)
            slope = focused * (self.focal_gamma * (1 - rest) * nll + rest)
            return (focused * nll).sum(), slope.where(~present, -slope)
        target = present.to(logits)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(
            logits, target, scale, pos_weight=weights, reduction="sum"
        )
        gradient = torch.sigmoid(logits)
        if weights is not None:
            gradient = gradient * (1 + (weights - 1) * target)
            target = weights * target
        return loss, (gradient - target) * scale
