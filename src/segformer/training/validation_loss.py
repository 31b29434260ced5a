"""The loss on validation images, from the logits of the predictions that are scored anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor


class LossPredictor(Predictor):
    """A predictor that also gives the loss of a prediction, once its true classes are known.

    It is that of the training, without augmentation and dropout, at the size at which the model
    sees the image.

    Args:
        model: As `Predictor` takes it.
        loss: From logits (1, K, h, w) and class ids (1, H, W) to the loss ().
        **options: As `Predictor` takes them.
    """

    def __init__(self, model: Any, loss: Callable[[Tensor, Tensor], Tensor], **options: Any):
        super().__init__(model, **options)
        self._loss = loss
        self._logits: WeakKeyDictionary[Prediction, Tensor] = WeakKeyDictionary()
        self._total, self._count = 0.0, 0

    @property
    def mean_loss(self) -> float:
        """Mean over the images so far; NaN before the first."""
        return self._total / self._count if self._count else float("nan")

    def add(self, prediction: Prediction, truth: NDArray[np.integer]) -> None:
        """Add the loss of a prediction to the mean.

        Args:
            prediction: One of this predictor's.
            truth: (H, W) class ids.
        """
        logits = self._logits.pop(prediction)[None]
        sides = zip(truth.shape, logits.shape[-2:], strict=True)
        rows, columns = (_centers(side, 4 * small) for side, small in sides)
        seen = torch.from_numpy(np.ascontiguousarray(truth[rows][:, columns], dtype=np.int64))
        with torch.no_grad():
            self._total += float(self._loss(logits.float(), seen[None].to(logits.device)))
        self._count += 1

    def _decide(self, prepared: Any, views: list[Tensor]) -> Prediction:
        prediction = super()._decide(prepared, views)
        self._logits[prediction] = views[0]
        return prediction


def _centers(side: int, count: int) -> NDArray[np.int64]:
    """Indices of ``count`` pixels spread evenly over a side: nearest-neighbor resizing."""
    return ((np.arange(count) + 0.5) * side / count).astype(np.int64)
