"""Resizing by OpenCV: fast, and as SegFormer was trained and evaluated with OpenMMLab's mmcv.

`segformer.image.resize` averages the pixels that fall together when an image is made smaller
(antialiasing, as in Pillow). mmcv does not: it takes OpenCV's bilinear interpolation of the four
nearest pixels, whatever the ratio. The two differ wherever an image is made smaller, and a model
scores best on images that were resized as in its training.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer.image.preprocessing import ImageArray

_OPENCV_TYPES = (np.uint8, np.uint16, np.int16, np.float32)


def rescaled_size(height: int, width: int, long_side: int, short_side: int) -> tuple[int, int]:
    """The largest size of the same aspect ratio that fits both limits, rounded half up.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        long_side: Limit of the longer side.
        short_side: Limit of the shorter side.

    Returns:
        Height and width, each at least 1.
    """
    factor = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_bilinear(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Resize (H, W, C) to (height, width), bilinear without antialiasing."""
    return resize_with_opencv(image, size, cv2.INTER_LINEAR)


def resize_nearest(mask: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Resize class ids (H, W) to (height, width) by OpenCV's INTER_NEAREST."""
    return resize_mask(mask, size, cv2.INTER_NEAREST)


def resize_with_opencv(image: ImageArray, size: tuple[int, int], interpolation: int) -> ImageArray:
    """Resize (H, W, C) of any number of channels to (height, width).

    Integers of 8 and 16 bits keep their type; any other type becomes float32.

    Args:
        image: The image.
        size: Height and width.
        interpolation: One of OpenCV's constants ``INTER_...``.
    """
    if image.shape[:2] == size:
        return image
    if image.dtype not in _OPENCV_TYPES:
        image = image.astype(np.float32)
    # OpenCV resizes at most four channels at a time
    parts = [
        cv2.resize(
            np.ascontiguousarray(image[:, :, i : i + 4]), size[::-1], interpolation=interpolation
        )
        for i in range(0, image.shape[2], 4)
    ]
    return np.concatenate([part.reshape(*size, -1) for part in parts], axis=2)


def resize_mask(
    mask: NDArray[np.integer], size: tuple[int, int], interpolation: int
) -> NDArray[np.integer]:
    """Resize class ids or packed classes (H, W) to (height, width).

    Args:
        mask: Integers.
        size: Height and width.
        interpolation: OpenCV's ``INTER_NEAREST`` or ``INTER_NEAREST_EXACT``.
    """
    if mask.shape == size:
        return mask
    if mask.dtype == np.int64:  # OpenCV has no such type, but resizes two channels of 32 bits
        halves = np.ascontiguousarray(mask).view(np.int32).reshape(*mask.shape, 2)
        resized = cv2.resize(halves, size[::-1], interpolation=interpolation)
        return np.ascontiguousarray(resized).view(np.int64)[:, :, 0]
    if mask.dtype not in _OPENCV_TYPES:
        mask = mask.astype(np.int32)
    resized = cv2.resize(np.ascontiguousarray(mask), size[::-1], interpolation=interpolation)
    return np.asarray(resized)
