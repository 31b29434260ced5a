"""What happens to an image between its file and the model: resizing, cropping, normalizing.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageArray: TypeAlias = NDArray[Any]
"""(H, W, C), integers or floats."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_LONGEST_RATIO = 16
"""Largest ratio of long to short side that a resize to a short side keeps."""

_LARGEST_SIDE = 1 << 17
"""Largest side in pixels that a preprocessing may ask for."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    Attributes:
        size: (height, width) to resize to, or one number: the short side, ratio kept; or None:
            the image's own size.
        multiple: Sides are rounded to a multiple of this where the ratio is kept.
        mean: Mean of each channel, after rescaling.
        std: Standard deviation of each channel, after rescaling.
        rescale: Factor on the stored values; 1/255 scales 8-bit values to 0..1.
        resample: Filter for resizing, antialiased like Pillow's: a key of ``RESAMPLING``.
        crop: (height, width) of the center crop after resizing, for classifiers.
        reduce_labels: The model was trained with mask value 0 ignored and the other values
            shifted down by one (ADE20K). It concerns masks, never images.
        nodata: Stored value that means that there is no data; it becomes the mean.
        channel_names: Name of each channel, where known.
    """

    size: tuple[int, int] | int | None = (512, 512)
    multiple: int = 1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    rescale: float = 1 / 255
    resample: str = "bilinear"
    crop: tuple[int, int] | None = None
    reduce_labels: bool = False
    nodata: float | None = None
    channel_names: tuple[str, ...] = ()

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
        if self.nodata is not None and not math.isfinite(self.nodata):
            raise ValueError(f"nodata must be a finite number, not {self.nodata}")
        if len(self.channel_names) not in (0, len(self.mean)):
            raise ValueError(
                f"there are {len(self.channel_names)} channel names, "
                f"but {len(self.mean)} channels have a mean"
            )

    @classmethod
    def for_channels(cls, channels: int) -> Preprocessing:
        """ImageNet statistics for three channels, 0.5 for any other number."""
        if channels == 3:
            return cls()
        return cls(mean=(0.5,) * channels, std=(0.25,) * channels)

    @property
    def expects_8_bit(self) -> bool:
        """Whether the model was trained on values of 0..255 (``rescale`` is 1/255)."""
        return abs(255 * self.rescale - 1) < 1e-3

    @property
    def rgb_channels(self) -> tuple[int, int, int] | None:
        """Indices of the channels named red, green and blue; None where one of them is missing."""
        return find_rgb(self.channel_names)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which an image of this size goes into the model.

        Images longer than 16 times their width do not keep their ratio: 10 x 3000 pixels would
        become 512 x 150,000.
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
        """(H, W, C) stored values -> (H, W, C) float32 of about mean 0 and deviation 1.

        NaN and infinity, which mark missing data in many float images, become the mean.

        Raises:
            ValueError: The number of channels differs from ``mean``, or the values are floats of
                0..1 and the model expects 0..255.
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
        if self.expects_8_bit and 0 < np.nanmax(image, initial=0) <= 1:
            raise ValueError("the image's values end at 1, the model expects 0..255; scale them")
        normalized = image.astype(np.float32) * scale - shift
        return np.nan_to_num(normalized, copy=False, nan=0, posinf=0, neginf=0)


def center_crop(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Center crop of (H, W, C) to (height, width); smaller images are enlarged first."""
    height, width = size
    if image.shape[0] < height or image.shape[1] < width:
        factor = max(height / image.shape[0], width / image.shape[1])
        sides = tuple(round(side * factor) for side in image.shape[:2])
        image = resize(image, (max(sides[0], height), max(sides[1], width)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def find_rgb(channel_names: Sequence[str]) -> tuple[int, int, int] | None:
    """Indices of the channels named red, green and blue; None where one of them is missing."""
    names = [name.lower() for name in channel_names]
    if not {"red", "green", "blue"} <= set(names):
        return None
    return names.index("red"), names.index("green"), names.index("blue")


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
