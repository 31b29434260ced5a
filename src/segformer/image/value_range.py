"""The range of stored values, and scaling them to 8 bits.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segformer.image.preprocessing import ImageArray
from segformer.image.stored import StoredPixels, UnreadableImage

_NEARLY_ONE = 1.05
"""Floats from -0.05 to here count as 0..1: filters overshoot a little."""


def scale_to_8_bit(
    values: ImageArray,
    pixels: StoredPixels,
    value_range: tuple[float, float] | None,
    name: str,
) -> NDArray[np.uint8]:
    """Scale values of any type to 0..255, NaN and infinity to 0.

    Args:
        values: (H, W, C) stored values.
        pixels: What the file declares of them.
        value_range: The stored values that become 0 and 255. Default: see `stored_range`.
        name: Of the image, for errors.

    Raises:
        UnreadableImage: The range is empty, or unknown.
    """
    low, high = value_range or stored_range(values, pixels.highest, name)
    if not low < high:
        raise UnreadableImage(f"{name}: value_range must be (low, high), not {value_range}")
    if pixels.inverted:
        low, high = high, low
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    finite = np.nan_to_num(scaled, copy=False, nan=0, posinf=0, neginf=0)
    return np.rint(finite.clip(0, 255)).astype(np.uint8)


def stored_range(values: ImageArray, declared: float | None, name: str) -> tuple[float, float]:
    """The stored values that mean 0 and 255, as the file or its type says.

    Args:
        values: Stored values, of any shape.
        declared: The largest value, if the file declares it.
        name: Of the image, for errors.

    Raises:
        UnreadableImage: Neither does.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    lowest, highest = float(finite.min(initial=0)), float(finite.max(initial=0))
    if declared is not None and lowest >= 0:
        return 0.0, declared
    if values.dtype.kind == "f":
        if lowest >= 1 - _NEARLY_ONE and highest <= _NEARLY_ONE:
            return 0.0, 1.0
    elif values.dtype == np.uint16:
        return 0.0, 65535.0
    elif lowest >= 0 and highest <= 255:
        return 0.0, 255.0
    elif lowest >= 0 and highest <= 65535 and values.dtype.itemsize > 2:
        return 0.0, 65535.0
    raise UnreadableImage(
        f"{name}: {values.dtype} values from {lowest:g} to {highest:g}, the model expects 8 bits "
        "(0 to 255) and the file does not say which values mean black and white; set value_range "
        "to those two values"
    )
