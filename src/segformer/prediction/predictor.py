"""From images of any size and kind to predictions.

Legend: H W pixels of the image as it is, h w of what the model sees, C channels, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segformer.checkpoints.opening import SHIPPED
from segformer.image import ImageArray, ImageSource, Preprocessing, read_image, resize
from segformer.model import pretrained
from segformer.model.segformer import SegFormer
from segformer.prediction.config import SMALLEST_SIDE, PredictConfig
from segformer.prediction.prediction import Prediction
from segformer.prediction.runtime import TorchRuntime
from segformer.prediction.upsample import logits_to_label_map
from segformer.prediction.windows import window_starts


@dataclass(frozen=True)
class _Prepared:
    """An image, and its views as the model is to see them: (h, w, C) normalized."""

    source: ImageSource
    image: ImageArray
    views: list[NDArray[np.float32]]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the views."""
        return [view.shape for view in self.views]


class Predictor:
    """Segments images with one model.

    The model's own preprocessing is honored: what it was trained or published with. Options
    override its resizing.

    Args:
        model: A model, or where to load it from (folder, file, Hub id); left out, the one that
            ships inside.
        config: How images are seen and run.
        **options: Fields of `PredictConfig`, such as ``short_side=512`` or ``flip=True``.

    Raises:
        ValueError: Contradicting or impossible options.
        CheckpointError: The model cannot be loaded.

    Example:
        >>> predictor = Predictor()
        >>> prediction = predictor("portrait.jpg")
        >>> prediction.label_map.shape  # the image's own height and width
    """

    def __init__(
        self,
        model: SegFormer | str | Path | None = None,
        config: PredictConfig | None = None,
        **options: Any,
    ):
        unknown = options.keys() - PredictConfig.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(f"no such options: {', '.join(sorted(unknown))}")
        self.config = replace(config or PredictConfig(), **options)
        if not isinstance(model, SegFormer):
            model = pretrained.load(SHIPPED if model is None else model)
        self.model = model
        self.preprocessing = _override(model.preprocessing, self.config)
        self.runtime = TorchRuntime(
            model, self.config.device, self.config.precision, compile=self.config.compile
        )
        on_cpu = self.runtime.device.type == "cpu"
        self.batch_size = self.config.batch_size or (1 if on_cpu else 8)

    def __call__(self, source: ImageSource) -> Prediction:
        """Segment one image.

        Args:
            source: Path, encoded bytes, PIL image, or array (H, W, C).

        Raises:
            UnreadableImage: The image cannot be read; the message names it.
        """
        (prediction,) = self._predict([self._prepare(source)])
        return prediction

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        on_error: Callable[[ImageSource, Exception], None] | None = None,
        readers: int = 2,
    ) -> Iterator[Prediction]:
        """Segment many images in order; reading and preparing run ahead of the model.

        Args:
            sources: As for one; only as many are read ahead as the readers need.
            on_error: Called with a source that cannot be read, which is then left out; left out
                itself, such a source raises.
            readers: Threads that read.
        """
        with closing(self._read_ahead(sources, on_error, readers)) as images:
            for _, alike in groupby(images, key=lambda prepared: prepared.shapes):
                while batch := list(islice(alike, self.batch_size)):
                    yield from self._finish(batch, on_error)

    def _read_ahead(
        self,
        sources: Iterable[ImageSource],
        on_error: Callable[[ImageSource, Exception], None] | None,
        readers: int,
    ) -> Generator[_Prepared, None, None]:
        """Prepared images in order; those that cannot be read are reported and left out."""
        waiting: deque[tuple[ImageSource, Future[_Prepared]]] = deque()
        upcoming = iter(sources)
        with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
            try:
                while True:
                    for source in islice(upcoming, readers + self.batch_size - len(waiting)):
                        waiting.append((source, pool.submit(self._prepare, source)))
                    if not waiting:
                        return
                    source, future = waiting.popleft()
                    try:
                        prepared = future.result()
                    except (ValueError, MemoryError) as error:
                        if on_error is None:
                            raise
                        on_error(source, error)
                    else:
                        yield prepared
            finally:
                for _, future in waiting:
                    future.cancel()

    def logits(self, image: ImageArray) -> Tensor:
        """Logits (K, h / 4, w / 4) of an image (H, W, C) at the first scale, before upsampling."""
        return self._run(self._view(image, self.config.scales[0])[None])[0]

    def _prepare(self, source: ImageSource) -> _Prepared:
        image = read_image(source, self.model.config.in_channels)
        return _Prepared(source, image, [self._view(image, scale) for scale in self.config.scales])

    def _view(self, image: ImageArray, scale: float) -> NDArray[np.float32]:
        height, width = self.preprocessing.target_size(*image.shape[:2])
        size = tuple(max(SMALLEST_SIDE, round(side * scale)) for side in (height, width))
        resized = resize(image, (size[0], size[1]), self.preprocessing.resample)
        return self.preprocessing.normalize(resized)

    def _finish(
        self,
        batch: list[_Prepared],
        on_error: Callable[[ImageSource, Exception], None] | None,
    ) -> Iterator[Prediction]:
        """Predictions of images of one size; one by one where together they do not fit."""
        if len(batch) > 1:
            try:
                predictions = self._predict(batch)
            except MemoryError:
                pass
            else:
                yield from predictions
                return
        for prepared in batch:
            try:
                (prediction,) = self._predict([prepared])
            except (ValueError, MemoryError) as error:
                if on_error is None:
                    raise
                on_error(prepared.source, error)
            else:
                yield prediction

    def _predict(self, batch: list[_Prepared]) -> list[Prediction]:
        """Predictions of images whose views are of the same sizes."""
        try:
            views = self._tta_logits(batch)
            return [
                self._decide(prepared, [logits[i] for logits in views])
                for i, prepared in enumerate(batch)
            ]
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            source = batch[0].source
            height, width = batch[0].image.shape[:2]
            raise MemoryError(
                f"{source if isinstance(source, (str, Path)) else 'image'}: "
                f"{width} x {height} pixels do not fit into memory; try a window of 1024"
            ) from None

    def _tta_logits(self, batch: list[_Prepared]) -> list[Tensor]:
        """Of each view, mirrored ones behind their own, the images' logits (B, K, h, w)."""
        views = []
        for i in range(len(batch[0].views)):
            pixels = np.stack([prepared.views[i] for prepared in batch])
            views.append(self._run(pixels))
            if self.config.flip:
                views.append(self._run(np.ascontiguousarray(pixels[:, :, ::-1])).flip(-1))
        return views

    def _decide(self, prepared: _Prepared, views: list[Tensor]) -> Prediction:
        height, width = prepared.image.shape[:2]
        label_map, confidence = logits_to_label_map(
            views, (height, width), confidence=self.config.confidence
        )
        return Prediction(
            label_map=label_map,
            classes=self.model.classes,
            image=prepared.image,
            source=Path(prepared.source) if isinstance(prepared.source, (str, Path)) else None,
            confidence=confidence,
        )

    def _run(self, views: NDArray[np.float32]) -> Tensor:
        """(B, h, w, C) normalized -> logits (B, K, ceil(h / 4), ceil(w / 4))."""
        pixels = torch.from_numpy(views).permute(0, 3, 1, 2)
        if self.config.window is None or self.config.stride is None:
            return self.runtime(pixels)
        return torch.stack(
            [self._run_windows(one, self.config.window, self.config.stride) for one in pixels]
        )

    def _run_windows(self, pixels: Tensor, window: int, stride: int) -> Tensor:
        """Logits (K, h / 4, w / 4) averaged over windows that start at multiples of 4.

        So windows meet on the grid of the logits, and averages are taken there, at a sixteenth
        of the values. The image's own edge is padded by at most 3 pixels, repeating it.
        """
        height, width = pixels.shape[1:]
        pixels = F.pad(pixels[None], (0, -width % 4, 0, -height % 4), mode="replicate")[0]
        high, wide = pixels.shape[1:]
        corners = list(
            product(window_starts(high, window, stride), window_starts(wide, window, stride))
        )
        total = torch.zeros(1)
        for first in range(0, len(corners), self.batch_size):
            some = corners[first : first + self.batch_size]
            windows = [pixels[:, y : y + window, x : x + window] for y, x in some]
            for (top, left), logits in zip(some, self.runtime(torch.stack(windows)), strict=True):
                if total.ndim == 1:
                    total = torch.zeros(logits.shape[0] + 1, high // 4, wide // 4).to(logits)
                place = total[:, top // 4 : (top + window) // 4, left // 4 : (left + window) // 4]
                place[:-1] += logits
                place[-1] += 1  # how many windows see each token
        return total[:-1] / total[-1]


def _override(preprocessing: Preprocessing, config: PredictConfig) -> Preprocessing:
    if config.size is not None:
        return replace(preprocessing, size=config.size)
    if config.short_side is not None:
        return replace(preprocessing, size=config.short_side)
    if config.window is not None:
        return replace(preprocessing, size=None, multiple=1)
    return preprocessing
