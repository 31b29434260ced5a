"""Augmentation of an image together with its mask.

The steps of the paper (section 4.1 and its released recipes): resize by a random ratio, crop with
a limit on the largest class, flip, photometric distortion, normalize, pad. For small data sets
also: crops centered on rare classes, other backgrounds, and other colors of classes.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer.data.recolor import ClassColorJitter, blur, to_grayscale
from segformer.image import ImageArray, Preprocessing
from segformer.image.rescaling import resize_mask, resize_with_opencv

Mask: TypeAlias = NDArray[np.integer]

ReducedSample: TypeAlias = tuple[ImageArray, Mask, int]
"""Image (h, w, C), class ids (H, W), and the reduction: h is H / reduction, rounded up."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to each training image.

    Attributes:
        crop_size: Side of the square that training sees, pixels.
        short_side: Images are first scaled, keeping their ratio, until the short side has this
            many pixels or the long side has ``long_side``.
        long_side: Limit of the long side, pixels.
        scale_min: Smallest random ratio of the scaling that follows.
        scale_max: Largest random ratio.
        log_scale: Draw the ratio log-uniformly: half the size is as likely as twice the size.
        cat_max_ratio: A crop in which one class has more than this fraction of the labeled
            pixels is drawn again, ten times at most; 1 takes any crop.
        rare_class_crop_prob: Probability of centering the crop on a pixel of a class drawn evenly
            among those in the image, so that small classes are seen as often as large ones.
        hflip_prob: Probability of a horizontal flip.
        photometric: Brightness, contrast, saturation and hue distortion (8-bit RGB only).
        background_replace_prob: Probability of replacing the background, as the mask shows it,
            by a plain color, a gradient, noise or another image of the data set.
        background_class: Class id of the background that is replaced.
        class_color_jitter_prob: Probability of giving the class regions of a crop other colors
            (8-bit RGB only).
        class_color_jitter: Which classes keep their colors.
        grayscale_prob: Probability of a grayscale crop (8-bit RGB only).
        blur_prob: Probability of a slight blur (8-bit RGB only).
        ignore_index: Class id of padding.
    """

    crop_size: int = 512
    short_side: int = 512
    long_side: int = 2048
    scale_min: float = 0.5
    scale_max: float = 2.0
    log_scale: bool = False
    cat_max_ratio: float = 0.75
    rare_class_crop_prob: float = 0.0
    hflip_prob: float = 0.5
    photometric: bool = True
    background_replace_prob: float = 0.0
    background_class: int = 0
    class_color_jitter_prob: float = 0.0
    class_color_jitter: ClassColorJitter = field(default_factory=ClassColorJitter)
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0
    ignore_index: int = 255

    def __call__(
        self,
        image: ImageArray,
        mask: Mask,
        rng: np.random.Generator,
        preprocessing: Preprocessing,
        another: Callable[[], ReducedSample] | None = None,
        reduction: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """One training crop.

        Args:
            image: (H, W, C), or less with ``reduction``.
            mask: (H, W) class ids.
            rng: The only source of randomness.
            preprocessing: Supplies mean, standard deviation and rescaling.
            another: Returns another sample of the data set, for backgrounds.
            reduction: How many times smaller than the mask the image was decoded, as
                `choose_reduction` says.

        Returns:
            Normalized image (crop, crop, C), padded with 0, and class ids (crop, crop), padded
            with ``ignore_index``.
        """
        image, mask = self.scale_and_crop(image, mask, rng, reduction)
        if self.background_replace_prob and rng.random() < self.background_replace_prob:
            background, behind = self.draw_background(image, another, rng)
            image, mask = set_before(image, mask, background, behind, self.background_class)
        is_rgb = image.dtype == np.uint8 and image.shape[2] == 3
        jitter = self.class_color_jitter_prob
        if is_rgb and jitter and rng.random() < jitter:
            image = self.class_color_jitter(image, mask, rng)
        if rng.random() < self.hflip_prob:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if is_rgb and self.photometric:
            image = distort(image, rng)
        if is_rgb and self.grayscale_prob and rng.random() < self.grayscale_prob:
            image = to_grayscale(image)
        if is_rgb and self.blur_prob and rng.random() < self.blur_prob:
            image = blur(image, rng)
        normalized = preprocessing.normalize(image)
        height, width = mask.shape
        crop = np.zeros((self.crop_size, self.crop_size, image.shape[2]), np.float32)
        class_ids = np.full((self.crop_size, self.crop_size), self.ignore_index, np.int64)
        crop[:height, :width], class_ids[:height, :width] = normalized, mask
        return crop, class_ids

    def next_reduction(self, rng: np.random.Generator) -> Callable[[int, int], int]:
        """How much smaller an image may be decoded for the crop that ``rng`` will draw next.

        The ratio is the first number that `scale_and_crop` draws. It is looked at in advance here:
        ``rng`` is not changed.

        Returns:
            Height and width of an image -> 1, 2, 4 or 8, as `choose_reduction`.
        """
        ratio = self.draw_scale(deepcopy(rng))
        return lambda height, width: self.choose_reduction(height, width, ratio)

    def choose_reduction(self, height: int, width: int, ratio: float) -> int:
        """The largest of 1, 2, 4 and 8 by which an image can be reduced and not be enlarged later.

        Args:
            height: Of the image, pixels.
            width: Of the image, pixels.
            ratio: The random ratio by which the image is scaled.
        """
        scale = self._fit(height, width) * ratio
        return next((factor for factor in (8, 4, 2) if factor * scale <= 1), 1)

    def possible_reductions(self, height: int, width: int) -> list[int]:
        """All that `choose_reduction` returns for an image of this size, in ascending order."""
        least, most = (
            self.choose_reduction(height, width, ratio)
            for ratio in (self.scale_max, self.scale_min)
        )
        return [factor for factor in (1, 2, 4, 8) if least <= factor <= most]

    def _fit(self, height: int, width: int) -> float:
        """The scale before the random ratio."""
        return min(self.long_side / max(height, width), self.short_side / min(height, width))

    def draw_scale(self, rng: np.random.Generator) -> float:
        """A random ratio by which an image is scaled."""
        if self.log_scale:
            return float(np.exp(rng.uniform(np.log(self.scale_min), np.log(self.scale_max))))
        return float(rng.uniform(self.scale_min, self.scale_max))

    def scale_and_crop(
        self, image: ImageArray, mask: Mask, rng: np.random.Generator, reduction: int = 1
    ) -> tuple[ImageArray, Mask]:
        """Resize by a random ratio and cut a crop, at most ``crop_size`` each way.

        The crop is cut from the stored image and then resized, which is faster than resizing
        the whole image. With a ``reduction`` it begins and ends between pixels of the reduced
        image, so that image and mask show exactly the same.
        """
        height, width = mask.shape
        scale = self._fit(height, width) * self.draw_scale(rng)
        crop_h = min(height, max(1, round(self.crop_size / scale)))
        crop_w = min(width, max(1, round(self.crop_size / scale)))
        top, left = self._place(mask, crop_h, crop_w, rng)
        size = (
            min(self.crop_size, max(1, round(crop_h * scale))),
            min(self.crop_size, max(1, round(crop_w * scale))),
        )
        rows, columns = (
            slice(start // reduction, start // reduction + max(1, length // reduction))
            for start, length in ((top, crop_h), (left, crop_w))
        )
        stored = np.s_[
            rows.start * reduction : rows.stop * reduction,
            columns.start * reduction : columns.stop * reduction,
        ]
        return resize_quickly(image[rows, columns], size), _resize_mask(mask[stored], size)

    def _place(
        self, mask: Mask, crop_h: int, crop_w: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Top and left of a crop: around a class, or anywhere that is not all one class."""
        free_h, free_w = mask.shape[0] - crop_h, mask.shape[1] - crop_w
        if self.rare_class_crop_prob and rng.random() < self.rare_class_crop_prob:
            present = np.unique(mask)
            present = present[present != self.ignore_index]
            if len(present):
                rows, columns = np.nonzero(mask == rng.choice(present))
                at = rng.integers(len(rows))
                top = rows[at] - rng.integers(crop_h)
                left = columns[at] - rng.integers(crop_w)
                return int(np.clip(top, 0, free_h)), int(np.clip(left, 0, free_w))
        return self._place_anywhere(mask, crop_h, crop_w, rng)

    def _place_anywhere(
        self, mask: Mask, crop_h: int, crop_w: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Top and left of a crop: anywhere that is not all one class."""
        free_h, free_w = mask.shape[0] - crop_h, mask.shape[1] - crop_w
        for _ in range(10):
            top, left = int(rng.integers(free_h + 1)), int(rng.integers(free_w + 1))
            if self.cat_max_ratio == 1:
                break
            # Every 4th pixel in each direction is precise enough for the fractions
            crop = mask[top : top + crop_h : 4, left : left + crop_w : 4]
            labeled = crop[crop != self.ignore_index]
            counts = np.unique(labeled, return_counts=True)[1]
            if len(counts) > 1 and counts.max() < self.cat_max_ratio * labeled.size:
                break
        return top, left

    def draw_background(
        self,
        image: ImageArray,
        another: Callable[[], ReducedSample] | None,
        rng: np.random.Generator,
    ) -> tuple[ImageArray, Mask]:
        """A random background of the shape of the image, and its class ids."""
        height, width, channels = image.shape
        top = float(np.iinfo(image.dtype).max) if image.dtype.kind in "ui" else 1.0
        ids = np.full((height, width), self.background_class, np.int32)
        kind = rng.integers(4 if another is not None else 3)
        if kind == 3 and another is not None:
            theirs, their_ids, reduction = another()
            theirs, their_ids = self.scale_and_crop(theirs, their_ids, rng, reduction)
            return resize_quickly(theirs, (height, width)), _resize_mask(their_ids, (height, width))
        colors = rng.uniform(0, top, (2, channels))
        if kind == 0:
            values = np.broadcast_to(colors[0], image.shape)
        else:
            angle = rng.uniform(0, 2 * np.pi)
            rows = np.linspace(-1, 1, height)[:, None] * np.sin(angle)
            columns = np.linspace(-1, 1, width)[None] * np.cos(angle)
            blend = ((rows + columns) / 2.83 + 0.5)[:, :, None]
            values = colors[0] * blend + colors[1] * (1 - blend)
            if kind == 2:
                cells = int(rng.integers(2, 24))
                noise = rng.normal(0, top / 6, (cells, cells, channels)).astype(np.float32)
                values = values + resize_quickly(noise, (height, width))
        return np.clip(values, 0, top).astype(image.dtype), ids


def set_before(
    image: ImageArray, mask: Mask, background: ImageArray, behind: Mask, replaced: int
) -> tuple[ImageArray, Mask]:
    """Put the pixels of an image that are not ``replaced`` on a background of the same shape.

    Colors are blended over about two pixels, class ids are not.
    """
    foreground = mask != replaced
    blend = cv2.GaussianBlur(foreground.astype(np.float32), (3, 3), 0)[:, :, None]
    mixed = image * blend + background * (1 - blend)
    return mixed.astype(image.dtype), np.where(foreground, mask, behind).astype(mask.dtype)


def distort(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Photometric distortion of 8-bit RGB, each part with probability 0.5.

    Brightness by up to 32 of 255, then contrast and saturation by 0.5 to 1.5 and hue by -18 to 17
    of OpenCV's 180 steps; contrast is randomly the second or the last of these (SSD's distortion
    with the values of mmsegmentation's `PhotoMetricDistortion`).
    """
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0
    contrast_first = rng.random() < 0.5
    levels = _levels(1.0, brightness)
    if contrast_first:
        levels = _levels(contrast, 0.0)[levels]
    image = cv2.LUT(np.ascontiguousarray(image), levels)
    if saturation != 1.0 or hue:
        same = np.arange(256)
        tables = np.stack(((same + hue) % 180, _levels(saturation, 0.0), same), axis=1)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables.astype(np.uint8)[None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and contrast != 1.0:
        image = cv2.LUT(image, _levels(contrast, 0.0))
    return image


def _levels(factor: float, offset: float) -> NDArray[np.uint8]:
    """Table of 256 levels: value * factor + offset, clipped."""
    return np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8)


def resize_quickly(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """(H, W, C) to (height, width): area averages when shrinking, bilinear when growing.

    Faster than `segformer.image.resize`, which has to match Pillow's filter. Training uses random
    ratios, so here the exact filter does not matter.
    """
    shrinking = size[0] < image.shape[0]
    return resize_with_opencv(image, size, cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def _resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    return resize_mask(mask, size, cv2.INTER_NEAREST_EXACT)
