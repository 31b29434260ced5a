"""Bilinear upsampling of a few rows at a time.

The results are those of `torch.nn.functional.interpolate` with ``align_corners=False``: pixel
centers are aligned, and positions outside the border take the value of the border.

Legend: B batch, h w tokens, H W size after upsampling, C channels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.model.layers import to_maps, to_tokens

_DENSE = 256
"""Largest row width at which, in bfloat16, a product with a dense matrix of weights is faster than
the interpolation of PyTorch."""


def source_positions(low: int, high: int, start: int, stop: int) -> Tensor:
    """Return the positions of upsampled rows (or columns) in units of source rows.

    Only this function defines the alignment: pixel centers, as with ``align_corners=False``.

    Args:
        low: Number of rows before upsampling.
        high: Number of rows after upsampling.
        start: First upsampled row.
        stop: One after the last upsampled row.

    Returns:
        (stop - start,) float64, from -0.5 to low - 0.5. Always on the CPU, because some devices
        do not support float64.
    """
    return (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (low / high) - 0.5


def source_rows(
    low: int, high: int, top: int, bottom: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source rows of each upsampled row, and their weight.

    The function works for columns too.

    Args:
        low: Number of rows before upsampling.
        high: Number of rows after upsampling.
        top: First upsampled row.
        bottom: One after the last upsampled row.
        like: Tensor that gives the device of the results and the dtype of the weights.

    Returns:
        For each upsampled row: the source row above and the source row below, int64 in
        0..low - 1, and the weight of the row below, 0..1. Each is (bottom - top,).
    """
    position = source_positions(low, high, top, bottom).clamp(min=0)
    above = position.long().clamp(max=low - 1)
    below = (above + 1).clamp(max=low - 1)
    weight = (position - above).to(like.dtype)
    return above.to(like.device), below.to(like.device), weight.to(like.device)


@lru_cache(maxsize=16)
def upsampling_matrix(low: int, high: int) -> Tensor:
    """Return the (high, low) float32 matrix that interpolates ``low`` values to ``high``."""
    with torch.inference_mode(False):  # the cached matrix may be used with gradients later
        matrix = torch.zeros(high, low)
        above, below, weight = source_rows(low, high, 0, high, matrix)
        matrix.scatter_add_(1, above[:, None], 1 - weight[:, None])
        return matrix.scatter_add_(1, below[:, None], weight[:, None])


def interpolate_rows(tokens: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Upsample tokens to ``size``, computing only some rows of the result.

    Args:
        tokens: (B, h, w, C).
        size: (H, W) of the complete result.
        top: First row to compute.
        bottom: One after the last row to compute.

    Returns:
        (B, bottom - top, W, C).
    """
    above, below, weight = source_rows(tokens.shape[1], size[0], top, bottom, tokens)
    return blend_rows(tokens[:, above], tokens[:, below], weight, size[1])


def blend_rows(above: Tensor, below: Tensor, weight: Tensor, width: int) -> Tensor:
    """Interpolate between pairs of rows, then along the rows to ``width``.

    Args:
        above: First row of each pair, (B, n, w, C).
        below: Second row of each pair, (B, n, w, C).
        weight: (n,) weight of the second row, 0..1.
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
