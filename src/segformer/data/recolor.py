"""Color augmentation of regions: every class in an image gets a color of its own.

A data set of a few hundred photographs shows each garment in a handful of colors, and a model
trained on it takes a color for a class. Recoloring whole regions removes that shortcut: the shape
and the surroundings of a region are all that is left to tell its class by.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer.image import ImageArray

_CLASS_PROB = 0.6
_GENTLE_FACTOR = 0.3
"""A gentle class is recolored this much less often than the others."""


@dataclass(frozen=True)
class ClassColorJitter:
    """Recolor each class region of an 8-bit RGB image independently.

    Each class present is recolored with probability 0.6: its hue is rotated by any angle, its
    saturation multiplied by 0 to 1.6 (three times in ten by 0.1), its brightness by 0.12 to 1.8
    (log-uniform), and half of the time up to 40 levels are added.

    Attributes:
        exclude: Class ids whose color is never changed.
        gentle: Class ids that are recolored 0.3 times as often, keep their hue, and have their
            brightness multiplied by 0.4 to 3.
    """

    exclude: frozenset[int] = frozenset()
    gentle: frozenset[int] = frozenset()

    def __call__(
        self, image: ImageArray, mask: NDArray[np.integer], rng: np.random.Generator
    ) -> ImageArray:
        """Recolor the regions of a crop.

        Args:
            image: (H, W, 3) uint8 RGB.
            mask: (H, W) class ids.
            rng: The only source of randomness.

        Returns:
            (H, W, 3) uint8, a new array.
        """
        hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
        for class_id in np.unique(mask):
            if class_id in self.exclude:
                continue
            gentle = class_id in self.gentle
            if rng.random() < _CLASS_PROB * (_GENTLE_FACTOR if gentle else 1.0):
                region = mask == class_id
                hsv[region] = _recolor(hsv[region], rng, gentle)
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _recolor(hsv: NDArray[np.uint8], rng: np.random.Generator, gentle: bool) -> NDArray[np.uint8]:
    """(N, 3) pixels as OpenCV's 8-bit HSV (hue 0..179) -> (N, 3) with another color."""
    hue_shift = 0 if gentle else int(rng.integers(180))
    saturation = 0.1 if rng.random() < 0.3 else rng.uniform(0, 1.6)
    darkest, brightest = (0.4, 3.0) if gentle else (0.12, 1.8)
    brightness = np.exp(rng.uniform(np.log(darkest), np.log(brightest)))
    offset = rng.uniform(0, 40) if rng.random() < 0.5 else 0.0
    hue = (hsv[:, 0].astype(np.int16) + hue_shift) % 180
    scaled = hsv[:, 1:] * np.array([saturation, brightness], np.float32) + np.array(
        [0, offset], np.float32
    )
    return np.concatenate([hue[:, None], np.clip(scaled, 0, 255)], axis=1).astype(np.uint8)


def to_grayscale(image: ImageArray) -> ImageArray:
    """(H, W, 3) uint8 RGB -> its luma in all three channels."""
    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB))


def blur(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Blur (H, W, 3) slightly: a Gaussian of 0.3 to 1.5 pixels."""
    sigma = rng.uniform(0.3, 1.5)
    return np.asarray(cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), sigma))
