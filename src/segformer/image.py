"""Reading pictures and masks as the field writes them, and the one place that normalises.

Legend: H W pixels, C bands.
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

Picture: TypeAlias = NDArray[Any]
"""(H, W, C), integers or floats."""

PictureSource: TypeAlias = str | Path | bytes | Image.Image | Picture

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PICTURE_SUFFIXES = frozenset(
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
    """A picture or mask that cannot be read; the message names it and says why."""


def read_picture(source: PictureSource, bands: int = 3) -> Picture:
    """Read a picture, upright.

    The EXIF orientation is applied. With three bands, palettes, grey, 1-bit, CMYK and other
    colour spaces become RGB, transparency is dropped and 16-bit values are scaled to 8 bits.
    With one band, colour becomes grey. Other numbers of bands are taken as they are stored: RGBA
    for four, a TIFF of many bands, or an array (H, W, C), ``.npy`` or in memory.

    Args:
        source: Path, encoded bytes, PIL image, or array (H, W) or (H, W, C).
        bands: What the model takes.

    Returns:
        (H, W, bands); uint8, or an array's own type where one was given.

    Raises:
        UnreadableImage: Missing, broken, not a picture, or with other bands.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        return _array_bands(source, bands, name)
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.suffix.lower() == ".npy":
            return _array_bands(_load_npy(path), bands, name)
        stored = _tiff_bands(path)
        if stored > 4 or (stored and bands not in (1, 3)):
            return _array_bands(_load_tiff(path), bands, name)
    picture = _decode(source, name)
    if bands == 3:
        return np.asarray(_to_8_bit(picture).convert("RGB"))
    if bands == 1:
        return np.asarray(_to_8_bit(picture).convert("L"))[:, :, None]
    return _array_bands(np.asarray(picture), bands, name)


def read_mask(source: PictureSource) -> NDArray[np.integer]:
    """Read a mask's values: palette indices, grey levels of 8 or 16 bits, or integers.

    A mask stored as RGB with three equal bands is read as grey.

    Returns:
        (H, W) integers, unmapped.

    Raises:
        UnreadableImage: Missing, broken, or of real colours.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        values = source
    elif isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".npy":
        values = _load_npy(Path(source))
    else:
        values = np.asarray(_decode(source, name))
    if values.ndim == 3 and values.shape[2]:
        colours = values[:, :, : 3 if values.shape[2] >= 3 else 1]
        if (colours != colours[:, :, :1]).any():
            raise UnreadableImage(
                f"{name}: a mask must hold class ids in one band, this one holds colours; "
                "convert each colour to its class id first"
            )
        values = colours[:, :, 0]
    if values.ndim != 2 or 0 in values.shape:
        raise UnreadableImage(f"{name}: a mask must be (H, W), this one is {values.shape}")
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise UnreadableImage(f"{name}: a mask must hold integers, this one holds {values.dtype}")
    return values


def _name(source: PictureSource) -> str:
    """What to call a source in a message."""
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "picture"
    return "picture in memory"


def _decode(source: str | Path | bytes | Image.Image, name: str) -> Image.Image:
    """Decode completely, so that a truncated file is found here, and turn upright."""
    try:
        with warnings.catch_warnings():
            # Large pictures are this package's business; PIL's error at twice the size stays.
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
        raise UnreadableImage(f"{name}: not a picture in a known format") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(
            f"{name}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from None
    except Exception as error:  # decoders raise what they like on broken files
        raise UnreadableImage(f"{name}: cannot be decoded ({error})") from None


def _load_npy(path: Path) -> Picture:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        raise UnreadableImage(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImage(f"{path}: cannot be read as an array ({error})") from None


def _tiff_bands(path: Path) -> int:
    """Bands that a TIFF says it has; 0 for what is no TIFF. Pillow would read the first alone."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 0
    try:
        with tifffile.TiffFile(path) as file:
            return int(file.pages.first.samplesperpixel)
    except Exception:  # whatever tifffile raises; Pillow says what is wrong with the file
        return 0


def _load_tiff(path: Path) -> Picture:
    """(H, W, C) of a TIFF of any number of bands, interleaved or one after another."""
    try:
        with tifffile.TiffFile(path) as file:
            values = file.asarray()
            apart = file.pages.first.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    except Exception as error:  # tifffile raises whatever its codecs raise
        raise UnreadableImage(f"{path}: cannot be decoded ({error})") from None
    return np.moveaxis(values, 0, -1) if apart and values.ndim == 3 else values


def _to_8_bit(picture: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, of 32 that hold 16 or 8, and of 0..1 to 8; the rest untouched."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if picture.mode.startswith("I;16"):
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    values = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
    if picture.mode == "F" and values.max() <= _ONE_OR_SO:
        values = 255 * values
    elif values.max() > 255:
        values = values / 257
    return Image.fromarray(np.rint(np.clip(values, 0, 255)).astype(np.uint8))


def _array_bands(values: Picture, bands: int, name: str) -> Picture:
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or 0 in values.shape:
        raise UnreadableImage(f"{name}: an array must be (H, W) or (H, W, C), not {values.shape}")
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise UnreadableImage(f"{name}: an array must hold numbers, not {values.dtype}")
    if values.shape[2] == 1 and bands == 3:
        values = np.repeat(values, 3, axis=2)
    if values.shape[2] == 4 and bands == 3 and values.dtype == np.uint8:
        values = values[:, :, :3]  # transparency
    if values.shape[2] != bands:
        hint = " (channels must come last)" if values.shape[0] == bands else ""
        raise UnreadableImage(
            f"{name}: the model takes {bands} bands, this has {values.shape[2]}{hint}"
        )
    if bands == 3 and values.dtype == np.uint16:
        return np.rint(values / 257).astype(np.uint8)
    return values


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a model's input.

    Attributes:
        size: (height, width) to resize to, or one number: the short side, ratio kept; or None:
            the picture's own size.
        multiple: Sides are rounded to a multiple of this where the ratio is kept.
        mean: Of each band, after rescaling.
        std: Of each band, after rescaling.
        rescale: Factor on the stored values; 1/255 takes 8 bits to 0..1.
        resample: Filter of the resizing, antialiased as Pillow's: a key of ``RESAMPLING``.
        crop: (height, width) of the middle that is kept after resizing; for classifiers, whose
            output has no places.
        reduce_labels: The model was trained with mask value 0 dropped and the rest shifted
            down (ADE20K). It concerns masks, never pictures.
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
    def for_bands(cls, bands: int) -> Preprocessing:
        """ImageNet statistics for three bands, 0.5 for any other number."""
        if bands == 3:
            return cls()
        return cls(mean=(0.5,) * bands, std=(0.25,) * bands)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which a picture of this size goes into the model.

        A strip longer than 16 times its width is made shorter: kept, its ratio would make
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

    def normalise(self, picture: Picture) -> NDArray[np.float32]:
        """(H, W, C) stored values -> (H, W, C) float32 of mean 0 and deviation 1, roughly.

        Values that are not finite, no data in many float pictures, become the mean.

        Raises:
            ValueError: Other bands than the preprocessing has, or floats of 0..1 for a model of
                0..255.
        """
        if picture.shape[2] != len(self.mean):
            raise ValueError(
                f"the picture has {picture.shape[2]} bands, "
                f"the preprocessing's mean has {len(self.mean)}"
            )
        std = np.asarray(self.std, dtype=np.float64)
        scale = np.float32(self.rescale / std)
        shift = np.float32(np.asarray(self.mean) / std)
        if picture.dtype == np.uint8:
            table = np.arange(256, dtype=np.float32)[:, None] * scale - shift
            looked_up = cv2.LUT(np.ascontiguousarray(picture), table[None])
            return np.asarray(looked_up, np.float32).reshape(picture.shape)
        if picture.dtype.kind != "f":
            return picture.astype(np.float32) * scale - shift
        if abs(255 * self.rescale - 1) < 1e-3 and 0 < np.nanmax(picture, initial=0) <= 1:
            raise ValueError("the picture's values end at 1, the model expects 0..255; scale them")
        normalised = picture.astype(np.float32) * scale - shift
        return np.nan_to_num(normalised, copy=False, nan=0, posinf=0, neginf=0)


def centre_crop(picture: Picture, size: tuple[int, int]) -> Picture:
    """The middle (height, width) of (H, W, C); of a smaller picture, all there is is enlarged."""
    height, width = size
    if picture.shape[0] < height or picture.shape[1] < width:
        factor = max(height / picture.shape[0], width / picture.shape[1])
        sides = tuple(round(side * factor) for side in picture.shape[:2])
        picture = resize(picture, (max(sides[0], height), max(sides[1], width)))
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def resize(picture: Picture, size: tuple[int, int], resample: str = "bilinear") -> Picture:
    """Resize (H, W, C) to ``size`` = (height, width), antialiased, as Pillow does.

    uint8 stays uint8; any other type becomes float32.
    """
    if picture.shape[:2] == tuple(size):
        return picture
    height, width = size
    method = RESAMPLING[resample]
    if picture.dtype == np.uint8 and picture.shape[2] == 3:
        image = Image.fromarray(np.ascontiguousarray(picture))
        return np.asarray(image.resize((width, height), method))
    if picture.dtype != np.uint8:
        picture = picture.astype(np.float32)
    bands = [
        Image.fromarray(np.ascontiguousarray(picture[:, :, band])).resize((width, height), method)
        for band in range(picture.shape[2])
    ]
    return np.stack([np.asarray(band) for band in bands], axis=2)
