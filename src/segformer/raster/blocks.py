"""From a block of a scene to its class ids. Blocks do not depend on each other.

Logits are blended at a quarter of the resolution where windows overlap, first within a row of
windows, then between rows, and upsampled exactly. So only a few rows of windows are in memory.

Legend: H W pixels, h w tokens (pixels of logits), K classes, V views.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.image import ImageArray
from segformer.image.scene_grid import Window
from segformer.prediction.label_maps import logits_to_label_map
from segformer.prediction.predictor import Predictor
from segformer.prediction.runtimes.base import as_kind, classes_last, mirrored, zeros
from segformer.raster.pixels import ScenePixels
from segformer.raster.tiling import TOKEN, Block, Strip


@dataclass(frozen=True, eq=False)
class BlockResult:
    """A predicted block.

    Attributes:
        block: Which one.
        label_map: (H, W) class ids, and `nodata_id` where nothing is predicted; None where that is
            everywhere.
        confidence: (H, W) uint8 probability of the class of each pixel, 255 for 1, and 0 where
            nothing is predicted; None unless asked for.
    """

    block: Block
    label_map: NDArray[np.integer] | None
    confidence: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class ReadStrip:
    """The pixels of a row of windows.

    Attributes:
        pixels: (H, W, C) as stored.
        valid: (H, W) where there is data.
        run: Numbers of the windows that have pixels to predict.
    """

    pixels: ImageArray
    valid: NDArray[np.bool_]
    run: list[int]


@dataclass(frozen=True, eq=False)
class _RowLogits:
    """Logits of a row of windows.

    Attributes:
        logits: (h, w, V K), blended where windows overlap; None where no window was run.
        covered: (w,) 1 where a window was run, else 0.
        valid: (H, W) where there is data.
    """

    logits: Any
    covered: NDArray[np.float32]
    valid: NDArray[np.bool_]


def nodata_id(num_classes: int) -> int:
    """Value in label maps where nothing is predicted: 255, or 65535 for more than 255 classes."""
    return 255 if num_classes <= 255 else 65535


class BlockPredictor:
    """Predicts blocks of a scene.

    The last row of windows is kept for the next block, which often needs it again.

    Args:
        predictor: Model and options; of them ``flip``, ``confidence`` and the batch size count.
        pixels: The scene as the model sees it.
    """

    def __init__(self, predictor: Predictor, pixels: ScenePixels):
        self.predictor, self.pixels = predictor, pixels
        classes = predictor.model.classes
        self.nodata = nodata_id(len(classes))
        self.dtype = np.uint8 if self.nodata == 255 else np.uint16
        self._rows: dict[Strip, _RowLogits | None] = {}

    def __call__(
        self, block: Block, read: Callable[[Strip], ReadStrip | None] | None = None
    ) -> BlockResult:
        """Predict one block.

        Args:
            block: From `segformer.raster.tiling.plan_blocks`.
            read: Gives the pixels of a strip. Default: `read_strip`, when they are needed.
        """
        read = read or self.read_strip
        rows: list[tuple[Strip, _RowLogits]] = []
        for strip in block.strips:
            if strip not in self._rows:
                content = read(strip)
                self._rows[strip] = None if content is None else self._run_strip(strip, content)
            row = self._rows[strip]
            if row is not None:
                rows.append((strip, row))
        last = block.strips[-1]
        self._rows = {strip: row for strip, row in self._rows.items() if strip == last}
        return self._to_result(block, rows)

    def forget(self) -> None:
        """Free the row of windows that is kept for the next block."""
        self._rows.clear()

    def read_strip(self, strip: Strip) -> ReadStrip | None:
        """Read a row of windows; None where nothing in it is to be predicted."""
        window = strip.window
        # A pixel needs the token beside it too, so windows that end just before it are run as well
        height, width = window.height + 2 * TOKEN, window.width + 2 * TOKEN
        around = Window(window.top - TOKEN, window.left - TOKEN, height, width)
        wanted = self.pixels.wanted(around)
        if not wanted.any():
            return None
        pixels, valid = self.pixels.read(window)
        axis = strip.tiling.columns
        run = []
        for number in strip.columns:
            left = axis.starts[number] - window.left
            here = np.s_[:, left : left + axis.window]
            near = np.s_[:, left : left + axis.window + 2 * TOKEN]
            if valid[here].any() and wanted[near].any():
                run.append(number)
        return ReadStrip(pixels, valid, run) if run else None

    def _run_strip(self, strip: Strip, content: ReadStrip) -> _RowLogits:
        axis, left = strip.tiling.columns, strip.window.left // TOKEN
        tokens = content.valid.shape[1] // TOKEN
        total: Any = None
        weights = np.zeros(tokens, np.float32)
        for numbers, logits in self._run_windows(strip, content):
            for number, one in zip(numbers, logits, strict=True):
                values = classes_last(one)
                if total is None:
                    total = zeros(values, values.shape[0], tokens, values.shape[2])
                first = axis.starts[number] // TOKEN - left
                here = slice(first, first + len(axis.weight))
                total[:, here] += values * as_kind(axis.weight[None, :, None], values)
                weights[here] += axis.weight
        covered = (weights > 0).astype(np.float32)
        weights[weights == 0] = 1
        total *= as_kind(np.reciprocal(weights)[None, :, None], total)
        return _RowLogits(total, covered, content.valid)

    def _run_windows(self, strip: Strip, content: ReadStrip) -> Iterator[tuple[list[int], Any]]:
        """Numbers of windows, and their logits (B, V K, h, w), batch by batch."""
        size = self.predictor.batch_size
        batches = [content.run[i : i + size] for i in range(0, len(content.run), size)]

        def prepare(numbers: list[int]) -> NDArray[np.float32]:
            windows = [self._normalized(strip, content, number) for number in numbers]
            return np.stack(windows).transpose(0, 3, 1, 2)

        with ThreadPoolExecutor(1, thread_name_prefix="normalizer") as pool:
            waiting: deque[Future[NDArray[np.float32]]] = deque()
            for i in range(len(batches)):
                while len(waiting) < min(2, len(batches) - i):
                    waiting.append(pool.submit(prepare, batches[i + len(waiting)]))
                pixels = waiting.popleft().result()
                yield batches[i], self._logits(pixels)

    def _normalized(self, strip: Strip, content: ReadStrip, number: int) -> NDArray[np.float32]:
        axis, window = strip.tiling.columns, strip.window
        left = axis.starts[number] - window.left
        here = np.s_[:, left : left + axis.window]
        normalized = self.pixels.normalize(content.pixels[here], content.valid[here])
        # Beyond the last row and column, they are repeated, as in images that are read whole
        full = self.pixels.scene.full_grid.window
        inside = window.moved(0, left).within(full)
        height, width = inside.height, min(axis.window, full.width - axis.starts[number])
        if (height, width) != normalized.shape[:2]:
            rest = ((0, normalized.shape[0] - height), (0, normalized.shape[1] - width), (0, 0))
            normalized = np.pad(normalized[:height, :width], rest, mode="edge")
        return normalized

    def _logits(self, pixels: NDArray[np.float32]) -> Any:
        logits = self.predictor.runtime(pixels)
        if not self.predictor.config.flip:
            return logits
        flipped = mirrored(self.predictor.runtime(np.ascontiguousarray(pixels[..., ::-1])))
        if isinstance(logits, np.ndarray):
            return np.concatenate([logits, flipped], 1)
        import torch

        return torch.cat([logits, flipped], 1)

    def _to_result(self, block: Block, rows: list[tuple[Strip, _RowLogits]]) -> BlockResult:
        """The class ids of a block, from the rows of windows over it."""
        pixels = block.pixels
        wanted = self.pixels.wanted(pixels) if rows else np.zeros((1, 1), bool)
        valid = np.zeros((pixels.height, pixels.width), bool)
        for strip, row in rows:
            both = strip.window.within(pixels)
            here = both.moved(-pixels.top, -pixels.left).slices
            valid[here] |= row.valid[both.moved(-strip.window.top, -strip.window.left).slices]
        valid &= wanted
        if not valid.any():
            return BlockResult(block, None)
        ids, probs = self._label_map(block, rows)
        label_map: NDArray[np.integer] = ids.astype(self.dtype, copy=False)
        label_map[~valid] = self.nodata
        if probs is None:
            return BlockResult(block, label_map)
        confidence = np.rint(255 * probs).clip(1, 255).astype(np.uint8)
        confidence[~valid] = 0
        return BlockResult(block, label_map, confidence)

    def _label_map(
        self, block: Block, rows: list[tuple[Strip, _RowLogits]]
    ) -> tuple[NDArray[np.integer], NDArray[np.float32] | None]:
        tokens = block.tokens
        blended = _blend(tokens, rows)
        config = self.predictor.model.config
        planes = blended.swapaxes(0, 2).swapaxes(1, 2)  # (V K, h, w), a view
        classes = config.num_classes
        views = [planes[i : i + classes] for i in range(0, planes.shape[0], classes)]
        ids, probs = logits_to_label_map(
            views,
            (tokens.height * TOKEN, tokens.width * TOKEN),
            config,
            confidence=self.predictor.config.confidence,
        )
        here = block.pixels.moved(-tokens.top * TOKEN, -tokens.left * TOKEN).slices
        return ids[here], None if probs is None else probs[here]


def _blend(tokens: Window, rows: list[tuple[Strip, _RowLogits]]) -> Any:
    """(h, w, V K) logits of a block from those of its rows of windows."""
    total: Any = None
    weights = np.zeros((tokens.height, tokens.width), np.float32)
    for strip, row in rows:
        weight = strip.tiling.rows.weight
        place = Window(
            strip.window.top // TOKEN, strip.window.left // TOKEN, len(weight), len(row.covered)
        )
        both = place.within(tokens)
        if both.is_empty:
            continue
        here = both.moved(-tokens.top, -tokens.left).slices
        there = both.moved(-place.top, -place.left).slices
        if total is None:
            total = zeros(row.logits, tokens.height, tokens.width, row.logits.shape[2])
        total[here] += row.logits[there] * as_kind(weight[there[0], None, None], row.logits)
        weights[here] += weight[there[0], None] * row.covered[there[1]]
    weights[weights == 0] = 1
    total *= as_kind(np.reciprocal(weights)[..., None], total)
    return total
