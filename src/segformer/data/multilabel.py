"""Masks where classes may overlap, as one integer per pixel.

Bit k of the integer is set where class k is present: 0 is a pixel without any class. So such a
mask is an array (H, W) like a mask of class ids, and is cropped, flipped, resized to the nearest
pixels and padded in the same way.

Legend: H W pixels, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES = 62
"""Bits of a non-negative 64-bit integer, less one."""

IGNORED = -1
"""Value of pixels that are ignored, for all classes."""


def pack(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which classes are present, (K, H, W), as packed classes (H, W).

    Raises:
        ValueError: There are more classes than bits.
    """
    if len(present) > MOST_CLASSES:
        raise ValueError(f"{len(present)} classes that may overlap; there can be {MOST_CLASSES}")
    packed = np.zeros(present.shape[1:], np.int64)
    for class_id, mask in enumerate(present):
        packed |= mask.astype(np.int64) << class_id
    return packed


def unpack(packed: NDArray[np.integer], num_classes: int) -> NDArray[np.bool_]:
    """Packed classes (H, W) as bool (K, H, W); all classes are absent where pixels are ignored."""
    labeled = np.where(packed == IGNORED, 0, packed)
    return np.stack([labeled >> class_id & 1 == 1 for class_id in range(num_classes)])


def count_pixels(packed: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """Number of pixels of each class, (K,)."""
    return unpack(packed, num_classes).sum((1, 2), dtype=np.int64)
