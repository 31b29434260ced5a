"""Full-size label maps from low-resolution logits with NumPy alone, for runtimes without PyTorch.

The results are those of `segformer.prediction.upsample`, whose documentation explains cells and
candidate classes.

Legend: K classes, h w logits, H W image, M cells, m n pixels of a cell, P pairs of cell and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.integer]

_CHUNK_VALUES = 1 << 21
"""Number of logits interpolated at a time: 8 MB of float32."""

_CELL_VALUES = 1 << 19
"""Pixels of the mixed cells that are processed at a time: 2 MB of float32."""

_CACHED_VALUES = 1 << 16
"""Logits whose maximum over the corners is computed at a time: 256 kB, which stay in the cache."""


def logits_to_label_map(
    tta_logits: Sequence[Floats],
    size: tuple[int, int],
    *,
    confidence: bool = False,
    threshold: float = 0.5,
) -> tuple[Ids, Floats | None]:
    """Return the most probable class of each pixel; see the function of this name for PyTorch.

    Args:
        tta_logits: Logits (K, h, w) of each view.
        size: (height, width) of the image in pixels.
        confidence: Also return the probability of the chosen class.
        threshold: Of a binary model, K = 1.

    Returns:
        Class ids (H, W), uint8, or uint16 for more than 256 classes; probabilities (H, W) float32,
        or None.
    """
    classes = tta_logits[0].shape[0]
    if len(tta_logits) == 1 and classes > 1 and not confidence:
        return upsampled_argmax(tta_logits[0], size), None
    height, width = size
    label_map = np.empty(size, _id_type(classes))
    confidence_map = np.empty(size, np.float32) if confidence else None
    tokens = [logits.transpose(1, 2, 0) for logits in tta_logits]
    rows = max(1, _CHUNK_VALUES // (width * max(classes, 2)))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        chunks = [_interpolate_rows(logits, size, top, bottom) for logits in tokens]
        if len(chunks) == 1 and not confidence and threshold == 0.5:
            label_map[top:bottom] = chunks[0][..., 0] > 0
            continue
        probs = probabilities(chunks[0])
        for chunk in chunks[1:]:
            probs += probabilities(chunk)
        probs /= len(chunks)
        winner = probs[..., 1] > threshold if classes == 1 else probs.argmax(-1)
        label_map[top:bottom] = winner
        if confidence_map is not None:
            chosen = winner[..., None].astype(np.intp)
            confidence_map[top:bottom] = np.take_along_axis(probs, chosen, -1)[..., 0]
    return label_map, confidence_map


def probabilities(logits: Floats) -> Floats:
    """Convert logits (..., K) to class probabilities.

    The single logit of a binary model (K = 1) gives two classes, background and foreground.
    """
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    return softmax(logits)


def softmax(logits: Floats) -> Floats:
    """Softmax along the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    exponentials /= exponentials.sum(-1, keepdims=True)
    return exponentials


def upsampled_argmax(logits: Floats, size: tuple[int, int]) -> Ids:
    """Return the argmax of logits that are bilinearly resized to ``size``, larger or smaller.

    If the two best logits differ by no more than rounding errors, either class may be returned.
    Where logits are NaN, any class may be returned.

    Args:
        logits: (K, h, w), K at least 2.
        size: (H, W).

    Returns:
        Class ids (H, W), uint8, or uint16 for more than 256 classes.
    """
    tokens = np.ascontiguousarray(logits.transpose(1, 2, 0))
    height, width, classes = tokens.shape
    rows, columns = _cells(height, size[0]), _cells(width, size[1])
    winner = tokens.argmax(-1)
    # The outermost cells lie between border and border
    corner = np.pad(winner.astype(_id_type(classes)), 1, mode="edge")
    # First give all pixels of a cell the class of its first corner
    ids = corner[:, columns.of_pixel][rows.of_pixel]
    first = corner[:-1, :-1]
    mixed = corner[1:, :-1] != first
    mixed |= corner[:-1, 1:] != first
    mixed |= corner[1:, 1:] != first
    mixed &= (rows.count > 0)[:, None] & (columns.count > 0)
    row, column = mixed.nonzero()
    # Most classes are no candidates; if all are, there are four times as many values
    per_cell = max(classes // 4, rows.pixel.shape[1] * columns.pixel.shape[1])
    step = max(1, _CELL_VALUES // per_cell)
    for start in range(0, len(row), step):
        part = np.s_[start : start + step]
        _label_mixed_cells(ids, tokens, winner, rows, columns, row[part], column[part])
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

    of_pixel: NDArray[np.intp]
    count: NDArray[np.intp]
    pixel: NDArray[np.intp]
    weight: Floats


@lru_cache(maxsize=32)
def _cells(low: int, high: int) -> _Cells:
    """The cells for ``low`` rows (or columns) of logits and ``high`` rows of pixels."""
    position = _positions(low, high, 0, high) + 1  # the outermost cell is number 0
    of_pixel = position.astype(np.intp)
    count = np.bincount(of_pixel, minlength=low + 1)
    end = count.cumsum()
    pixel = np.minimum((end - count)[:, None] + np.arange(count.max()), (end - 1)[:, None])
    pixel = pixel.clip(0)
    weight = (position - of_pixel)[pixel].astype(np.float32)
    return _Cells(of_pixel, count, pixel, weight)


def _positions(low: int, high: int, start: int, stop: int) -> NDArray[np.floating]:
    """Positions of upsampled rows in units of source rows, as in `segformer.model.interpolation`.

    Pixel centers are aligned: from -0.5 to low - 0.5.
    """
    return (np.arange(start, stop, dtype=np.float64) + 0.5) * (low / high) - 0.5


def _label_mixed_cells(
    ids: Ids,
    tokens: Floats,
    winner: NDArray[np.intp],
    rows: _Cells,
    columns: _Cells,
    row: NDArray[np.intp],
    column: NDArray[np.intp],
) -> None:
    """Write the class ids of the cells at ``row`` and ``column``, (M,) each, into ``ids``."""
    height, width, classes = tokens.shape
    top, bottom = (row - 1).clip(0) * width, row.clip(max=height - 1) * width
    left, right = (column - 1).clip(0), column.clip(max=width - 1)
    corners = np.stack([top + left, top + right, bottom + left, bottom + right])  # (4, M)
    cell, candidate = _candidates(tokens.reshape(-1, classes), winner.reshape(-1), corners)
    count = np.bincount(cell, minlength=len(row))
    first_pair = np.cumsum(count) - count
    order = np.argsort(-count, kind="stable")  # cells with the most candidates first
    count, first_pair, row, column = (x[order] for x in (count, first_pair, row, column))
    large = np.finfo(np.float32).max / 4  # infinities would interpolate to NaN
    values = tokens.reshape(-1)
    a, b, c, d = (
        values[token[cell] * classes + candidate].clip(-large, large) for token in corners
    )  # (P,)
    down = rows.weight[row][:, :, None]  # (M, m, 1)
    across = columns.weight[column][:, None, :]  # (M, 1, n)

    def logits(rank: int, cells: int) -> Floats:
        """(cells, m, n) interpolated logits of a candidate of each of the first cells."""
        at = first_pair[:cells] + rank
        start, end, low_start, low_end = (corner[at][:, None, None] for corner in (a, b, c, d))
        over = start + (low_start - start) * down[:cells]
        over_end = end + (low_end - end) * down[:cells]
        found = (over_end - over) * across[:cells]
        found += over
        return found

    best = logits(0, len(row))
    label = np.empty(best.shape, ids.dtype)
    label[:] = candidate[first_pair][:, None, None]
    for rank in range(1, int(count[0])):
        cells = int(np.searchsorted(-count, -rank))  # those with more than ``rank`` candidates
        found = logits(rank, cells)
        better = found > best[:cells]
        np.maximum(best[:cells], found, out=best[:cells])
        number = candidate[first_pair[:cells] + rank].astype(ids.dtype)
        np.copyto(label[:cells], number[:, None, None], where=better)
    ids[rows.pixel[row][:, :, None], columns.pixel[column][:, None, :]] = label


def _candidates(
    tokens: Floats, winner: NDArray[np.intp], corners: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Classes that may be the best somewhere in a cell.

    One of the classes that win at the corners has at least some logit everywhere in the cell. A
    class whose largest corner is less is nowhere the best.

    Args:
        tokens: Logits (h * w, K).
        winner: Best class of each of them, (h * w,).
        corners: Numbers of the tokens at the corners of each cell, (4, M).

    Returns:
        Cell and candidate class, (P,) each, in the order of the cells.
    """
    classes, cells = tokens.shape[1], corners.shape[1]
    winners = winner[corners]
    of_winners = tokens.reshape(-1)[corners[:, None] * classes + winners]  # (corner, winner, M)
    bound = of_winners.min(0).max(0)[:, None]
    step = max(1, _CACHED_VALUES // classes)
    buffers = np.empty((2, min(step, cells), classes), np.float32)
    pairs = []
    for start in range(0, cells, step):
        part = corners[:, start : start + step]
        largest, other = buffers[:, : part.shape[1]]
        tokens.take(part[0], 0, out=largest, mode="clip")
        for corner in part[1:]:
            tokens.take(corner, 0, out=other, mode="clip")
            np.maximum(largest, other, out=largest)
        # Not >=, so that all classes of a cell that contains a NaN are candidates
        pair = np.flatnonzero(~(largest < bound[start : start + step]))
        pairs.append(pair + start * classes)
    cell, candidate = np.divmod(np.concatenate(pairs), classes)
    return cell, candidate


def _interpolate_rows(tokens: Floats, size: tuple[int, int], top: int, bottom: int) -> Floats:
    """Rows of tokens (h, w, C) that are bilinearly resized to ``size``: (bottom - top, W, C)."""
    height, width, _ = tokens.shape
    above, below, weight = _source_rows(height, size[0], top, bottom)
    rows = tokens[above] + (tokens[below] - tokens[above]) * weight[:, None, None]
    left, right, weight = _source_rows(width, size[1], 0, size[1])
    start = rows[:, left]
    return np.asarray(start + (rows[:, right] - start) * weight[:, None], np.float32)


def _source_rows(
    low: int, high: int, start: int, stop: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """The two source rows of each upsampled row, and the weight of the second."""
    position = _positions(low, high, start, stop).clip(0)
    above = position.astype(np.intp).clip(max=low - 1)
    return above, (above + 1).clip(max=low - 1), (position - above).astype(np.float32)


def _id_type(classes: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if classes <= 256 else np.uint16
