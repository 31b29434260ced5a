"""The pixels of files exactly as stored: TIFF, NumPy arrays and PNG of 16 bits.

Pillow reads 8-bit images well, but only the first band of some TIFFs and the high byte of 16-bit
colors. The readers here return all bands with their own values.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import io
import logging
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from segformer.image.orientation import turn_upright
from segformer.image.preprocessing import ImageArray

_HIGHEST_COMPRESSION = 1200
"""Deflate, the strongest codec in common use, compresses by at most 1032 to 1."""

_FREE_BYTES = 1 << 26
"""Arrays up to this size are allocated without asking how large their file is."""

_ALPHA = (1, 2)
"""Values of TIFF's ExtraSamples that mean transparency."""

_GDAL_NODATA = 42113
"""TIFF tag."""

_PILLOW_COLORS = ("RGB", "PALETTE", "SEPARATED", "YCBCR", "CIELAB")


class UnreadableImage(ValueError):
    """An image or mask that cannot be read; the message names it and says why."""


class WrongChannels(UnreadableImage):
    """An image with another number of channels than expected.

    Args:
        name: What to call the image.
        expected: Number of channels that the model or data set takes.
        found: Number of channels of the image.
        hint: Appended to the message.
    """

    def __init__(self, name: str, expected: int, found: int, hint: str = ""):
        super().__init__(f"{name}: the model takes {expected} channels, this has {found}{hint}")
        self.found = found


@dataclass(frozen=True)
class StoredPixels:
    """Pixels as a file holds them.

    Attributes:
        values: (H, W) or (H, W, C), upright, without transparency where color is wanted.
        highest: Value that means white, where the file says so.
        inverted: 0 means white (TIFF's ``MINISWHITE``).
        nodata: Value that means that there is no data, where the file says so (GDAL's tag).
    """

    values: ImageArray
    highest: float | None = None
    inverted: bool = False
    nodata: float | None = None


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def _is_wanted(_: logging.LogRecord) -> bool:
    return not _quiet.get()


logging.getLogger("tifffile").addFilter(_is_wanted)


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Drop tifffile's log messages in this thread: a broken file is reported by an exception."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_tiff(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_npy(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a NumPy array."""
    return head[:6] == b"\x93NUMPY"


def is_deep_png(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a PNG of 16-bit colors or gray with alpha."""
    return head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) > 25 and head[24:26] in _DEEP_PNG


_DEEP_PNG = (b"\x10\x02", b"\x10\x04", b"\x10\x06")
"""Bit depth 16 and color type RGB, gray with alpha, RGB with alpha."""


def load_npy(data: bytes, name: str) -> ImageArray:
    """The array of a ``.npy`` file.

    Raises:
        UnreadableImage: The header is broken, or announces more than the file holds.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        count = 1
        for side in shape:
            count *= int(side)
        if count < 0 or count * dtype.itemsize > len(data) - file.tell():
            raise ValueError(f"the header announces {shape} {dtype}, the file is shorter")
        values = np.frombuffer(data, dtype, count, file.tell())
        values = values.reshape(shape, order="F" if fortran else "C")
        return values.astype(dtype.newbyteorder("="))  # a writable copy of the native byte order
    except MemoryError:
        raise
    except Exception as error:  # the header is parsed as Python, so errors are of many types
        raise UnreadableImage(f"{name}: cannot be read as an array ({error})") from None


def load_tiff(data: bytes | Path, channels: int, name: str) -> StoredPixels | None:
    """The pixels of a TIFF with all its bands, or None where Pillow reads the same.

    Args:
        data: The file or its content.
        channels: Number of channels wanted; transparency is dropped for 1 and 3.
        name: What to call the file.

    Raises:
        UnreadableImage: The file is broken, too large, or needs a codec that is not installed.
    """
    source: Any = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with quiet_tifffile(), tifffile.TiffFile(source) as file:
            page: Any = file.pages.first
            stored = len(data) if isinstance(data, bytes) else data.stat().st_size
            values = _stack_of_pages(file, page, channels, stored, name)
            if values is not None:
                return StoredPixels(values, _highest(page), nodata=_nodata(page))
            if channels in (1, 3) and _pillow_reads(page):
                return None
            orientation = _number(page, "Orientation") or 1
            values = _first_page(page, data, stored, name)
            if channels in (1, 3) and values.ndim == 3 and _has_alpha(page):
                values = values[:, :, :-1]
            return StoredPixels(
                turn_upright(values, int(orientation)),
                _highest(page),
                page.photometric == tifffile.PHOTOMETRIC.MINISWHITE,
                _nodata(page),
            )
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # tifffile raises whatever its codecs raise
        raise UnreadableImage(f"{name}: cannot be decoded ({error})") from None


def load_deep_png(data: bytes, name: str) -> StoredPixels:
    """The 16-bit colors of a PNG, transparency dropped.

    Raises:
        UnreadableImage: The file is broken.
    """
    values = _decode_with_opencv(data, name)
    if values.ndim == 3:
        values = values[:, :, :1] if data[25] == 4 else values[:, :, :3]
    return StoredPixels(values, png_highest(data, values))


def png_highest(data: bytes, values: ImageArray) -> float | None:
    """Value that means white in a 16-bit PNG that declares fewer significant bits (``sBIT``).

    The specification has such samples scaled up to 16 bits; some cameras store them unscaled,
    which shows in values that all fit into the declared bits.
    """
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"sBIT" and 0 < length <= 4 and at + 8 + length <= len(data):
            bits = max(data[at + 8 : at + 8 + length])
            highest = 2.0**bits - 1
            return highest if 8 < bits < 16 and values.max(initial=0) <= highest else None
        if kind in (b"IDAT", b"IEND"):
            return None
        at += 12 + length
    return None


def check_size(name: str, height: int, width: int, size: int, stored: int) -> None:
    """Raise an UnreadableImage for a header that announces more than its file can hold.

    Args:
        name: What to call the file.
        height: In pixels.
        width: In pixels.
        size: Bytes of the pixels in memory.
        stored: Bytes of the file.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit and size > 8 * stored:
        raise UnreadableImage(
            f"{name}: {width} x {height} pixels exceed the limit of {2 * limit}; raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )
    if size > _FREE_BYTES + _HIGHEST_COMPRESSION * stored:
        raise UnreadableImage(
            f"{name}: the header announces {width} x {height} pixels of {size} bytes, the file "
            f"has {stored}"
        )


def _pillow_reads(page: Any) -> bool:
    """Whether Pillow reads all that a color or gray model needs of a TIFF's first page."""
    if page.dtype is None or page.dtype not in (np.uint8, np.bool_):
        return False
    if page.samplesperpixel == 1:
        return True
    if page.samplesperpixel == 2:
        return _has_alpha(page)
    photometric = getattr(page.photometric, "name", "")
    return page.samplesperpixel <= 4 and photometric in _PILLOW_COLORS


def _has_alpha(page: Any) -> bool:
    extra = page.extrasamples
    return page.samplesperpixel in (2, 4) and len(extra) == 1 and int(extra[0]) in _ALPHA


def _stack_of_pages(
    file: Any, page: Any, channels: int, stored: int, name: str
) -> ImageArray | None:
    """(H, W, C) of a file that has a page per channel, or per row as tifffile writes some arrays.

    Returns:
        None where the first page is the image. Pages count as channels of gray and RGB only if
        the file says so: they may be a stack of images.
    """
    if page.samplesperpixel != 1 or len(file.pages) == 1:
        return None
    series = file.series[0]
    if len(series.shape) != 3 or not (
        file.is_shaped or "C" in series.axes or (channels > 3 and channels == series.shape[0])
    ):
        return None
    first, height, last = series.shape
    check_size(name, height, last, series.dtype.itemsize * first * height * last, stored)
    values = np.asarray(series.asarray())
    channels_last = last == channels or (first != channels and last < first)
    return values if channels_last else np.moveaxis(values, 0, -1)


def _first_page(page: Any, data: bytes | Path, stored: int, name: str) -> ImageArray:
    """(H, W) or (H, W, C) of a page."""
    height, width = int(page.imagelength), int(page.imagewidth)
    itemsize = page.dtype.itemsize if page.dtype is not None else 1
    check_size(name, height, width, height * width * page.samplesperpixel * itemsize, stored)
    if getattr(page, "imagedepth", 1) != 1:
        raise UnreadableImage(f"{name}: a volume of {page.imagedepth} slices, not an image")
    try:
        values = np.asarray(page.asarray())
    except MemoryError:
        raise
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
        content = data if isinstance(data, bytes) else data.read_bytes()
        values = _decode_with_opencv(content, name, f"{error}")
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3:
        values = values if values.shape[2] == page.samplesperpixel else np.moveaxis(values, 0, -1)
    return values


def _highest(page: Any) -> float | None:
    """The largest value that a TIFF of integers declares, where it is less than its type's."""
    if page.dtype is None or page.dtype.kind not in "ui":
        return None
    largest = float(np.iinfo(page.dtype).max)
    for name in ("SMaxSampleValue", "MaxSampleValue"):
        declared = _number(page, name)
        if declared is not None and 255 < declared < largest:
            return declared
    bits = page.bitspersample
    return 2.0**bits - 1 if isinstance(bits, int) and 8 < bits < 8 * page.dtype.itemsize else None


def _nodata(page: Any) -> float | None:
    """The number in the tag GDAL_NODATA, a text; None where there is none, or it is NaN."""
    if _GDAL_NODATA not in page.tags:
        return None
    try:
        value = float(str(page.tags[_GDAL_NODATA].value).strip(" \0"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(page: Any, tag: str) -> float | None:
    """The largest number in a tag of a TIFF page; None where it is missing or no number."""
    if tag not in page.tags:
        return None
    try:
        return float(np.max(page.tags[tag].value))
    except (TypeError, ValueError):
        return None


def _decode_with_opencv(data: bytes, name: str, reason: str = "") -> ImageArray:
    """(H, W) or (H, W, C) as RGB or RGBA, values as stored."""
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        values, reason = None, reason or str(error)
    if values is None:
        raise UnreadableImage(f"{name}: cannot be decoded ({reason or 'the file is broken'})")
    if values.ndim == 3 and values.shape[2] >= 3:
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    return np.ascontiguousarray(values)
