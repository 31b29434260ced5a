"""Losses of bilinearly upsampled logits at each pixel of a mask, without storing these logits.

The gradient with respect to the low-resolution logits is the adjoint of the upsampling applied to
the gradient at the pixels. So the loss and the gradient are computed together, in one pass over
chunks of pixels that fit in the cache (`segformer.training.upsampling`). Only the low-resolution
gradient is stored.

Legend: B batch, K classes, h w logits, H W mask, n pixels of a chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segformer.model.products import full_precision
from segformer.training.upsampling import Upsampling, upsampling

Chunks: TypeAlias = list[list[Tensor]]
"""Targets (n,) of each chunk of each image."""

Select: TypeAlias = Callable[[list[Upsampling], Chunks], Chunks]
"""Replaces the targets of pixels that are not used by the ignored value."""


class PixelLoss(ABC):
    """The loss of each pixel, and its gradient with respect to the logits of the pixel.

    Attributes:
        ignore_index: Target of pixels that are ignored.
    """

    ignore_index: int

    @abstractmethod
    def __call__(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss over the pixels that are not ignored, and the gradients.

        Args:
            logits: (n, K); may be overwritten.
            targets: (n,) int64.

        Returns:
            Loss, scalar; gradients (n, K), 0 for ignored pixels.
        """

    def weight(self, targets: Tensor) -> Tensor:
        """Return the number of pixels (n,) that are not ignored, or the sum of their weights."""
        return (targets != self.ignore_index).sum()


def mean_at_mask_size(
    logits: Tensor,
    mask: Tensor,
    loss: PixelLoss,
    *,
    avg_non_ignore: bool = True,
    select: Select | None = None,
) -> Tensor:
    """Return the mean of a loss over the pixels of the masks.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) targets, int64.
        loss: The loss of a pixel.
        avg_non_ignore: If true, divide by the (weighted) number of pixels that are not ignored.
            If false, divide by the number of all pixels.
        select: Chooses the pixels that are used. Default: all.

    Returns:
        Scalar, float32 (float64 for float64 logits). 0 if all pixels are ignored.
    """
    with full_precision(logits.device):
        mean: Tensor = _AtMaskSize.apply(  # type: ignore[no-untyped-call]
            logits, mask, loss, avg_non_ignore, select
        )
    return mean


class _AtMaskSize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        mask: Tensor,
        pixel_loss: PixelLoss,
        avg_non_ignore: bool,
        select: Select | None,
    ) -> Tensor:
        size = (mask.shape[1], mask.shape[2])
        precise = logits if logits.dtype == torch.float64 else logits.float()
        images = [upsampling(tokens, size) for tokens in precise.permute(0, 2, 3, 1)]
        targets = [
            image.arrange(values, outside=pixel_loss.ignore_index)
            for image, values in zip(images, mask, strict=True)
        ]
        if select is not None:
            targets = select(images, targets)
        if avg_non_ignore:
            weights = [pixel_loss.weight(chunk) for chunks in targets for chunk in chunks]
            divisor = torch.stack(weights).sum().to(precise).clamp(min=1e-12)
        else:
            divisor = precise.new_tensor(mask.numel())
        total = precise.new_zeros(())
        gradient = torch.empty_like(precise)  # in float16 it could underflow before it is scaled
        for i, image in enumerate(images):
            for chunk in range(image.chunks):
                loss, at_pixels = pixel_loss(image.logits(chunk), targets[i][chunk])
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
