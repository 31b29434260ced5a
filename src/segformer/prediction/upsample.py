"""Class ids at full size from low-resolution logits, without the logits at full size.

Bilinear interpolation is a convex combination of the four corners of a cell, the square between
neighboring logits. So a class that is the best at all four corners is the best everywhere
between, and where the corners disagree only classes can win whose largest corner reaches the
smallest corner of some class throughout. Interpolated are these few classes, in these few cells.

Legend: K classes, h w logits, H W image, M cells, P pairs of a cell and a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segformer.machine import idle_cpus_only
from segformer.model.interpolation import interpolate_rows, source_positions
from segformer.model.segformer import probabilities

_CHUNK_VALUES = 1 << 21
"""Logits interpolated at a time: 8 MB of float32."""

_CELL_VALUES = 1 << 19
"""Values of each corner of the cells that are settled at a time: 2 MB of float32.

Cells of more than four columns of pixels count accordingly more.
"""


def logits_to_label_map(
    views: Sequence[Tensor], size: tuple[int, int], *, confidence: bool = False
) -> tuple[NDArray[np.integer], NDArray[np.float32] | None]:
    """The most probable class of each pixel.

    One view's logits are compared as they are; of several (scales, flips) the probabilities are
    averaged, as the papers' multi-scale protocol does.

    Args:
        views: Logits (K, h, w), each of its own h and w; K = 1 is a binary model's, whose
            foreground is where the probability exceeds one half.
        size: (height, width) of the image, pixels.
        confidence: Also return the probability of the decided class. It takes every class's
            logit at every pixel, chunk by chunk, which is some ten times slower.

    Returns:
        Class ids (H, W), uint8 or, above 256 classes, uint16; probabilities (H, W) or None.
    """
    with idle_cpus_only() if views[0].device.type == "cpu" else nullcontext():
        return _label_map(views, size, confidence)


def _label_map(
    views: Sequence[Tensor], size: tuple[int, int], confidence: bool
) -> tuple[NDArray[np.integer], NDArray[np.float32] | None]:
    classes = views[0].shape[0]
    dtype = np.uint8 if classes <= 256 else np.uint16
    if len(views) == 1 and classes > 1 and not confidence:
        return upsampled_argmax(views[0], size).cpu().numpy().astype(dtype, copy=False), None
    height, width = size
    ids = np.empty(size, dtype)
    certainty = np.empty(size, np.float32) if confidence else None
    tokens = [view.permute(1, 2, 0)[None] for view in views]
    rows = max(1, _CHUNK_VALUES // (width * max(classes, 2)))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        chunks = [
            interpolate_rows(view, size, top, bottom).permute(0, 3, 1, 2) for view in tokens
        ]  # (1, K, rows, W)
        if len(chunks) == 1 and not confidence:
            winner = chunks[0][0, 0] > 0
        else:
            probs = torch.stack([probabilities(chunk)[0] for chunk in chunks])
            best, winner = probs.mean(0).max(0)
            if certainty is not None:
                certainty[top:bottom] = best.cpu().numpy()
        ids[top:bottom] = winner.cpu().numpy()
    return ids, certainty


def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax of the logits upsampled bilinearly to ``size``, for any ratio, up or down.

    Where the two best classes are within rounding of each other, either may be returned. A NaN
    beats every number, as in `torch.argmax`.

    Args:
        logits: (K, h, w), K at least 2.
        size: (H, W).

    Returns:
        (H, W), uint8 or, above 256 classes, int32.
    """
    tokens = logits.permute(1, 2, 0).contiguous()
    height, width, classes = tokens.shape
    rows = _Cells.along(height, size[0], logits.device)
    columns = _Cells.along(width, size[1], logits.device)
    winner = tokens.argmax(-1).to(torch.uint8 if classes <= 256 else torch.int32)
    corner = winner.new_empty(height + 2, width + 2)  # winner, its border repeated
    corner[1:-1, 1:-1] = winner
    corner[0], corner[-1] = corner[1], corner[-2]
    corner[:, 0], corner[:, -1] = corner[:, 1], corner[:, -2]

    # As if every cell were of one class: that of its first corner
    ids = corner.index_select(1, columns.of_pixel).index_select(0, rows.of_pixel)

    # In one line, where a cell's next corner is one further, and the one below a row further. The
    # last of a row meets the next row's first, but begins no cell
    line, below = corner.view(-1), width + 2
    across, down = line[1:] == line[:-1], line[below:] == line[:-below]
    agree = across[:-below] & across[below:] & down[:-1]
    cell = (~agree).nonzero()[:, 0]
    row, column = cell // below, cell % below
    column_count = F.pad(columns.count, (0, 1))
    some = (rows.count[row] > 0) & (column_count[column] > 0)  # pixels lie in the cell
    cells = torch.stack([row[some], column[some]], 1)
    per_row = max(classes, classes * columns.pixel.shape[1] // 4)
    for part in torch.split(cells, max(1, _CELL_VALUES // per_row)):
        _settle(ids, tokens, rows, columns, *part.unbind(1))
    return ids


@dataclass(frozen=True)
class _Cells:
    """The cells along one side: low + 1 of them, the outermost from the border to itself.

    Attributes:
        of_pixel: (high,) in which cell each pixel lies.
        count: (low + 1,) how many pixels lie in each cell.
        pixel: (low + 1, n) which; where there are fewer than n, the last is repeated.
        weight: (low + 1, n) weight of the cell's second row in each of these.
    """

    of_pixel: Tensor
    count: Tensor
    pixel: Tensor
    weight: Tensor

    @classmethod
    def along(cls, low: int, high: int, device: torch.device) -> _Cells:
        """Cells between ``low`` rows, or columns, of logits under ``high`` of pixels."""
        position = source_positions(low, high, 0, high) + 1  # the outermost cell is number 0
        of_pixel = position.long()
        count = torch.bincount(of_pixel, minlength=low + 1)
        end = count.cumsum(0)
        step = torch.arange(int(count.max()))
        pixel = torch.minimum((end - count)[:, None] + step, (end - 1)[:, None]).clamp(min=0)
        weight = (position - of_pixel)[pixel].float()
        return cls(*(tensor.to(device) for tensor in (of_pixel, count, pixel, weight)))


def _settle(
    ids: Tensor, tokens: Tensor, rows: _Cells, columns: _Cells, row: Tensor, column: Tensor
) -> None:
    """Write the classes of the cells at ``row`` and ``column``, (M,) each, into ``ids``."""
    height, width, classes = tokens.shape
    flat = tokens.view(height * width, classes)
    top, bottom = (row - 1).clamp(min=0) * width, row.clamp(max=height - 1) * width
    left, right = (column - 1).clamp(min=0), column.clamp(max=width - 1)
    corners = [
        flat.index_select(0, token)
        for token in (top + left, top + right, bottom + left, bottom + right)
    ]  # (M, K) each
    smallest, largest = (
        pick(pick(corners[0], corners[1]), pick(corners[2], corners[3]))
        for pick in (torch.minimum, torch.maximum)
    )
    reached = smallest.amax(1, keepdim=True)  # some class is nowhere in the cell below this
    # Not >=, so that all classes of a cell that holds a NaN are looked at
    cell, candidate = (~(largest < reached)).nonzero().unbind(1)  # (P,) each, in order

    pair = cell * classes + candidate
    large = torch.finfo(flat.dtype).max / 4  # infinities would interpolate to NaN
    a, b, c, d = (
        values.view(-1)[pair].clamp_(-large, large)[:, None] for values in corners
    )  # (P, 1)
    across = columns.weight[column[cell]].to(a.dtype)[:, None]  # (P, 1, n)
    x = columns.pixel[column]  # (M, n)
    # Cells of many pixels: some of their rows at a time
    step = max(1, _CHUNK_VALUES // max(1, across.numel()))
    for y, weight in zip(
        torch.split(rows.pixel, step, 1), torch.split(rows.weight, step, 1), strict=True
    ):
        down = weight[row[cell]].to(a.dtype)  # (P, m)
        values = torch.lerp(
            torch.lerp(a, c, down)[..., None], torch.lerp(b, d, down)[..., None], across
        ).flatten(1)  # (P, m n)
        place = cell[:, None].expand(values.shape)
        start = values.new_full((len(row), values.shape[1]), -torch.inf)
        best = start.scatter_reduce(0, place, values, "amax")  # (M, m n)
        wins = (values == best[cell]) | values.isnan()
        number = torch.where(wins, candidate[:, None].to(values.dtype), torch.inf)
        label = (-start).scatter_reduce(0, place, number, "amin")  # the first of equal ones
        pixel = (y[row][:, :, None] * ids.shape[1] + x[:, None]).flatten(1)
        ids.view(-1)[pixel] = label.to(ids.dtype)
