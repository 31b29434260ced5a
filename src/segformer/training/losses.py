"""Loss functions for low-resolution logits and full-resolution masks.

Legend: B batch, K classes, h w logits, H W mask, n pixels of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from segformer.model.products import full_precision
from segformer.model.segformer import probabilities
from segformer.training.upsampling import Upsampling, upsampling

_P = ParamSpec("_P")


@dataclass(frozen=True)
class OHEM:
    """Online hard example mining: only pixels with a low probability of their class are used.

    Like ``OHEMPixelSampler`` of mmsegmentation, but ``min_kept`` is a fraction, not a number of
    pixels.

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

    The gradient with respect to the logits is the adjoint of the upsampling applied to
    softmax - one-hot. So the loss and the gradient are computed together, in one pass over chunks
    of pixels that fit in the cache (`segformer.training.upsampling`). Only the low-resolution
    gradient is stored.

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
            probability of its class: the focal loss (Lin et al. 2017, equation 4).
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
    arithmetic = _PixelLoss(ignore_index, class_weights, label_smoothing, focal_gamma)
    with full_precision(logits.device):
        loss: Tensor = _AtMaskSize.apply(  # type: ignore[no-untyped-call]
            logits, mask, arithmetic, avg_non_ignore, ohem
        )
    return loss


_SMALLEST_PROB = 1e-30
"""Smaller float32 probabilities are imprecise; their logarithm is computed with logsumexp."""


@dataclass(frozen=True)
class _PixelLoss:
    """The loss of each pixel, and its gradient with respect to the logits of the pixel."""

    ignore_index: int
    class_weights: Tensor | None
    label_smoothing: float
    focal_gamma: float

    def __call__(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss over the pixels that are not ignored, and the gradients.

        The gradient of cross-entropy is p - one-hot, where p is the softmax. Label smoothing
        replaces the one-hot by the smoothed target; the focal loss multiplies the gradient.

        Args:
            logits: (n, K).
            ids: (n,) class ids.

        Returns:
            Loss, scalar; gradients (n, K), 0 for ignored pixels.
        """
        classes = logits.shape[1]
        counted = ids != self.ignore_index
        ids = ids.where(counted, 0)
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


class _AtMaskSize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        mask: Tensor,
        arithmetic: _PixelLoss,
        avg_non_ignore: bool,
        ohem: OHEM | None,
    ) -> Tensor:
        ignore, size = arithmetic.ignore_index, (mask.shape[1], mask.shape[2])
        precise = logits if logits.dtype == torch.float64 else logits.float()
        images = [upsampling(tokens, size) for tokens in precise.permute(0, 2, 3, 1)]
        ids = [
            image.arrange(values, outside=ignore)
            for image, values in zip(images, mask, strict=True)
        ]
        if ohem is not None:
            ids = _keep_hard(images, ids, ignore, ohem)
        if not avg_non_ignore:
            divisor = precise.new_tensor(mask.numel())
        else:
            divisor = _counted(ids, arithmetic).to(precise).clamp(min=1e-12)
        total = precise.new_zeros(())
        gradient = torch.empty_like(precise)  # in float16 it could underflow before it is scaled
        for i, image in enumerate(images):
            for chunk in range(image.chunks):
                loss, at_pixels = arithmetic(image.logits(chunk), ids[i][chunk])
                image.add(chunk, at_pixels)
                total += loss
            gradient[i] = (image.gradient() / divisor).permute(2, 0, 1)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        gradient = gradient * upstream[0].to(gradient.dtype)
        return gradient.to(ctx.dtype), None, None, None, None


def _counted(ids: list[list[Tensor]], arithmetic: _PixelLoss) -> Tensor:
    """Return the number of pixels that are not ignored, or the sum of their class weights."""
    counted = [(chunk, chunk != arithmetic.ignore_index) for image in ids for chunk in image]
    weights = arithmetic.class_weights
    if weights is None:
        return torch.stack([mask.sum() for _, mask in counted]).sum()
    return torch.stack(
        [(weights[chunk.where(mask, 0)] * mask).sum() for chunk, mask in counted]
    ).sum()


def _keep_hard(
    images: list[Upsampling], ids: list[list[Tensor]], ignore_index: int, ohem: OHEM
) -> list[list[Tensor]]:
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


def _in_full_precision(loss: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Decorate a loss function so that it runs without autocast."""

    @wraps(loss)
    def without_autocast(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        logits = args[0]
        assert isinstance(logits, Tensor)
        with full_precision(logits.device):
            return loss(*args, **kwargs)

    return without_autocast


@_in_full_precision
def lovasz_loss(logits: Tensor, mask: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Lovasz-softmax loss: a convex surrogate of 1 - IoU, averaged over the classes in the batch.

    The loss is computed at the resolution of the logits, with the mask sampled to that size, over
    all images of the batch together. See Berman et al. 2018, equations 9 and 11.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) class ids.
        ignore_index: Class id of pixels that are ignored.

    Returns:
        Scalar in [0, 1], float32.
    """
    ids, labeled = _sampled(mask, logits, ignore_index)
    probs = probabilities(logits.float()).movedim(1, -1)[labeled]  # (n, K)
    ids = ids[labeled]
    losses = []
    for class_id in torch.unique(ids).tolist():
        foreground = (ids == class_id).float()
        errors, order = (foreground - probs[:, class_id]).abs().sort(descending=True)
        sorted_foreground = foreground[order]
        remaining = sorted_foreground.sum() - sorted_foreground.cumsum(0)
        union = sorted_foreground.sum() + (1 - sorted_foreground).cumsum(0)
        jaccard = 1 - remaining / union
        losses.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean() if losses else logits.float().sum() * 0


@_in_full_precision
def dice_loss(logits: Tensor, mask: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Dice loss: 1 - soft Dice coefficient, averaged over the classes in the batch.

    The loss is computed at the resolution of the logits, with the mask sampled to that size. It is
    used together with cross-entropy: Dice improves classes with few pixels, cross-entropy the
    edges.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) class ids.
        ignore_index: Class id of pixels that are ignored.

    Returns:
        Scalar in [0, 1], float32.
    """
    ids, labeled = _sampled(mask, logits, ignore_index)
    probs = probabilities(logits.float())
    one_hot = F.one_hot(ids.masked_fill(~labeled, 0), probs.shape[1]).movedim(-1, 1)
    one_hot = one_hot * labeled[:, None]
    probs = probs * labeled[:, None]
    overlap = (probs * one_hot).sum((0, 2, 3))
    size = probs.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
    occurs = one_hot.sum((0, 2, 3)) > 0
    dice = (2 * overlap + 1) / (size + 1)
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


def _sampled(mask: Tensor, logits: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return class ids at the size of the logits, (B, h, w), and which pixels are not ignored."""
    small = F.interpolate(mask[:, None].float(), size=logits.shape[2:], mode="nearest-exact")
    ids = small[:, 0].long()
    return ids, ids != ignore_index
