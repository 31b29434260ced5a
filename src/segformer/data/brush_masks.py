"""Label Studio's run-length encoding of brush masks; `layouts.label_studio` has the decoder.

Legend: H W pixels, N runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SIZES = (3, 4, 8, 16)
"""Bits of a run's length; each run chooses one."""

_LONGEST = 1 << _SIZES[-1]

_VALUE_BITS = 8


def encode_brush(mask: NDArray[np.bool_]) -> bytes:
    """The bytes of the field ``rle`` for a mask (H, W); see `layouts.label_studio.decode_brush`.

    Red, green, blue and alpha of marked pixels are 255, of the others 0.
    """
    pixels = mask.ravel()
    edges = np.flatnonzero(np.diff(pixels)) + 1
    starts = np.concatenate(([0], edges))
    lengths = 4 * np.diff(np.concatenate((starts, [pixels.size])))
    values = np.where(pixels[starts], 255, 0)
    pieces = -(-lengths // _LONGEST)
    values = np.repeat(values, pieces)
    parts = np.full(len(values), _LONGEST, np.int64)
    parts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    header = f"{4 * pixels.size:032b}{_VALUE_BITS - 1:05b}"
    header += "".join(f"{size - 1:04b}" for size in _SIZES)
    head = np.frombuffer(header.encode(), np.uint8) - ord("0")
    return np.packbits(np.concatenate((head, _run_bits(parts, values)))).tobytes()


def _run_bits(lengths: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bits, one after the other, of runs (N,): 1, choice of the size, length - 1, value."""
    choice = np.searchsorted(np.array([1 << size for size in _SIZES]), lengths)
    sizes = np.array(_SIZES)[choice]
    numbers = ((((4 + choice) << sizes) | (lengths - 1)) << _VALUE_BITS) | values
    widths = 3 + sizes + _VALUE_BITS
    places = np.arange(3 + _SIZES[-1] + _VALUE_BITS - 1, -1, -1)
    bits = (numbers[:, None] >> places) & 1
    return bits[places < widths[:, None]].astype(np.uint8)
