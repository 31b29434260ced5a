"""Less flicker: logits averaged over the frames of a scene.

Legend: H W pixels, K classes, h w logits.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer.image import ImageArray

_THUMBNAIL = 32
"""Side in pixels of the small images that are compared."""

_CUT = 24.0
"""Mean difference of two frames' small images, in levels of 0..255, above which a scene begins."""


class LogitSmoothing:
    """Exponential average of logits over frames, as a `Predictor.logits_filter`.

    ``average = weight * average + (1 - weight) * logits``, at the low resolution of the logits. The
    average starts again at the first frame of a scene: where the frame differs strongly from the
    one before, or has another size.

    Args:
        weight: Of the past, from 0 to below 1.

    Attributes:
        scenes: Number of scenes so far.
    """

    def __init__(self, weight: float):
        self.weight = weight
        self.scenes = 0
        self._average: list[Any] = []
        self._thumbnail: NDArray[np.float32] | None = None

    def __call__(self, image: ImageArray, views: list[Any]) -> list[Any]:
        """Take the next frame.

        Args:
            image: (H, W, C) uint8.
            views: Logits (K, h, w) of each view, arrays or tensors.

        Returns:
            The averaged logits of each view.
        """
        thumbnail = _shrunk(image)
        shapes = [tuple(logits.shape) for logits in views]
        if (
            self._thumbnail is None
            or is_cut(self._thumbnail, thumbnail)
            or shapes != [tuple(logits.shape) for logits in self._average]
        ):
            self.scenes += 1
            self._average = views
        else:
            past, now = self.weight, 1 - self.weight
            self._average = [
                past * average + now * logits
                for average, logits in zip(self._average, views, strict=True)
            ]
        self._thumbnail = thumbnail
        return self._average


def is_cut(before: NDArray[np.float32], after: NDArray[np.float32]) -> bool:
    """Whether another scene begins between two frames, given as small images (h, w, C)."""
    return before.shape != after.shape or float(np.abs(before - after).mean()) > _CUT


def _shrunk(image: ImageArray) -> NDArray[np.float32]:
    small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)
