"""Reading images and masks as the field writes them, and the one place that normalizes.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

ImageArray: TypeAlias = NDArray[Any]
"""(H, W, C), integers or floats."""

ImageSource: TypeAlias = str | Path | bytes | Image.Image | ImageArray

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .png .bmp .tif .tiff .webp .gif .ppm .pgm .pnm .jp2 .avif .npy".split()
)
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".npy")

_LONGEST_RATIO = 16
"""Long side over short side, up to which a resize to a short side keeps the ratio."""

_LARGEST_SIDE = 1 << 17
"""Pixels that a preprocessing may ask for."""

_ONE_OR_SO = 1.05
"""Floats up to here are taken as 0..1, a little overshoot of some filter allowed."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # a broken file is reported once, by us

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class UnreadableImage(ValueError):
    """An image or mask that cannot be read; the message names it and says why."""


def read_image(source: ImageSource, channels: int = 3) -> ImageArray:
    """Read an image, upright.

    The EXIF orientation is applied. With three channels, palettes, gray, 1-bit, CMYK and other
    color spaces become RGB, transparency is dropped and 16-bit values are scaled to 8 bits.
    With one channel, color becomes gray. Other numbers of channels are taken as they are stored:
    RGBA for four, a TIFF of many channels, or an array (H, W, C), ``.npy`` or in memory.

    Args:
        source: Path, encoded bytes, PIL image, or array (H, W) or (H, W, C).
        channels: What the model takes.

    Returns:
        (H, W, channels); uint8, or an array's own type where one was given.

    Raises:
        UnreadableImage: Missing, broken, not an image, or with other channels.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        return _array_channels(source, channels, name)
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.suffix.lower() == ".npy":
            return _array_channels(_load_npy(path), channels, name)
        stored = _tiff_channels(path)
        if stored > 4 or (stored and channels not in (1, 3)):
            return _array_channels(_load_tiff(path), channels, name)
    image = _decode(source, name)
    if channels == 3:
        return np.asarray(_to_8_bit(image).convert("RGB"))
    if channels == 1:
        return np.asarray(_to_8_bit(image).convert("L"))[:, :, None]
    return _array_channels(np.asarray(image), channels, name)


def read_mask(source: ImageSource) -> NDArray[np.integer]:
    """Read a mask's values: palette indices, gray levels of 8 or 16 bits, or integers.

    A mask stored as RGB with three equal channels is read as gray.

    Returns:
        (H, W) integers, unmapped.

    Raises:
        UnreadableImage: Missing, broken, or of real colors.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        values = source
    elif isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".npy":
        values = _load_npy(Path(source))
    else:
        values = np.asarray(_decode(source, name))
    if values.ndim == 3 and values.shape[2]:
        colors = values[:, :, : 3 if values.shape[2] >= 3 else 1]
        if (colors != colors[:, :, :1]).any():
            raise UnreadableImage(
                f"{name}: a mask must hold class ids in one channel, this one holds colors; "
                "convert each color to its class id first"
            )
        values = colors[:, :, 0]
    if values.ndim != 2 or 0 in values.shape:
        raise UnreadableImage(f"{name}: a mask must be (H, W), this one is {values.shape}")
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise UnreadableImage(f"{name}: a mask must hold integers, this one holds {values.dtype}")
    return values


def _name(source: ImageSource) -> str:
    """What to call a source in a message."""
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "image"
    return "image in memory"


def _decode(source: str | Path | bytes | Image.Image, name: str) -> Image.Image:
    """Decode completely, so that a truncated file is found here, and turn upright."""
    try:
        with warnings.catch_warnings():
            # Large images are this package's business; PIL's error at twice the size stays.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            if isinstance(source, Image.Image):
                return ImageOps.exif_transpose(source)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                file.load()
                return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise UnreadableImage(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise UnreadableImage(f"{name}: not an image in a known format") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(
            f"{name}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from None
    except Exception as error:  # decoders raise what they like on broken files
        raise UnreadableImage(f"{name}: cannot be decoded ({error})") from None


def _load_npy(path: Path) -> ImageArray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        raise UnreadableImage(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImage(f"{path}: cannot be read as an array ({error})") from None


def _tiff_channels(path: Path) -> int:
    """Number of channels of a TIFF, 0 for other files. Pillow would read the first alone."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 0
    try:
        with tifffile.TiffFile(path) as file:
            return int(file.pages.first.samplesperpixel)
    except Exception:  # whatever tifffile raises; Pillow says what is wrong with the file
        return 0


def _load_tiff(path: Path) -> ImageArray:
    """(H, W, C) of a TIFF of any number of channels, interleaved or one after another."""
    try:
        with tifffile.TiffFile(path) as file:
            values = file.asarray()
            apart = file.pages.first.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    except Exception as error:  # tifffile raises whatever its codecs raise
        raise UnreadableImage(f"{path}: cannot be decoded ({error})") from None
    return np.moveaxis(values, 0, -1) if apart and values.ndim == 3 else values


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Gray levels of 16 bits, of 32 that hold 16 or 8, and of 0..1 to 8; the rest untouched."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    values = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
    if image.mode == "F" and values.max() <= _ONE_OR_SO:
        values = 255 * values
    elif values.max() > 255:
        values = values / 257
    return Image.fromarray(np.rint(np.clip(values, 0, 255)).astype(np.uint8))


def _array_channels(values: ImageArray, channels: int, name: str) -> ImageArray:
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or 0 in values.shape:
        raise UnreadableImage(f"{name}: an array must be (H, W) or (H, W, C), not {values.shape}")
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise UnreadableImage(f"{name}: an array must hold numbers, not {values.dtype}")
    if values.shape[2] == 1 and channels == 3:
        values = np.repeat(values, 3, axis=2)
    if values.shape[2] == 4 and channels == 3 and values.dtype == np.uint8:
        values = values[:, :, :3]  # transparency
    if values.shape[2] != channels:
        hint = " (channels must come last)" if values.shape[0] == channels else ""
        raise UnreadableImage(
            f"{name}: the model takes {channels} channels, this has {values.shape[2]}{hint}"
        )
    if channels == 3 and values.dtype == np.uint16:
        return np.rint(values / 257).astype(np.uint8)
    return values


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    Attributes:
        size: (height, width) to resize to, or one number: the short side, ratio kept; or None:
            the image's own size.
        multiple: Sides are rounded to a multiple of this where the ratio is kept.
        mean: Of each channel, after rescaling.
        std: Of each channel, after rescaling.
        rescale: Factor on the stored values; 1/255 takes 8 bits to 0..1.
        resample: Filter of the resizing, antialiased as Pillow's: a key of ``RESAMPLING``.
        crop: (height, width) of the middle that is kept after resizing; for classifiers, whose
            output has no places.
        reduce_labels: The model was trained with mask value 0 dropped and the rest shifted
            down (ADE20K). It concerns masks, never images.
    """

    size: tuple[int, int] | int | None = (512, 512)
    multiple: int = 1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    rescale: float = 1 / 255
    resample: str = "bilinear"
    crop: tuple[int, int] | None = None
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else (self.size or 1,)
        if len(self.mean) != len(self.std) or not all(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must match and not be zero")
        numbers = (*self.mean, *self.std, self.rescale)
        if not all(map(math.isfinite, numbers)) or not self.rescale:
            raise ValueError("mean, std and rescale must be finite, and rescale not zero")
        largest = max(*sides, *(self.crop or (1,)), self.multiple)
        if largest > _LARGEST_SIDE or (self.crop is not None and min(self.crop) < 1):
            raise ValueError(f"size {self.size} and crop {self.crop} must be 1 to {_LARGEST_SIDE}")
        if min(*sides, 1, self.multiple) < 1:
            raise ValueError(f"size {self.size} and multiple {self.multiple} must be positive")
        if self.resample not in RESAMPLING:
            raise ValueError(f"resample {self.resample!r} is none of {', '.join(RESAMPLING)}")

    @classmethod
    def for_channels(cls, channels: int) -> Preprocessing:
        """ImageNet statistics for three channels, 0.5 for any other number."""
        if channels == 3:
            return cls()
        return cls(mean=(0.5,) * channels, std=(0.25,) * channels)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which an image of this size goes into the model.

        A chunk longer than 16 times its width is made shorter: kept, its ratio would make
        512 x 150,000 pixels of 10 x 3000.
        """
        if isinstance(self.size, tuple):
            return self.size
        short, long = sorted((height, width))
        if self.size is None:
            sides = {short: short, long: long}
        else:
            ratio = min(long / short, _LONGEST_RATIO)
            sides = {short: self.size, long: self.size if long == short else int(self.size * ratio)}
        if self.multiple > 1:
            sides = {k: -(-v // self.multiple) * self.multiple for k, v in sides.items()}
        return sides[height], sides[width]

    def normalize(self, image: ImageArray) -> NDArray[np.float32]:
        """(H, W, C) stored values -> (H, W, C) float32 of mean 0 and deviation 1, roughly.

        Values that are not finite, no data in many float images, become the mean.

        Raises:
            ValueError: Other channels than the preprocessing has, or floats of 0..1 for a model of
                0..255.
        """
        if image.shape[2] != len(self.mean):
            raise ValueError(
                f"the image has {image.shape[2]} channels, "
                f"the preprocessing's mean has {len(self.mean)}"
            )
        std = np.asarray(self.std, dtype=np.float64)
        scale = np.float32(self.rescale / std)
        shift = np.float32(np.asarray(self.mean) / std)
        if image.dtype == np.uint8:
            table = np.arange(256, dtype=np.float32)[:, None] * scale - shift
            looked_up = cv2.LUT(np.ascontiguousarray(image), table[None])
            return np.asarray(looked_up, np.float32).reshape(image.shape)
        if image.dtype.kind != "f":
            return image.astype(np.float32) * scale - shift
        if abs(255 * self.rescale - 1) < 1e-3 and 0 < np.nanmax(image, initial=0) <= 1:
            raise ValueError("the image's values end at 1, the model expects 0..255; scale them")
        normalized = image.astype(np.float32) * scale - shift
        return np.nan_to_num(normalized, copy=False, nan=0, posinf=0, neginf=0)


def center_crop(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """The middle (height, width) of (H, W, C); of a smaller image, all there is is enlarged."""
    height, width = size
    if image.shape[0] < height or image.shape[1] < width:
        factor = max(height / image.shape[0], width / image.shape[1])
        sides = tuple(round(side * factor) for side in image.shape[:2])
        image = resize(image, (max(sides[0], height), max(sides[1], width)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def resize(image: ImageArray, size: tuple[int, int], resample: str = "bilinear") -> ImageArray:
    """Resize (H, W, C) to ``size`` = (height, width), antialiased, as Pillow does.

    uint8 stays uint8; any other type becomes float32.
    """
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    method = RESAMPLING[resample]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), method)
        return np.asarray(resized)
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
    channels = [
        Image.fromarray(np.ascontiguousarray(image[:, :, channel])).resize((width, height), method)
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)
