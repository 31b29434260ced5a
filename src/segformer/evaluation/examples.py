"""The worst and the best images of an evaluation, small enough to be kept until the report.

Legend: H W pixels of an image, h w pixels as shown.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segformer.image import ImageArray, resize
from segformer.image.drawing import color_channels, displayable

_SIDE = 400
"""Longest side, in pixels, of images in a report."""


@dataclass(frozen=True, eq=False)
class Example:
    """An image as a report shows it.

    Attributes:
        name: Name of the image.
        score: What it is sorted by.
        image: (h, w, 3) uint8.
        truth: (h, w) class ids of the mask.
        predictions: (h, w) class ids, for each model.
    """

    name: str
    score: float
    image: NDArray[np.uint8]
    truth: NDArray[np.integer]
    predictions: tuple[NDArray[np.integer], ...]


def make_example(
    name: str,
    score: float,
    image: ImageArray,
    truth: NDArray[np.integer],
    *predictions: NDArray[np.integer],
    rgb_channels: tuple[int, int, int] | None = None,
) -> Example:
    """Shrink an image (H, W, C) and its class ids (H, W) to the size of a report."""
    height, width = truth.shape
    ratio = min(1.0, _SIDE / max(height, width))
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    rows, columns = (
        ((np.arange(small) + 0.5) * (side / small)).astype(int)
        for small, side in zip(size, (height, width), strict=True)
    )
    maps = [class_ids[np.ix_(rows, columns)] for class_ids in (truth, *predictions)]
    shown = displayable(resize(color_channels(image, rgb_channels), size))
    return Example(name, score, np.ascontiguousarray(shown), maps[0], tuple(maps[1:]))


@dataclass
class Examples:
    """The images with the lowest and with the highest scores.

    Attributes:
        count: Number of images of each kind.
        worst: Lowest score first.
        best: Highest score first.
    """

    count: int = 6
    worst: list[Example] = field(default_factory=list, repr=False)
    best: list[Example] = field(default_factory=list, repr=False)

    def add(self, score: float, make: Callable[[], Example]) -> None:
        """Add an image; ``make`` is called only if it is among the worst or best so far."""
        if math.isnan(score):
            return
        low = len(self.worst) < self.count or score < self.worst[-1].score
        high = len(self.best) < self.count or score > self.best[-1].score
        if low or high:
            self._insert([make()])

    def merge(self, other: Examples) -> None:
        """Add the images of another evaluation, such as that of another process."""
        self._insert(
            list({id(example): example for example in (*other.worst, *other.best)}.values())
        )

    def _insert(self, examples: list[Example]) -> None:
        for example in examples:
            insort(self.worst, example, key=lambda e: e.score)
            insort(self.best, example, key=lambda e: -e.score)
        del self.worst[self.count :], self.best[self.count :]

    def divided(self) -> tuple[list[Example], list[Example]]:
        """Worst and best; of few images, none is in both."""
        shown = {id(example) for example in self.worst}
        if len(self.worst) < self.count:
            return self.worst[: -(-len(self.worst) // 2)], self.best[: len(self.best) // 2]
        return self.worst, [example for example in self.best if id(example) not in shown]
