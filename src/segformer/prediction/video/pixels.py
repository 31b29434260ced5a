"""Frames of a decoder -> upright RGB.

Legend: H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame

BT_709, BT_601 = 1, 5
"""Numbers of these color spaces in FFmpeg."""

UNSPECIFIED, LIMITED, FULL = 0, 1, 2
"""FFmpeg's color ranges: 16..235 is limited, 0..255 is full."""

_UNKNOWN_SPACE = 2

_HIGH_DEFINITION = 720
"""Lines from which a video without a color space is taken for BT.709, as players do."""


def to_rgb(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    """A decoded frame as RGB, upright.

    Args:
        frame: From a decoder, in any pixel format.
        width: Pixels of a row before rotation; a frame of another size is resized.
        height: Rows before rotation.

    Returns:
        (H, W, 3) uint8, contiguous.
    """
    space: int | None = None
    if frame.colorspace == _UNKNOWN_SPACE:
        space = BT_709 if frame.height >= _HIGH_DEFINITION else BT_601
    levels = frame.color_range
    if levels == UNSPECIFIED and not frame.format.name.startswith("yuv"):
        levels = FULL  # gray and RGB
    elif levels == UNSPECIFIED:
        levels = FULL if frame.format.name.startswith("yuvj") else LIMITED
    converted = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=space,
        src_color_range=levels,
        dst_color_range=FULL,
    )
    pixels: NDArray[np.uint8] = converted.to_ndarray()  # type: ignore[assignment]
    return np.ascontiguousarray(upright(pixels, display_matrix(frame)))


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the display matrix of a frame, or None where it has none.

    A pixel at (x, y) is displayed at (a x + c y, b x + d y), up to a scale and a shift.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":  # type: ignore[attr-defined]
            stored: Any = data  # a buffer of nine integers
            a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].tolist()
            return a, b, c, d
    return None


def is_sideways(matrix: tuple[int, int, int, int] | None) -> bool:
    """Whether a display matrix exchanges width and height."""
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])


def upright(
    pixels: NDArray[np.uint8], matrix: tuple[int, int, int, int] | None
) -> NDArray[np.uint8]:
    """Rotate and mirror (H, W, 3) as a display matrix says; only by quarters of a turn."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    if is_sideways(matrix):
        pixels = pixels.swapaxes(0, 1)
        left_right, up_down = c, b
    else:
        left_right, up_down = a, d
    return pixels[:: -1 if up_down < 0 else 1, :: -1 if left_right < 0 else 1]
