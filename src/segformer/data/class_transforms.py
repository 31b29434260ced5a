"""Augmentation for classifiers: the usual ImageNet recipe, that of DeiT and PVT.

Random resized crop (Szegedy et al. 2015), flip, RandAugment (Cubuk et al. 2020), random erasing
(Zhong et al. 2020) image by image; mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) over
a batch.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

from segformer.data.transforms import resize_quickly
from segformer.image import ImageArray, Preprocessing


@dataclass(frozen=True)
class ClassAugmentation:
    """What happens to each training image of a classifier.

    Attributes:
        crop_size: Side of the square that training sees, pixels.
        min_area: Smallest fraction of the image that a crop covers.
        hflip_prob: Probability of mirroring left and right.
        rand_augment: How many random operations to draw; each is applied with probability 0.5
            (8-bit RGB only).
        random_erasing_prob: Probability of a rectangle of noise over up to a third of the crop.
    """

    crop_size: int = 224
    min_area: float = 0.08
    hflip_prob: float = 0.5
    rand_augment: int = 2
    random_erasing_prob: float = 0.25

    def __call__(
        self, image: ImageArray, rng: np.random.Generator, preprocessing: Preprocessing
    ) -> NDArray[np.float32]:
        """Image (H, W, C) -> normalized crop (crop, crop, C)."""
        crop = self.random_crop(image, rng)
        if rng.random() < self.hflip_prob:
            crop = crop[:, ::-1]
        if crop.dtype == np.uint8 and crop.shape[2] == 3:
            for _ in range(self.rand_augment):
                if rng.random() < 0.5:
                    crop = random_operation(crop, rng)
        values = np.ascontiguousarray(preprocessing.normalize(crop))
        if rng.random() < self.random_erasing_prob:
            rows, columns = values.shape[:2]
            top, left, height, width = _random_box(rows, columns, (0.02, 0.33), 0.3, rng)
            box = values[top : top + height, left : left + width]
            box[:] = rng.standard_normal(box.shape, np.float32)
        return values

    def random_crop(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        """A crop of random area and ratio (3/4 to 4/3), resized to the square."""
        height, width = image.shape[:2]
        box = _random_box(height, width, (self.min_area, 1.0), 3 / 4, rng)
        top, left, crop_h, crop_w = box
        crop = image[top : top + crop_h, left : left + crop_w]
        return resize_quickly(crop, (self.crop_size, self.crop_size))


def _random_box(
    height: int, width: int, area: tuple[float, float], ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random box, or the whole image after ten failures."""
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio), math.log(1 / ratio)))
        box_h, box_w = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < box_h <= height and 0 < box_w <= width:
            top = int(rng.integers(height - box_h + 1))
            left = int(rng.integers(width - box_w + 1))
            return top, left, box_h, box_w
    return 0, 0, height, width


_OPERATIONS = 15


def random_operation(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply one of RandAugment's 15 operations to (H, W, 3) 8-bit RGB.

    They are those of timm's ``rand-m9-mstd0.5-inc1``, DeiT's recipe: magnitude 9 of 10 with a
    standard deviation of 0.5, and enhancements that go both ways.
    """
    strength = float(np.clip(rng.normal(0.9, 0.05), 0, 1))
    signed = strength if rng.random() < 0.5 else -strength
    pil = Image.fromarray(np.ascontiguousarray(image))
    match int(rng.integers(_OPERATIONS)):
        case 0:
            pil = ImageOps.autocontrast(pil)
        case 1:
            pil = ImageOps.equalize(pil)
        case 2:
            pil = ImageOps.invert(pil)
        case 3:
            pil = ImageOps.posterize(pil, max(1, 4 - int(4 * strength)))
        case 4:
            pil = ImageOps.solarize(pil, int(256 * (1 - strength)))
        case 5:
            added = Image.fromarray(np.full_like(pil, int(110 * strength)))
            dark = np.asarray(pil) < 128
            total = np.clip(np.asarray(pil, np.int16) + np.asarray(added), 0, 255)
            pil = Image.fromarray(np.where(dark, total, np.asarray(pil)).astype(np.uint8))
        case 6:
            pil = ImageEnhance.Color(pil).enhance(1 + 0.9 * signed)
        case 7:
            pil = ImageEnhance.Contrast(pil).enhance(1 + 0.9 * signed)
        case 8:
            pil = ImageEnhance.Brightness(pil).enhance(1 + 0.9 * signed)
        case 9:
            pil = ImageEnhance.Sharpness(pil).enhance(1 + 0.9 * signed)
        case 10:
            pil = pil.rotate(30 * signed, Image.Resampling.BILINEAR, fillcolor=_GRAY)
        case 11:
            pil = _transformed(pil, (1, 0.3 * signed, 0, 0, 1, 0))
        case 12:
            pil = _transformed(pil, (1, 0, 0, 0.3 * signed, 1, 0))
        case 13:
            pil = _transformed(pil, (1, 0, 0.45 * signed * pil.width, 0, 1, 0))
        case 14:
            pil = _transformed(pil, (1, 0, 0, 0, 1, 0.45 * signed * pil.height))
    return np.asarray(pil)


_GRAY = (124, 116, 104)
"""The mean color of ImageNet, 8 bits."""


def _transformed(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GRAY
    )


def mix(
    pixels: Tensor, class_ids: Tensor, num_classes: int, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with another, and their classes in the same proportion.

    With both, each batch uses one of them with probability 0.5. Random numbers come from torch's
    generator.

    Args:
        pixels: (B, C, H, W).
        class_ids: (B,).
        num_classes: K.
        mixup_alpha: Both parameters of the Beta distribution of mixup's ratio; 0 for none.
        cutmix_alpha: The same of CutMix's ratio.

    Returns:
        Mixed images (B, C, H, W) and class probabilities (B, K).
    """
    targets = F.one_hot(class_ids, num_classes).to(torch.float32)
    if not mixup_alpha and not cutmix_alpha:
        return pixels, targets
    cuts = bool(cutmix_alpha) and (not mixup_alpha or bool(torch.rand(()) < 0.5))
    alpha = torch.tensor(cutmix_alpha if cuts else mixup_alpha)
    lam = float(torch.distributions.Beta(alpha, alpha).sample())
    other = pixels.flip(0)
    if cuts:
        height, width = pixels.shape[2:]
        side = math.sqrt(1 - lam)
        middle_y, middle_x = (torch.rand(2) * torch.tensor([height, width])).tolist()
        top, bottom = (
            int(min(max(middle_y + sign * side * height / 2, 0), height)) for sign in (-1, 1)
        )
        left, right = (
            int(min(max(middle_x + sign * side * width / 2, 0), width)) for sign in (-1, 1)
        )
        pixels = pixels.clone()
        pixels[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (height * width)  # cut off at the border
    else:
        pixels = pixels * lam + other * (1 - lam)
    return pixels, targets * lam + targets.flip(0) * (1 - lam)
