"""A model over windows of an image, one by one, in bounded memory.

Legend: H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.image import ImageArray
from segformer.prediction.runtimes.base import Logits, as_kind, classes_last, zeros
from segformer.prediction.windows import window_starts


def slide(
    image: ImageArray,
    window: int,
    stride: int,
    run: Callable[[NDArray[np.float32]], Logits],
    *,
    normalize: Callable[[ImageArray], NDArray[np.float32]],
    batch_size: int = 1,
    on_windows: Callable[[int], None] | None = None,
) -> Any:
    """Logits averaged over windows.

    Windows start at multiples of 4, so they meet on the grid of the logits, where a sixteenth of
    the values are averaged. Only the windows that are run are normalized.

    Args:
        image: (H, W, C). Its last rows and columns are repeated, by at most 3 pixels, to sides
            that are multiples of 4.
        window: Side of a window, pixels, a multiple of 4; an image may be smaller.
        stride: Pixels between windows, a multiple of 4.
        run: (B, C, h, w) float32 -> logits (B, K, h / 4, w / 4).
        normalize: (h, w, C) pixels -> what the model takes.
        batch_size: Windows to run at once.
        on_windows: Called with the number of windows after each batch.

    Returns:
        (K, ceil(H / 4), ceil(W / 4)), of the kind and on the device of the logits.
    """
    height, width = (-(-side // 4) * 4 for side in image.shape[:2])
    rows, columns = (window_starts(side, window, stride) for side in (height, width))
    corners = list(product(rows, columns))
    total: Any = None
    for first in range(0, len(corners), batch_size):
        batch = corners[first : first + batch_size]
        pixels = np.stack([normalize(_cut(image, y, x, window)) for y, x in batch])
        for (top, left), logits in zip(batch, run(pixels.transpose(0, 3, 1, 2)), strict=True):
            if total is None:
                # Classes last, as they are compared
                total = zeros(logits, height // 4, width // 4, logits.shape[0])
            place = np.s_[top // 4 : (top + window) // 4, left // 4 : (left + window) // 4]
            total[place] += classes_last(logits)
        if on_windows is not None:
            on_windows(len(batch))
    count = _coverage(rows, window, height)[:, None] * _coverage(columns, window, width)
    total /= as_kind(count[..., None], total)
    return total.swapaxes(0, 2).swapaxes(1, 2)  # arrays and tensors have this method


def count_windows(height: int, width: int, window: int, stride: int) -> int:
    """Number of windows that `slide` runs over an image."""
    rows, columns = (window_starts(-(-side // 4) * 4, window, stride) for side in (height, width))
    return len(rows) * len(columns)


def _cut(image: ImageArray, top: int, left: int, window: int) -> ImageArray:
    """A window of the image, whose sides are padded to multiples of 4."""
    cut = image[top : top + window, left : left + window]
    height, width = cut.shape[:2]
    if height % 4 or width % 4:
        cut = np.pad(cut, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="edge")
    return cut


def _coverage(starts: list[int], window: int, length: int) -> NDArray[np.float32]:
    """(length / 4,) number of windows that cover each token along one side."""
    count = np.zeros(length // 4, np.float32)
    for start in starts:
        count[start // 4 : (start + window) // 4] += 1
    return count
