"""Where the windows of a large image lie: integers in, integers out."""

from __future__ import annotations


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixel of each window along one side.

    Windows step by ``stride``; the last is moved back to end with the side, so every window is
    whole and every pixel covered. One window at 0 where the side is no longer than it.

    Args:
        length: Of the side, pixels.
        window: Of a window, pixels.
        stride: Between windows, pixels; at most ``window``.

    Raises:
        ValueError: A stride that would leave gaps, or sizes that are not positive.
    """
    if min(length, window, stride) < 1:
        raise ValueError(f"length {length}, window {window} and stride {stride} must be positive")
    if stride > window:
        raise ValueError(f"a stride of {stride} leaves gaps between windows of {window} pixels")
    if length <= window:
        return [0]
    steps = -(-(length - window) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]
