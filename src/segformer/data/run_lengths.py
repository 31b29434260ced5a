"""COCO's run-length encoding of binary masks.

Legend: H W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def encode(mask: NDArray[np.bool_]) -> str:
    """The compressed run lengths of a mask (H, W), as pycocotools writes them."""
    return compress(run_lengths(mask))


def run_lengths(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of alternating runs, column by column; the first is of unmarked pixels."""
    columns = mask.T.ravel()
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    ends = np.concatenate(([0] if columns[0] else [], changes, [columns.size])).astype(np.int64)
    return np.diff(ends, prepend=0)


def compress(lengths: NDArray[np.int64]) -> str:
    """COCO's string of run lengths: from the fourth on, differences from the one two before.

    Each character holds 5 bits, low ones first, and whether more follow.
    """
    numbers = lengths.copy()
    numbers[3:] -= lengths[1:-2]
    codes = np.zeros((len(numbers), 8), np.uint8)
    used = np.zeros(codes.shape, bool)
    open_ = np.ones(len(numbers), bool)
    for place in range(codes.shape[1]):
        bits = numbers & 31
        numbers >>= 5
        more = np.where(bits & 16 != 0, numbers != -1, numbers != 0)
        codes[:, place] = bits + 32 * more + 48
        used[:, place] = open_
        open_ &= more
        if not open_.any():
            break
    return codes[used].tobytes().decode("ascii")
