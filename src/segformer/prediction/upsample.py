"""Class ids at full size from low-resolution logits, a strip of rows at a time.

Logits of K x H x W are never stored: rows are interpolated, decided and forgotten.

Legend: K classes, h w logits, H W picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segformer.model.segformer import probabilities

_STRIP_VALUES = 1 << 21
"""Logits interpolated at a time: 8 MB of float32."""


def decide(
    views: Sequence[Tensor], size: tuple[int, int], *, confidence: bool = False
) -> tuple[NDArray[np.integer], NDArray[np.float32] | None]:
    """The most probable class of each pixel.

    One view's logits are compared as they are; of several (scales, flips) the probabilities are
    averaged, as the papers' multi-scale protocol does.

    Args:
        views: Logits (K, h, w), each of its own h and w; K = 1 is a binary model's, whose
            foreground is where the probability exceeds one half.
        size: (height, width) of the picture, pixels.
        confidence: Also return the probability of the decided class.

    Returns:
        Class ids (H, W), uint8 or, above 256 classes, uint16; probabilities (H, W) or None.
    """
    height, width = size
    classes = views[0].shape[0]
    ids = np.empty(size, np.uint8 if classes <= 256 else np.uint16)
    certainty = np.empty(size, np.float32) if confidence else None
    rows = max(1, _STRIP_VALUES // (width * max(classes, 2)))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strips = [interpolate_rows(view, size, top, bottom) for view in views]
        if len(strips) == 1 and not confidence:
            winner = strips[0].argmax(0) if classes > 1 else strips[0][0] > 0
        else:
            shares = sum(probabilities(strip[None])[0] for strip in strips) / len(strips)
            assert isinstance(shares, Tensor)
            best, winner = shares.max(0)
            if certainty is not None:
                certainty[top:bottom] = best.cpu().numpy()
        ids[top:bottom] = winner.cpu().numpy()
    return ids, certainty


def interpolate_rows(logits: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Rows ``top`` to ``bottom`` of logits (K, h, w) upsampled bilinearly to ``size``.

    As `torch.nn.functional.interpolate` with ``align_corners=False`` gives them.

    Returns:
        (K, bottom - top, W).
    """
    height, width = size
    low_height = logits.shape[1]
    # Pixel centres, clamped at the first row as PyTorch does
    position = (torch.arange(top, bottom, device=logits.device) + 0.5) * (low_height / height)
    position = (position - 0.5).clamp(min=0)
    above = position.long().clamp(max=low_height - 1)
    below = (above + 1).clamp(max=low_height - 1)
    share = (position - above).to(logits.dtype)[:, None]
    rows = torch.lerp(logits[:, above], logits[:, below], share)
    return F.interpolate(rows, size=width, mode="linear", align_corners=False)
