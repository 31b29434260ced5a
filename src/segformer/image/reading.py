"""Reading images and masks as people store them.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from segformer.image.channels import mark_missing, stack_channels
from segformer.image.orientation import exif_orientation, turn_upright
from segformer.image.preprocessing import ImageArray
from segformer.image.scene_tile import SceneTile
from segformer.image.stored import (
    StoredPixels,
    UnreadableImage,
    WrongChannels,
    check_size,
    is_deep_png,
    is_npy,
    is_tiff,
    load_deep_png,
    load_npy,
    load_tiff,
    png_highest,
)
from segformer.image.value_range import scale_to_8_bit

# Pillow logs an error for TIFFs of many bands, which are read here in another way; without a
# handler, Python would print it
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())

ImageFiles: TypeAlias = Path | tuple[Path, ...] | SceneTile
"""The file of an image, the files of its channels, in order, or a tile of a scene."""

OneSource: TypeAlias = str | Path | bytes | Image.Image | ImageArray | SceneTile

ImageSource: TypeAlias = OneSource | list[str] | list[Path] | tuple[str, ...] | tuple[Path, ...]
"""An image; a list or tuple of paths is one image with a file per channel."""

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .png .bmp .tif .tiff .webp .gif .ppm .pgm .pnm .jp2 .avif .npy".split()
)
LOSSY_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe"))
"""Suffixes of formats that change the values of a mask."""

MASK_SUFFIXES = frozenset(".png .tif .tiff .bmp .gif .webp .pgm .npy".split()) | LOSSY_SUFFIXES

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in gray (ITU-R 601), as Pillow's."""


def read_image(
    source: ImageSource,
    channels: int = 3,
    *,
    as_8_bit: bool = True,
    value_range: tuple[float, float] | None = None,
    nodata: float | None = None,
    reduction: int = 1,
) -> ImageArray:
    """Read an image, upright (the EXIF orientation is applied).

    With three channels, palettes, gray, 1-bit, CMYK and other color spaces become RGB, and
    transparency is dropped. With one channel, color becomes gray. Other numbers of channels are
    read as stored: RGBA for four, a TIFF of many bands, or an array.

    Several files of one channel each are one image. Smaller ones are resized bilinearly to the
    size of the largest, which must be a multiple of theirs.

    Args:
        source: Path, encoded bytes, PIL image, array (H, W) or (H, W, C), a list or tuple of
            paths, one for each channel, or a tile of a scene.
        channels: Number of channels that the model takes.
        as_8_bit: Scale gray and color of more than 8 bits to 0..255, for models that expect
            8-bit values (`Preprocessing.expects_8_bit`). The range is ``value_range``, else what
            the file declares (TIFF's ``MaxSampleValue``, ``SMaxSampleValue`` and
            ``BitsPerSample``, PNG's ``sBIT``), else all of 16 bits, or 0..1 for floats. False:
            the values as stored.
        value_range: (low, high): the stored values that become 0 and 255. It does not apply to
            8-bit images.
        nodata: Value that means that there is no data; it becomes NaN. Default: what the file
            declares (GDAL's ``GDAL_NODATA`` tag). It does not apply to 8-bit values.
        reduction: Decode a JPEG file at 1/2, 1/4 or 1/8 of its height and width, which takes a
            fraction of the time (2, 4 or 8; sides are rounded up). Other formats cannot be
            decoded in parts and are read at their size; see `jpeg_size`.

    Returns:
        (H, W, channels). 8-bit files are uint8. Others are uint8 with ``as_8_bit`` and one or
        three channels, else of the type that is stored, or floats where a no-data value is known.
        Float arrays in memory are not scaled unless ``value_range`` is given.

    Raises:
        UnreadableImage: The file is missing, broken or not an image, has another number of
            channels, or its range is needed and unknown.
        TypeError: ``source`` is something else.
    """
    name = image_name(source)
    to_8_bit = as_8_bit and channels in (1, 3)
    if isinstance(source, (list, tuple)):
        pixels = _decode_channels(source, nodata, mark=not to_8_bit)
    else:
        pixels = _decode(source, channels, name, reduction)
    values = _fit_channels(pixels.values, channels, name)
    if isinstance(source, np.ndarray) and values.dtype.kind == "f" and value_range is None:
        to_8_bit = False
    if to_8_bit and values.dtype != np.uint8:
        return scale_to_8_bit(values, pixels, value_range, name)
    return mark_missing(values, pixels.nodata if nodata is None else nodata)


def read_mask(source: OneSource) -> NDArray[np.integer]:
    """Read the values of a mask: palette indices, gray levels of 8 or 16 bits, or integers.

    Masks stored as RGB with three equal channels are read as gray.

    Returns:
        (H, W) integers, unmapped.

    Raises:
        UnreadableImage: The file is missing or broken, or holds colors.
        TypeError: ``source`` is neither a path, bytes, an image nor an array.
    """
    values = read_mask_or_colors(source)
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise UnreadableImage(
                f"{image_name(source)}: a mask must hold class ids in one channel, this one holds "
                "colors; give the color of each class as palette in dataset.yaml"
            )
        values = values[:, :, 0]
    return values


def read_mask_or_colors(source: OneSource) -> NDArray[np.integer]:
    """Read a mask that may hold colors.

    Returns:
        (H, W) integers as `read_mask`, or (H, W, 3) where red, green and blue are stored.

    Raises:
        UnreadableImage: The file is missing or broken, or no mask.
        TypeError: ``source`` is neither a path, bytes, an image nor an array.
    """
    name = image_name(source)
    values = _decode(source, None, name).values
    if values.ndim == 3 and values.shape[2]:
        values = values[:, :, :3] if values.shape[2] >= 3 else values[:, :, 0]
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise UnreadableImage(f"{name}: a mask must be (H, W), this one is {values.shape}")
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise UnreadableImage(f"{name}: a mask must hold integers, this one holds {values.dtype}")
    return values


def read_mask_channels(source: OneSource, channels: int) -> NDArray[np.integer]:
    """Read a mask with one channel for each class, as stored.

    Returns:
        (H, W, channels) integers.

    Raises:
        UnreadableImage: The file is missing or broken, holds no integers, or has another number
            of channels.
    """
    name = image_name(source)
    values = _decode(source, 0, name).values
    found = values.shape[2] if values.ndim == 3 else 1
    if found != channels or values.ndim != 3:
        raise UnreadableImage(
            f"{name}: a mask of {channels} classes that may overlap needs {channels} channels, "
            f"this one has {found}"
        )
    if values.dtype.kind not in "uib":
        raise UnreadableImage(f"{name}: a mask must hold integers, this one holds {values.dtype}")
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def source_files(source: ImageFiles) -> tuple[Path, ...]:
    """The files that an image is read from: one, or one for each channel."""
    if isinstance(source, SceneTile):
        return (source.file,)
    return (source,) if isinstance(source, Path) else source


def image_name(source: object) -> str:
    """What to call a source in a message.

    Raises:
        TypeError: It cannot be an image.
    """
    if isinstance(source, (str, Path, SceneTile)):
        return str(source)
    if (
        isinstance(source, (list, tuple))
        and source
        and all(isinstance(file, (str, Path)) for file in source)
    ):
        more = len(source) - 1
        return f"{source[0]} and {more} more files" if more else str(source[0])
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "image"
    if isinstance(source, (bytes, np.ndarray)):
        return "image in memory"
    advice = ""
    if type(source).__module__.partition(".")[0] == "torch":
        advice = "; convert a tensor (C, H, W) with tensor.permute(1, 2, 0).cpu().numpy()"
    raise TypeError(
        "an image must be a path, encoded bytes, a PIL image, a NumPy array (H, W, C) or a list of "
        f"paths, one for each channel, not {type(source).__name__}{advice}"
    )


def _decode_channels(
    files: Sequence[str] | Sequence[Path], nodata: float | None, *, mark: bool
) -> StoredPixels:
    """The pixels of an image with a file for each channel.

    Args:
        files: One for each channel.
        nodata: Value that means that there is no data. Default: what each file declares.
        mark: Write NaN where there is no data.
    """
    names = [str(file) for file in files]
    parts = [_decode(name, 0, name) for name in names]
    if not mark:
        highest = [part.highest for part in parts if part.highest is not None]
        values = stack_channels([part.values for part in parts], names)
        return StoredPixels(values, max(highest) if len(highest) == len(parts) else None)
    marked = [
        mark_missing(part.values, part.nodata if nodata is None else nodata) for part in parts
    ]
    return StoredPixels(stack_channels(marked, names))


def _decode(source: OneSource, channels: int | None, name: str, reduction: int = 1) -> StoredPixels:
    """The pixels of an image, or of a mask where ``channels`` is None; values as stored."""
    if isinstance(source, np.ndarray):
        return StoredPixels(source)
    if isinstance(source, SceneTile):
        return source.read()
    if isinstance(source, Image.Image):
        return StoredPixels(_pillow_values(source, channels, name))
    data = source if isinstance(source, bytes) else Path(source)
    head = _read(data, name, 64)
    if is_npy(head) or (isinstance(data, Path) and data.suffix.lower() == ".npy"):
        return StoredPixels(load_npy(_read(data, name), name))
    if is_tiff(head):
        return _decode_tiff(data, channels, name)
    if is_deep_png(head) and channels in (1, 3):
        content = _read(data, name)
        width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
        check_size(name, height, width, 8 * height * width, len(content))
        pixels = load_deep_png(content, name)
        upright = turn_upright(pixels.values, exif_orientation(content))
        return StoredPixels(upright, pixels.highest)
    values = _pillow_values(data, channels, name, reduction)
    if values.dtype == np.uint16 and channels is not None:
        return StoredPixels(values, png_highest(_read(data, name), values))
    return StoredPixels(values)


def _decode_tiff(data: bytes | Path, channels: int | None, name: str) -> StoredPixels:
    if channels is not None:
        pixels = load_tiff(data, channels, name)
        return pixels or StoredPixels(_pillow_values(data, channels, name))
    try:
        return StoredPixels(_pillow_values(data, None, name))
    except UnreadableImage:
        pixels = load_tiff(data, 0, name)
        if pixels is None:
            raise
        return pixels


def _read(data: bytes | Path, name: str, size: int = -1) -> bytes:
    """The first bytes of a file, or all of them."""
    if isinstance(data, bytes):
        return data if size < 0 else data[:size]
    try:
        with data.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        raise UnreadableImage(f"{name}: no such file") from None
    except IsADirectoryError:
        raise UnreadableImage(f"{name}: a folder, not an image") from None
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"{name}: cannot be read ({error})") from None


def _pillow_values(
    source: Path | bytes | Image.Image, channels: int | None, name: str, reduction: int = 1
) -> ImageArray:
    """(H, W) or (H, W, C), upright; 8-bit colors are converted to ``channels`` if 1 or 3.

    The whole file is decoded, so that truncated files are found here.
    """
    try:
        if isinstance(source, Image.Image):
            return _converted(ImageOps.exif_transpose(source), channels)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if reduction > 1 and file.format == "JPEG":
                width, height = (max(1, side // reduction) for side in file.size)
                file.draft(None, (width, height))
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            return _converted(file, channels)
    except UnidentifiedImageError:
        raise UnreadableImage(f"{name}: not an image in a known format") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(
            f"{name}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types on broken files
        raise UnreadableImage(f"{name}: cannot be decoded ({error})") from None


def _converted(image: Image.Image, channels: int | None) -> ImageArray:
    if image.mode.startswith(("I", "F")) or channels not in (1, 3):
        return np.asarray(image)
    mode = "RGB" if channels == 3 else "L"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _fit_channels(values: ImageArray, channels: int, name: str) -> ImageArray:
    """(H, W) or (H, W, C) of any type -> (H, W, channels), values unchanged but for gray."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or 0 in values.shape:
        raise UnreadableImage(f"{name}: an array must be (H, W) or (H, W, C), not {values.shape}")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype.kind not in "uif":
        raise UnreadableImage(f"{name}: an array must hold numbers, not {values.dtype}")
    if values.shape[2] == 1 and channels == 3:
        values = np.repeat(values, 3, axis=2)
    if values.shape[2] == 4 and channels == 3 and values.dtype == np.uint8:
        values = values[:, :, :3]  # transparency
    if values.shape[2] == 3 and channels == 1:
        gray = values @ _LUMA
        values = (gray if values.dtype.kind == "f" else np.rint(gray)).astype(values.dtype)
        values = values[:, :, None]
    if values.shape[2] != channels:
        hint = " (channels must come last)" if values.shape[0] == channels else ""
        raise WrongChannels(name, channels, values.shape[2], hint)
    return values
