"""The loss on validation images, from the logits of the predictions that are scored anyway."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer.prediction.prediction import Prediction


class LossMeter:
    """The loss of each image: that of the training, without augmentation and dropout.

    It is computed at the size at which the model sees the image.

    Args:
        loss: From logits (1, K, h, w) and class ids (1, H, W) to the loss ().

    Attributes:
        losses: The loss of each image.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]):
        self.losses: list[float] = []
        self._loss = loss
        self._kept: WeakKeyDictionary[Prediction, tuple[Tensor, tuple[int, int]]]
        self._kept = WeakKeyDictionary()

    def keep(self, prediction: Prediction, logits: Tensor, size: tuple[int, int]) -> None:
        """Keep the logits of a prediction until its true classes are known; see `Predictor`."""
        self._kept[prediction] = logits, size

    def add(self, prediction: Prediction, truth: NDArray[np.integer]) -> None:
        """Add the loss of a prediction whose logits were kept.

        Args:
            prediction: The prediction.
            truth: (H, W) class ids.
        """
        logits, size = self._kept.pop(prediction)
        rows, columns = (_centers(*sides) for sides in zip(truth.shape, size, strict=True))
        seen = torch.from_numpy(np.ascontiguousarray(truth[rows][:, columns], dtype=np.int64))
        with torch.no_grad():
            loss = self._loss(logits[None].float(), seen[None].to(logits.device))
        self.losses.append(float(loss))


def _centers(side: int, count: int) -> NDArray[np.int64]:
    """Indices of ``count`` pixels spread evenly over a side: nearest-neighbor resizing."""
    return ((np.arange(count) + 0.5) * side / count).astype(np.int64)
