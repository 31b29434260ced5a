"""What an image is, from its header alone, and whether the service reads such images."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image

from segformer.image.stored import is_npy, is_tiff, quiet_tifffile
from segformer.image.warning_filters import ignoring
from segformer.serving.options import ServeOptions
from segformer.serving.problems import Problem


@dataclass(frozen=True)
class Header:
    """What a file says of its image.

    Attributes:
        format: One of `ImageFormat`, or another that Pillow knows, in lower case.
        height: Pixels.
        width: Pixels.
        values: Numbers that are decoded.
    """

    format: str
    height: int
    width: int
    values: int


def check_image(data: bytes, options: ServeOptions) -> Header:
    """Read the header of an image, and refuse what is above the limits; nothing is decoded.

    Raises:
        Problem: The format is not read here (415), the image has too many pixels (413), or the
            header is broken (422).
    """
    try:
        header = _read_header(data)
    except (Image.DecompressionBombError, MemoryError):
        raise _too_large("the image", options) from None
    except Exception:  # the readers raise many types on broken headers
        header = None
    accepted = ", ".join(options.formats)
    if header is None:
        raise Problem(
            415 if _is_unknown(data) else 422,
            "unknown-format" if _is_unknown(data) else "unreadable-image",
            f"the data is not an image, or its header is damaged; send one of: {accepted}",
        )
    if header.format not in options.formats:
        raise Problem(
            415,
            "format-not-accepted",
            f"images in the format {header.format} are not read here; send one of: {accepted}",
        )
    if header.height < 1 or header.width < 1:
        raise Problem(422, "unreadable-image", "the image has no pixels")
    # Channels beyond four count too: a file of hundreds of them takes as much as a large image
    if max(header.height * header.width, header.values / 4) > options.max_pixels:
        raise _too_large(f"an image of {header.width} x {header.height} pixels", options)
    return header


def _too_large(what: str, options: ServeOptions) -> Problem:
    return Problem(
        413,
        "too-many-pixels",
        f"{what} is above the limit of {options.max_megapixels:g} megapixels; send it smaller or "
        "in parts",
    )


def _is_unknown(data: bytes) -> bool:
    """Whether data does not begin as one of the formats."""
    known = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8")
    return not (data.startswith(known) or is_tiff(data[:4]) or is_npy(data[:6]))


def _read_header(data: bytes) -> Header:
    if is_npy(data[:6]):
        return _npy_header(data)
    if is_tiff(data[:4]):
        return _tiff_header(data)
    with ignoring(Image.DecompressionBombWarning), Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        kind = (image.format or "unknown").lower()
        return Header(kind, height, width, height * width * len(image.getbands()))


def _npy_header(data: bytes) -> Header:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format
    header = read.read_array_header_1_0 if version == (1, 0) else read.read_array_header_2_0
    shape, _, _ = header(file)
    sides = (*shape, 0, 0)
    return Header("npy", int(sides[0]), int(sides[1]), math.prod(map(int, shape)))


def _tiff_header(data: bytes) -> Header:
    with quiet_tifffile(), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        height, width = int(page.imagelength), int(page.imagewidth)
        values = height * width * int(page.samplesperpixel)
        if page.samplesperpixel == 1 and len(file.pages) > 1:
            values = max(values, math.prod(map(int, file.series[0].shape)))
        return Header("tiff", height, width, values)
