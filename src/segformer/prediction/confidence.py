"""The confidence of some of an image's pixels, which is much cheaper than that of all of them.

Legend: K classes, h w logits, H W image, n m rows and columns of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segformer.model.interpolation import source_rows
from segformer.model.segformer import probabilities
from segformer.prediction.prediction import SampledConfidence


def sample_confidence(
    tta_logits: Sequence[Tensor], size: tuple[int, int], most: int
) -> SampledConfidence:
    """Confidence of at most ``most`` pixels, the same as `logits_to_label_map` gives them.

    Args:
        tta_logits: Logits (K, h, w) of each view; h and w can differ.
        size: (H, W) of the image.
        most: Number of pixels, at least 1.
    """
    height, width = size
    step = max(1, math.isqrt(max(0, height * width - 1) // most))
    while -(-height // step) * -(-width // step) > most:
        step += 1
    rows, columns = (torch.arange(min(step, side) // 2, side, step) for side in size)
    probs = [
        probabilities(_at(_at(logits, rows, height, 1), columns, width, 2)[None])[0]
        for logits in tta_logits
    ]
    best = torch.stack(probs).mean(0).amax(0)
    return SampledConfidence(rows.numpy(), columns.numpy(), best.cpu().numpy())


def _at(logits: Tensor, pixels: Tensor, high: int, dim: int) -> Tensor:
    """Logits (K, h, w) interpolated along one dimension to some of ``high`` pixels."""
    first, second, weight = source_rows(logits.shape[dim], high, 0, high, logits)
    chosen = pixels.to(logits.device)
    weight = weight[chosen].view(1, *(-1 if i == dim else 1 for i in (1, 2)))
    return torch.lerp(
        logits.index_select(dim, first[chosen]), logits.index_select(dim, second[chosen]), weight
    )
