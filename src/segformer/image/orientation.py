"""The orientation of photographs, which cameras write beside the pixels (EXIF)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from segformer.image.preprocessing import ImageArray

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

_ORIENTATION = 0x0112
"""EXIF tag."""


def exif_orientation(source: str | Path | bytes) -> int:
    """The EXIF orientation of a file, 1..8; 1 where there is none or it cannot be read."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            orientation = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # reading the pixels says what is wrong with the file
        return 1
    return orientation if orientation in range(1, 9) else 1


def jpeg_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a JPEG file, upright; None for others and for unreadable files."""
    try:
        with Image.open(path) as file:
            if file.format != "JPEG":
                return None
            width, height = file.size
            is_sideways = file.getexif().get(_ORIENTATION) in SIDEWAYS
    except Exception:  # reading the pixels says what is wrong with the file
        return None
    return (width, height) if is_sideways else (height, width)


def turn_upright(values: ImageArray, orientation: int) -> ImageArray:
    """Apply an EXIF orientation (1..8) to (H, W) or (H, W, C); other numbers change nothing."""
    match orientation:
        case 2:
            return values[:, ::-1]
        case 3:
            return values[::-1, ::-1]
        case 4:
            return values[::-1]
        case 5:
            return values.swapaxes(0, 1)
        case 6:
            return np.rot90(values, -1)
        case 7:
            return values[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(values, 1)
    return values
