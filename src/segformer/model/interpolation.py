"""Bilinear upsampling a chunk of rows at a time.

As `torch.nn.functional.interpolate` with ``align_corners=False`` does it: pixel centers are
aligned, and what would lie outside takes the border's value.

Legend: B batch, h w tokens, H W size after upsampling, C channels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.model.layers import to_maps, to_tokens

_DENSE = 256
"""Values a row up to which, in bfloat16, the product with a matrix mostly of zeros is faster than
PyTorch's interpolation."""


def source_positions(low: int, high: int, start: int, stop: int) -> Tensor:
    """Where upsampled rows, or columns, lie among those before upsampling.

    The only place that knows the alignment: pixel centers, as with ``align_corners=False``.

    Args:
        low: Rows before upsampling.
        high: Rows after.
        start: First upsampled row.
        stop: Row after the last one.

    Returns:
        (stop - start,) float64, from -0.5 to low - 0.5; on the CPU, as not every device has
        float64.
    """
    return (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (low / high) - 0.5


def source_rows(
    low: int, high: int, top: int, bottom: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Between which rows each upsampled row lies.

    The same holds for columns.

    Args:
        low: Rows before upsampling.
        high: Rows after.
        top: First upsampled row wanted.
        bottom: Row after the last one wanted.
        like: Results are where this is, weights of its type.

    Returns:
        For each wanted row the row above it, the row below it, both int64 in 0..low - 1, and the
        weight of the one below, 0..1.
    """
    position = source_positions(low, high, top, bottom).clamp(min=0)
    above = position.long().clamp(max=low - 1)
    below = (above + 1).clamp(max=low - 1)
    weight = (position - above).to(like.dtype)
    return above.to(like.device), below.to(like.device), weight.to(like.device)


@lru_cache(maxsize=16)
def upsampling_matrix(low: int, high: int) -> Tensor:
    """(high, low) weights with which ``low`` values make ``high`` interpolated ones, float32."""
    with torch.inference_mode(False):  # it is kept, and may meet gradients later
        matrix = torch.zeros(high, low)
        above, below, weight = source_rows(low, high, 0, high, matrix)
        matrix.scatter_add_(1, above[:, None], 1 - weight[:, None])
        return matrix.scatter_add_(1, below[:, None], weight[:, None])


def interpolate_rows(tokens: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Rows ``top`` to ``bottom`` of tokens (B, h, w, C) upsampled to ``size`` = (H, W).

    Returns:
        (B, bottom - top, W, C).
    """
    above, below, weight = source_rows(tokens.shape[1], size[0], top, bottom, tokens)
    return blend_rows(tokens[:, above], tokens[:, below], weight, size[1])


def blend_rows(above: Tensor, below: Tensor, weight: Tensor, width: int) -> Tensor:
    """Rows between two others each, upsampled to ``width``.

    Args:
        above: (B, n, w, C).
        below: (B, n, w, C).
        weight: (n,) of the row below.
        width: W.

    Returns:
        (B, n, W, C).
    """
    rows = torch.lerp(above, below, weight[:, None, None])
    if rows.shape[2] == width:
        return rows
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and width <= _DENSE:
        return upsampling_matrix(rows.shape[2], width).to(rows.dtype) @ rows
    size = (rows.shape[1], width)
    return to_tokens(F.interpolate(to_maps(rows), size, mode="bilinear", align_corners=False))
