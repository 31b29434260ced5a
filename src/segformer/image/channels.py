"""Images whose channels lie in files of their own, and pixels without data.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segformer.image.preprocessing import ImageArray, resize
from segformer.image.stored import UnreadableImage


def stack_channels(channels: Sequence[ImageArray], names: Sequence[str]) -> ImageArray:
    """Put channels of one image into one array, all at the size of the largest.

    Smaller channels are resized bilinearly. What touches a NaN becomes NaN.

    Args:
        channels: (H, W) or (H, W, 1) each, of any sizes that divide the largest size evenly.
        names: What to call each, for messages.

    Returns:
        (H, W, C) of the type that holds all values.

    Raises:
        UnreadableImage: A file has several channels, or the sizes do not fit.
    """
    if not channels:
        raise UnreadableImage("an image of several files needs at least one file")
    planes = []
    for channel, name in zip(channels, names, strict=True):
        if channel.ndim != 2 and channel.shape[2:] != (1,):
            raise UnreadableImage(
                f"{name}: the array is {channel.shape}; a file that is one of several for an image "
                "must have one channel"
            )
        planes.append(channel.reshape(*channel.shape[:2], 1))
    largest = max(range(len(planes)), key=lambda i: planes[i].size)
    height, width = planes[largest].shape[:2]
    for plane, name in zip(planes, names, strict=True):
        rows, columns = plane.shape[:2]
        if (
            0 in plane.shape
            or height % rows
            or width % columns
            or height // rows != width // columns
        ):
            raise UnreadableImage(
                f"{name}: {columns} x {rows} pixels do not divide the {width} x {height} pixels of "
                f"{names[largest]} evenly; channels of one image must cover the same area"
            )
    return np.concatenate([_enlarged(plane, (height, width)) for plane in planes], axis=2)


def _enlarged(plane: ImageArray, size: tuple[int, int]) -> ImageArray:
    """(H, W, 1) at another size, of the same type."""
    if plane.shape[:2] == size:
        return plane
    resized = resize(plane, size)
    if plane.dtype.kind in "ui":
        resized = np.rint(resized)  # between the smallest and the largest value
    return resized.astype(plane.dtype)


def mark_missing(values: ImageArray, nodata: float | None) -> ImageArray:
    """Write NaN wherever the value means that there is no data.

    NaN stays what it is when an image is resized, while a value such as -9999 would be mixed into
    its neighbors.

    Args:
        values: Of any shape.
        nodata: The value; None changes nothing.

    Returns:
        Floats; 8-bit values are unchanged, because each of them is also a color.
    """
    if nodata is None or values.dtype in (np.uint8, np.bool_):
        return values
    marked = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    marked[_is_nodata(values, nodata)] = np.nan
    return marked


def missing_pixels(image: ImageArray, nodata: float | None = None) -> NDArray[np.bool_] | None:
    """Pixels of (H, W, C) that have no data in any channel; in 8-bit images: in all channels.

    Args:
        image: As `read_image` returns it.
        nodata: Value that means that there is no data, for 8-bit images.

    Returns:
        (H, W), or None where none can be missing.
    """
    if image.dtype.kind == "f":
        return np.asarray(~np.isfinite(image).all(2))
    if nodata is None:
        return None
    found = _is_nodata(image, nodata)
    return np.asarray(found.all(2) if image.dtype == np.uint8 else found.any(2))


def _is_nodata(values: ImageArray, nodata: float) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":  # the lowest float32, written in decimal digits, is not exact
        with np.errstate(over="ignore"):
            return np.asarray(values == values.dtype.type(nodata))
    return np.asarray(values == nodata)
