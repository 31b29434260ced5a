"""How a model sees images when it is scored: by default as it was trained, or as the paper did it.

Legend: H W pixels of the image as it is, h w of what the model sees, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.image import ImageArray
from segformer.image.rescaling import rescaled_size, resize_bilinear
from segformer.model.segformer import SegFormer
from segformer.prediction.config import PredictConfig, Protocol
from segformer.prediction.predictor import Predictor
from segformer.prediction.runtimes.base import as_tensors
from segformer.prediction.windows import window_starts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segformer.prediction.config import PredictOptions

LONG_SIDE = 2048
"""Limit of the long side in all configurations of the original code, before the random scale."""

_MULTIPLE = 32
"""The sides of whole images are enlarged to a multiple of this, that of stage 4."""


def open_predictor(
    model: SegFormer | str | Path,
    config: PredictConfig,
    protocol: Protocol = "default",
    *,
    long_side: int = LONG_SIDE,
) -> Predictor:
    """A predictor that sees images by a protocol.

    Args:
        model: The model, or the folder that `segformer export` wrote.
        config: Sizes, windows, scales and arithmetic.
        protocol: "default" is `Predictor`, "paper" is `PaperPredictor`.
        long_side: Limit of the long side, of "paper" only.
    """
    if protocol not in ("default", "paper"):
        raise ValueError(f"protocol must be 'default' or 'paper', not {protocol!r}")
    if protocol == "default":
        return Predictor(model, config)
    return PaperPredictor(model, config, long_side=long_side)


class PaperPredictor(Predictor):
    """Segments images exactly as the original evaluation of SegFormer did.

    It differs from `Predictor` in these points:

    * Images are resized by OpenCV's bilinear interpolation, without antialiasing.
    * The aspect ratio is kept with two limits: the short side, and ``long_side``. At a scale, both
      limits are multiplied and truncated to integers.
    * Whole images are then resized a second time, to the next multiples of 32 above.
    * Logits are resized to the size that the model sees, and from there to the size of the image.
    * The logits of windows are averaged at the size that the model sees.

    Windows and scales are those of ``config``. As in `Predictor`, images run in windows keep their
    own size unless ``short_side`` is given. The logits of all views of an image are held at the
    size that the model sees: 19 classes at seven scales up to 2 with mirror images take 4 GB for
    an image of 1024 x 2048 pixels.

    Args:
        model: As for `Predictor`.
        config: As for `Predictor`. If the preprocessing of the model has a fixed size, its shorter
            side is the short side.
        long_side: Limit of the long side at scale 1, pixels.
        **options: Fields of `PredictConfig`.

    Raises:
        ValueError: The options give a size, which would not keep the aspect ratio, or are not
            possible.
    """

    def __init__(
        self,
        model: SegFormer | str | Path,
        config: PredictConfig | None = None,
        *,
        long_side: int = LONG_SIDE,
        **options: Unpack[PredictOptions],
    ):
        super().__init__(model, config, **options)
        if self.config.size is not None:
            raise ValueError(
                "the paper's protocol keeps the aspect ratio: give short_side, not size"
            )
        self.long_side = long_side
        if len(self.config.scales) > 1 and self.config.window is None:
            self.batch_size = 1  # the views of one image already take much memory

    def _resize(self, image: ImageArray, scale: float) -> ImageArray:
        height, width = image.shape[:2]
        size = self.preprocessing.size
        short = min(size) if isinstance(size, tuple) else size
        limits = (max(height, width), min(height, width))
        if short is not None:
            limits = (max(self.long_side, short), short)
        image = resize_bilinear(
            image, rescaled_size(height, width, *(int(limit * scale) for limit in limits))
        )
        if self.config.window is not None:
            return image
        height, width = (-(-side // _MULTIPLE) * _MULTIPLE for side in image.shape[:2])
        return resize_bilinear(image, (height, width))

    def _run(self, views: list[ImageArray], on_batch: Callable[[int], None] | None) -> Tensor:
        """Views of one size, (h, w, C) -> logits (B, K, h, w)."""
        if self.config.window is None:
            return self._logits(np.stack(views))
        return torch.stack([self._window_logits(view, on_batch) for view in views])

    def _window_logits(self, view: ImageArray, on_batch: Callable[[int], None] | None) -> Tensor:
        """Logits (K, h, w) of a view (h, w, C), averaged where windows overlap."""
        window, stride = self.config.window, self.config.stride
        assert window is not None and stride is not None
        size = view.shape[:2]
        corners = list(product(*(window_starts(side, window, stride) for side in size)))
        total: Tensor | None = None
        count = torch.zeros(size)
        for first in range(0, len(corners), self.batch_size):
            batch = corners[first : first + self.batch_size]
            cuts = [view[top : top + window, left : left + window] for top, left in batch]
            if view.dtype.kind != "f":  # floats are normalized already
                cuts = [self.preprocessing.normalize(cut) for cut in cuts]
            for (top, left), logits in zip(batch, self._logits(np.stack(cuts)), strict=True):
                if total is None:
                    total = logits.new_zeros(len(logits), *size)
                    count = count.to(logits.device)
                total[:, top : top + window, left : left + window] += logits
                count[top : top + window, left : left + window] += 1
            if on_batch is not None:
                on_batch(len(batch))
        assert total is not None
        return total / count

    def _logits(self, images: ImageArray) -> Tensor:
        """Normalized (B, h, w, C) -> logits (B, K, h, w)."""
        (logits,) = as_tensors([self.runtime(images.transpose(0, 3, 1, 2))])
        return F.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=False)
