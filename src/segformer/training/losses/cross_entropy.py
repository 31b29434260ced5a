"""Cross-entropy of one class per pixel, with its variants: weights, smoothing, focal loss, OHEM.

Legend: B batch, K classes, h w logits, H W mask, n pixels of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from segformer.training.losses.at_mask_size import Chunks, PixelLoss, mean_at_mask_size
from segformer.training.upsampling import Upsampling


@dataclass(frozen=True)
class OHEM:
    """Online hard example mining: only pixels with a low probability of their class are used.

    Shrivastava et al. 2016, arXiv 1604.03540. Like ``OHEMPixelSampler`` of mmsegmentation, but
    ``min_kept`` is a fraction, not a number of pixels.

    Attributes:
        threshold: Pixels with a probability of their class up to this value are used.
        min_kept: Minimum fraction of the labeled pixels that are used, lowest probability first.
    """

    threshold: float = 0.7
    min_kept: float = 0.0625


def cross_entropy_at_mask_size(
    logits: Tensor,
    mask: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    avg_non_ignore: bool = True,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    ohem: OHEM | None = None,
) -> Tensor:
    """Cross-entropy of bilinearly upsampled logits, without storing the upsampled logits.

    See `segformer.training.losses.at_mask_size`.

    Args:
        logits: (B, K, h, w). K = 1 is a binary model with a sigmoid; its classes are 0 and 1.
        mask: (B, H, W) class ids, int64.
        class_weights: (K,), or (2,) for a binary model; as in `torch.nn.functional.cross_entropy`.
        ignore_index: Class id of pixels that are ignored.
        avg_non_ignore: If true, divide by the (weighted) number of pixels that are not ignored.
            If false, divide by the number of all pixels, as in the original training.
        label_smoothing: Fraction of the target that is spread over all classes, as in PyTorch;
            at least 0 and less than 1.
        focal_gamma: Multiply the loss of each pixel by (1 - p) to this power, where p is the
            probability of its class: the focal loss (Lin et al. 2017, arXiv
            1708.02002, equation 4).
        ohem: If given, use only hard pixels; the average is over these pixels.

    Returns:
        Scalar, float32 (float64 for float64 logits). 0 if no pixel is labeled.

    Raises:
        ValueError: The mask contains an invalid class id, ``label_smoothing`` or ``focal_gamma``
            is out of range, or both are used.
    """
    if not 0 <= label_smoothing < 1 or focal_gamma < 0 or (label_smoothing and focal_gamma):
        raise ValueError(
            "label_smoothing must be at least 0 and less than 1, focal_gamma at least 0, and one "
            f"of them 0; they are {label_smoothing} and {focal_gamma}"
        )
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)  # sigmoid(x) = softmax(0, x)
    invalid = ((mask < 0) | (mask >= logits.shape[1])) & (mask != ignore_index)
    if invalid.any():
        raise ValueError(
            f"the mask contains class id {mask[invalid][0].item()}; valid ids are 0 to "
            f"{logits.shape[1] - 1}, and {ignore_index} for ignored pixels"
        )
    return mean_at_mask_size(
        logits,
        mask,
        _CrossEntropy(ignore_index, class_weights, label_smoothing, focal_gamma),
        avg_non_ignore=avg_non_ignore,
        select=None if ohem is None else partial(_keep_hard, ignore_index=ignore_index, ohem=ohem),
    )


_SMALLEST_PROB = 1e-30
"""Smaller float32 probabilities are imprecise; their logarithm is computed with logsumexp."""


@dataclass(frozen=True)
class _CrossEntropy(PixelLoss):
    ignore_index: int
    class_weights: Tensor | None
    label_smoothing: float
    focal_gamma: float

    def __call__(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss over the pixels that are not ignored, and the gradients.

        The gradient of cross-entropy is p - one-hot, where p is the softmax. Label smoothing
        replaces the one-hot by the smoothed target; the focal loss multiplies the gradient.
        """
        classes = logits.shape[1]
        counted = targets != self.ignore_index
        ids = targets.where(counted, 0)
        gradient, prob, nll, place = _softmax(logits, ids)
        even = self.class_weights is None
        weights = logits.new_ones(classes)
        if self.class_weights is not None:
            weights = self.class_weights.to(logits)
        weight = weights[ids] * counted
        smoothed = self.label_smoothing / classes * counted
        loss = (1 - self.label_smoothing) * weight * nll
        target = (1 - self.label_smoothing) * weight
        if self.focal_gamma:
            rest = (1 - prob).clamp(min=1e-12)
            focus = rest**self.focal_gamma
            loss = loss * focus
            target = target * (focus + self.focal_gamma * focus / rest * prob * nll)
        if self.label_smoothing:
            normalizer = nll + logits.view(-1)[place]
            loss = loss + smoothed * (normalizer * weights.sum() - logits @ weights)
        if even and not self.focal_gamma:
            if _waiting_costs(gradient):
                gradient.masked_fill_(~counted[:, None], 0)
            else:
                gradient.index_fill_(0, (~counted).nonzero()[:, 0], 0)
        else:
            gradient *= (target + smoothed * weights.sum())[:, None]
        gradient.view(-1)[place] -= target
        if self.label_smoothing:
            gradient -= smoothed[:, None] * weights
        return loss.sum(), gradient

    def weight(self, targets: Tensor) -> Tensor:
        """Return the sum of the class weights of the pixels that are not ignored."""
        if self.class_weights is None:
            return super().weight(targets)
        counted = targets != self.ignore_index
        return (self.class_weights[targets.where(counted, 0)] * counted).sum()


def _softmax(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the softmax and the values of the class of each pixel.

    Args:
        logits: (n, K).
        ids: (n,) class ids.

    Returns:
        Probabilities (n, K). For the class of each pixel, each (n,): its probability, its negative
        log likelihood, and its index in the flattened (n, K).
    """
    probs = logits.softmax(1)
    place = torch.arange(len(ids), device=ids.device) * logits.shape[1] + ids
    prob = probs.view(-1)[place]
    nll = -prob.log()
    lost = prob < _SMALLEST_PROB
    if _waiting_costs(logits) or lost.any():
        nll = torch.where(lost, logits.logsumexp(1) - logits.view(-1)[place], nll)
    return probs, prob, nll, place


def _waiting_costs(tensor: Tensor) -> bool:
    """Whether reading a value makes Python wait for the device, as on a GPU."""
    return tensor.device.type != "cpu"


def _keep_hard(images: list[Upsampling], ids: Chunks, *, ignore_index: int, ohem: OHEM) -> Chunks:
    """Return the class ids of the chunks, with ``ignore_index`` for all but the hard pixels."""
    probs = []  # probability of the class of each pixel; 2 for ignored pixels
    for image, chunks in zip(images, ids, strict=True):
        for chunk, classes in enumerate(chunks):
            counted = classes != ignore_index
            _, prob, _, _ = _softmax(image.logits(chunk), classes.where(counted, 0))
            probs.append(prob.where(counted, 2))
    everywhere = torch.cat(probs)
    labeled = int((everywhere < 2).sum())
    if labeled == 0:
        return ids
    min_kept = max(1, round(ohem.min_kept * labeled))
    threshold = everywhere.kthvalue(min_kept).values.clamp(min=ohem.threshold)
    kept = iter(probs)
    return [
        [classes.where(next(kept) <= threshold, ignore_index) for classes in chunks]
        for chunks in ids
    ]
