"""Full-size label maps from low-resolution logits, without computing full-size logits.

A cell is the square between four neighboring logits, its corners. Bilinear interpolation is a
convex combination of the corners. So if a class has the largest logit at all four corners, it has
the largest logit everywhere in the cell. If the corners have different best classes, a class can
be the best in the cell only if its largest corner reaches the smallest corner of every class. Only
the logits of these candidate classes are interpolated, and only in these mixed cells.

Legend: K classes, h w logits, H W image, M cells, P pairs of a cell and a candidate class.
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
from segformer.prediction import upsample_numpy

_CHUNK_VALUES = 1 << 21
"""Number of logits interpolated at a time: 8 MB of float32."""

_CELL_VALUES = 1 << 19
"""Values per corner of the mixed cells that are processed at a time: 2 MB of float32.

Cells with more than four columns of pixels count proportionally more.
"""


def logits_to_label_map(
    tta_logits: Sequence[Tensor],
    size: tuple[int, int],
    *,
    confidence: bool = False,
    threshold: float = 0.5,
) -> tuple[NDArray[np.integer], NDArray[np.float32] | None]:
    """Return the most probable class of each pixel.

    The logits of a single view are compared directly. For several views of test-time augmentation
    (scales, flips), the probabilities are averaged, as in the multi-scale protocol of the paper.

    Args:
        tta_logits: Logits (K, h, w) of each view; h and w can differ. K = 1 is a binary model:
            foreground is where its probability exceeds ``threshold``.
        size: (height, width) of the image in pixels.
        confidence: Also return the probability of the chosen class. This needs the logits of all
            classes at all pixels, computed in chunks, and is about ten times slower.
        threshold: Of a binary model.

    Returns:
        Class ids (H, W), uint8, or uint16 for more than 256 classes; probabilities (H, W) float32,
        or None.
    """
    on_cpu = tta_logits[0].device.type == "cpu"
    if on_cpu and len(tta_logits) == 1 and tta_logits[0].shape[0] > 1 and not confidence:
        return upsample_numpy.upsampled_argmax(tta_logits[0].numpy(), size), None  # is faster
    with idle_cpus_only() if on_cpu else nullcontext():
        return _label_map(tta_logits, size, confidence, threshold)


def _label_map(
    tta_logits: Sequence[Tensor], size: tuple[int, int], confidence: bool, threshold: float
) -> tuple[NDArray[np.integer], NDArray[np.float32] | None]:
    classes = tta_logits[0].shape[0]
    dtype = np.uint8 if classes <= 256 else np.uint16
    if len(tta_logits) == 1 and classes > 1 and not confidence:
        ids = upsampled_argmax(tta_logits[0], size)
        return ids.cpu().numpy().astype(dtype, copy=False), None
    height, width = size
    label_map = np.empty(size, dtype)
    confidence_map = np.empty(size, np.float32) if confidence else None
    tokens = [logits.permute(1, 2, 0)[None] for logits in tta_logits]
    rows = max(1, _CHUNK_VALUES // (width * max(classes, 2)))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        chunks = [
            interpolate_rows(logits, size, top, bottom).permute(0, 3, 1, 2) for logits in tokens
        ]  # (1, K, rows, W)
        if len(chunks) == 1 and not confidence and threshold == 0.5:
            winner = chunks[0][0, 0] > 0
        else:
            probs = torch.stack([probabilities(chunk)[0] for chunk in chunks])
            best, winner = probs.mean(0).max(0)
            if classes == 1 and threshold != 0.5:
                background, foreground = probs.mean(0)
                winner = foreground > threshold
                best = foreground.where(winner, background)
            if confidence_map is not None:
                confidence_map[top:bottom] = best.cpu().numpy()
        label_map[top:bottom] = winner.cpu().numpy()
    return label_map, confidence_map


def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the argmax of logits that are bilinearly resized to ``size``, larger or smaller.

    If the two best logits differ by no more than rounding errors, either class may be returned.
    NaN is larger than every number, as in `torch.argmax`.

    Args:
        logits: (K, h, w), K at least 2.
        size: (H, W).

    Returns:
        Class ids (H, W), uint8, or int32 for more than 256 classes.
    """
    tokens = logits.permute(1, 2, 0).contiguous()
    height, width, classes = tokens.shape
    rows = _Cells.along(height, size[0], logits.device)
    columns = _Cells.along(width, size[1], logits.device)
    winner = tokens.argmax(-1).to(torch.uint8 if classes <= 256 else torch.int32)
    corner = winner.new_empty(height + 2, width + 2)  # winner, padded by repeating its border
    corner[1:-1, 1:-1] = winner
    corner[0], corner[-1] = corner[1], corner[-2]
    corner[:, 0], corner[:, -1] = corner[:, 1], corner[:, -2]

    # First give all pixels of a cell the class of its first corner
    ids = corner.index_select(1, columns.of_pixel).index_select(0, rows.of_pixel)

    # In the flattened map, the right corner of a cell is one element further, and the lower corner
    # one row further. The last element of a row is compared with the first of the next row, but no
    # cell starts there
    line, below = corner.view(-1), width + 2
    across, down = line[1:] == line[:-1], line[below:] == line[:-below]
    agree = across[:-below] & across[below:] & down[:-1]
    cell = (~agree).nonzero()[:, 0]
    row, column = cell // below, cell % below
    column_count = F.pad(columns.count, (0, 1))
    some = (rows.count[row] > 0) & (column_count[column] > 0)  # cells that contain pixels
    cells = torch.stack([row[some], column[some]], 1)
    per_row = max(classes, classes * columns.pixel.shape[1] // 4)
    for part in torch.split(cells, max(1, _CELL_VALUES // per_row)):
        _label_mixed_cells(ids, tokens, rows, columns, *part.unbind(1))
    return ids


@dataclass(frozen=True)
class _Cells:
    """The low + 1 cells along one side; both corners of an outermost cell are the border.

    Attributes:
        of_pixel: (high,) cell that contains each pixel.
        count: (low + 1,) number of pixels in each cell.
        pixel: (low + 1, n) pixels in each cell; if there are fewer than n, the last is repeated.
        weight: (low + 1, n) weight of the second row of the cell for each of these pixels.
    """

    of_pixel: Tensor
    count: Tensor
    pixel: Tensor
    weight: Tensor

    @classmethod
    def along(cls, low: int, high: int, device: torch.device) -> _Cells:
        """Create the cells for ``low`` rows (or columns) of logits and ``high`` rows of pixels."""
        position = source_positions(low, high, 0, high) + 1  # the outermost cell is number 0
        of_pixel = position.long()
        count = torch.bincount(of_pixel, minlength=low + 1)
        end = count.cumsum(0)
        step = torch.arange(int(count.max()))
        pixel = torch.minimum((end - count)[:, None] + step, (end - 1)[:, None]).clamp(min=0)
        weight = (position - of_pixel)[pixel].float()
        return cls(*(tensor.to(device) for tensor in (of_pixel, count, pixel, weight)))


def _label_mixed_cells(
    ids: Tensor, tokens: Tensor, rows: _Cells, columns: _Cells, row: Tensor, column: Tensor
) -> None:
    """Write the class ids of the cells at ``row`` and ``column``, (M,) each, into ``ids``."""
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
    # Some class has at least this logit everywhere in the cell
    reached = smallest.amax(1, keepdim=True)
    # Not >=, so that all classes of a cell that contains a NaN are candidates
    cell, candidate = (~(largest < reached)).nonzero().unbind(1)  # (P,) each, in order

    pair = cell * classes + candidate
    large = torch.finfo(flat.dtype).max / 4  # infinities would interpolate to NaN
    a, b, c, d = (
        values.view(-1)[pair].clamp_(-large, large)[:, None] for values in corners
    )  # (P, 1)
    across = columns.weight[column[cell]].to(a.dtype)[:, None]  # (P, 1, n)
    x = columns.pixel[column]  # (M, n)
    # In cells with many pixels, only some of the rows are processed at a time
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
        label = (-start).scatter_reduce(0, place, number, "amin")  # the lowest of equal classes
        pixel = (y[row][:, :, None] * ids.shape[1] + x[:, None]).flatten(1)
        ids.view(-1)[pixel] = label.to(ids.dtype)
