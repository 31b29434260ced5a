"""Positions of the windows of a large image."""

from __future__ import annotations


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of each window along one side of an image.

    The distance between windows is ``stride``. The last window is moved back so that it ends at
    the end of the side. So all windows have the full size, and all pixels are covered. If the side
    is not longer than a window, there is one window at 0.

    Args:
        length: Length of the side in pixels.
        window: Length of a window in pixels.
        stride: Distance between windows in pixels; at most ``window``.

    Raises:
        ValueError: ``stride`` is larger than ``window``, or a value is not positive.
    """
    if min(length, window, stride) < 1:
        raise ValueError(f"length {length}, window {window} and stride {stride} must be positive")
    if stride > window:
        raise ValueError(f"a stride of {stride} leaves gaps between windows of {window} pixels")
    if length <= window:
        return [0]
    steps = -(-(length - window) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]
