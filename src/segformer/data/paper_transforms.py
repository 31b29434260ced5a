"""Augmentation exactly as in the original training code of SegFormer.

The default `Augmentation` draws from the same distributions, but cuts the crop from the stored
image before resizing it, averages pixels where it makes images smaller, and estimates the
fractions of the classes from every fourth pixel. That is faster; this is what the published scores
were trained with.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segformer.data.transforms import Augmentation, Mask
from segformer.image import ImageArray
from segformer.image.rescaling import rescaled_size, resize_bilinear, resize_nearest


@dataclass(frozen=True)
class PaperAugmentation(Augmentation):
    """Resize the whole image without antialiasing, then crop.

    Both limits of the size, ``long_side`` and ``short_side``, are multiplied by the random ratio
    and truncated to integers. Further fields of `Augmentation` work as there.
    """

    def choose_reduction(self, height: int, width: int, ratio: float) -> int:
        """1: a decoder that makes an image smaller averages pixels."""
        return 1

    def scale_and_crop(
        self, image: ImageArray, mask: Mask, rng: np.random.Generator, reduction: int = 1
    ) -> tuple[ImageArray, Mask]:
        """Resize by a random ratio and cut a crop, at most ``crop_size`` each way."""
        assert reduction == 1
        ratio = self.draw_scale(rng)
        limits = int(self.long_side * ratio), int(self.short_side * ratio)
        height, width = mask.shape
        size = rescaled_size(height, width, *limits)
        image, mask = resize_bilinear(image, size), resize_nearest(mask, size)
        crop_h, crop_w = min(self.crop_size, size[0]), min(self.crop_size, size[1])
        top, left = self._place(mask, crop_h, crop_w, rng)
        window = np.s_[top : top + crop_h, left : left + crop_w]
        return image[window], mask[window]

    def _place_anywhere(
        self, mask: Mask, crop_h: int, crop_w: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """The first of ten random crops that is not all one class, else an eleventh."""
        free_h, free_w = mask.shape[0] - crop_h, mask.shape[1] - crop_w
        for attempt in range(11):
            top, left = int(rng.integers(free_h + 1)), int(rng.integers(free_w + 1))
            if self.cat_max_ratio == 1 or attempt == 10:
                break
            crop = mask[top : top + crop_h, left : left + crop_w]
            counts = np.bincount(crop[crop != self.ignore_index])
            if (counts > 0).sum() > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return top, left
