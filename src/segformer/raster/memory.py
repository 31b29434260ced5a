"""How much of a scene is worked on at a time, so that the process stays below a bound."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from segformer.prediction.predictor import Predictor
from segformer.raster.pixels import ScenePixels
from segformer.raster.tiling import TOKEN, Tiling

_CACHE_DIVISOR = 8
"""Part of the bound that GDAL may take for blocks of the files: one of so many."""

_LARGEST_CACHE = 1 << 28
_WIDEST = 1 << 16
"""Pixels of a row of windows, above which nothing is gained."""

_LOWEST = 256
"""Pixels of the height of a block, so that there are not too many files."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a bound is divided.

    Attributes:
        cells: Rows and columns of cells of a block; see `segformer.raster.tiling.plan_blocks`.
        cache: Bytes of GDAL's cache.
        expected: Bytes that the process is expected to take in all.
    """

    cells: tuple[int, int]
    cache: int
    expected: int


@dataclass(frozen=True)
class _Earlier:
    """What is known from the scene before.

    Attributes:
        shape: Shape of a batch.
        own: Bytes that the process took without the scene.
        expected: Bytes that it was expected to take with it.
    """

    shape: tuple[int, ...]
    own: int
    expected: int


_EARLIER: MutableMapping[Predictor, _Earlier] = WeakKeyDictionary()


def plan_memory(
    predictor: Predictor, pixels: ScenePixels, tiling: Tiling, limit: int
) -> MemoryPlan:
    """Choose the width of blocks; the model is run once, to see what it takes.

    Raises:
        ValueError: The bound is too low; the message says what is needed.
    """
    side = tiling.rows.window, tiling.columns.window
    batch = (predictor.batch_size, predictor.model.config.in_channels, *side)
    predictor.runtime(np.zeros(batch, np.float32))
    cache = min(_LARGEST_CACHE, limit // _CACHE_DIVISOR)
    own = _own_memory(predictor, batch)
    fixed = own + cache + 3 * 4 * int(np.prod(batch))
    stride = tiling.window - tiling.overlap
    rows = max(1, _LOWEST // stride)
    most = max(1, min(len(tiling.columns.cuts) - 1, _WIDEST // stride))
    for columns in range(most, 0, -1):
        expected = fixed + _working_bytes(predictor, pixels, tiling, rows, columns)
        if expected <= limit:
            _EARLIER[predictor] = _Earlier(batch, own, expected)
            return MemoryPlan((rows, columns), cache, expected)
    raise ValueError(
        f"--max-memory {limit / 1e9:.2f}GB is too little: the program, the model and one window of "
        f"{tiling.window} pixels take {expected / 1e9:.2f}GB; allow that, or a smaller --window"
    )


def _own_memory(predictor: Predictor, batch: tuple[int, ...]) -> int:
    """Bytes that the process takes without a scene.

    The peak includes the scene before, whose memory this one uses again.
    """
    peak, earlier = peak_memory(), _EARLIER.get(predictor)
    if earlier is None or earlier.shape != batch:
        return peak
    return min(peak, earlier.own + max(0, peak - earlier.expected))


def _working_bytes(
    predictor: Predictor, pixels: ScenePixels, tiling: Tiling, rows: int, columns: int
) -> int:
    """Bytes for a block of so many cells: pixels, logits, class ids."""
    stride = tiling.window - tiling.overlap
    width = min(tiling.columns.tokens * TOKEN, columns * stride + tiling.columns.window + stride)
    height = min(tiling.rows.tokens * TOKEN, rows * stride + 2 * TOKEN)
    strip = tiling.rows.window * width
    bands = len(pixels.scene.bands) * pixels.scene.dtype.itemsize
    reading = strip * (3 * bands + 6)  # one in use, one read ahead, one as it is being decoded
    views = 2 if predictor.config.flip else 1
    logit = 4 * views * predictor.model.config.num_classes / TOKEN**2
    on_cpu = str(predictor.runtime.device) == "cpu"
    confidence = predictor.config.confidence
    logits = logit * ((rows + 1) * strip + (2 + (views > 1)) * height * width) if on_cpu else 0
    # Class ids with their validity, in work, waiting to be written and being compressed
    writing = height * width * (8 + (12 if confidence else 0))
    return round(reading + logits + writing)


def peak_memory() -> int:
    """Bytes that the process has taken at most so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts that of the process that started this one too
        return _kilobytes(status.read_text(), "VmHWM") << 10
    import resource

    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) << 10


def _kilobytes(status: str, key: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
