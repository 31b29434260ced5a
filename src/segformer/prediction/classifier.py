"""Classify whole images.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.image import ImageSource, Preprocessing, center_crop, read_image, resize
from segformer.prediction.config import PredictConfig
from segformer.prediction.runtimes.base import Runtime
from segformer.prediction.runtimes.exported import ExportedModel
from segformer.prediction.runtimes.opening import open_for_prediction
from segformer.prediction.upsample_numpy import softmax

if TYPE_CHECKING:
    from segformer.model.segformer import SegFormerClassifier

_BATCH_SIZE = 16

_SEGMENTATION_OPTIONS = ("window", "stride", "scales", "confidence")
"""Fields of `PredictConfig` that have no meaning for a class per image."""

_Reading: TypeAlias = tuple[ImageSource, "Future[NDArray[np.float32]]"]


@dataclass(frozen=True, eq=False)
class Classification:
    """The class probabilities of one image.

    Attributes:
        probabilities: (K,) float32, summing to 1.
        classes: The classes.
        source: File of the image, or None if it did not come from a file.
    """

    probabilities: NDArray[np.float32]
    classes: ClassSet
    source: Path | None = None

    def top(self, count: int = 5) -> dict[str, float]:
        """The most probable classes and their probabilities, highest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return {self.classes.names[i]: float(self.probabilities[i]) for i in order}


class ClassPredictor:
    """Classifies images with one model.

    Args:
        model: A classifier, or the folder, file or Hub id to load it from.
        config: How images are seen and run. ``size`` resizes to that size without a center crop;
            ``short_side`` keeps the crop of the model; ``flip`` averages the probabilities of the
            image and its mirror image. Windows, scales and the confidence of pixels are for
            segmentation and are refused.
        device: Overrides ``config.device``.
        precision: Overrides ``config.precision``.
        batch_size: Overrides ``config.batch_size``. Default: 16 if the model sees all images at
            the same size, else 1.

    Raises:
        CheckpointError: The model cannot be loaded.
        ValueError: An option does not apply to a classifier.

    Example:
        >>> predictor = ClassPredictor("nvidia/mit-b0")
        >>> predictor("cat.jpg").top(3)
    """

    def __init__(
        self,
        model: SegFormerClassifier | str | Path,
        config: PredictConfig | None = None,
        *,
        device: str | None = None,
        precision: Literal["float32", "bfloat16"] | None = None,
        batch_size: int | None = None,
    ):
        given = {"device": device, "precision": precision, "batch_size": batch_size}
        changes: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        self.config = replace(config or PredictConfig(), **changes)
        check_classifier_options(self.config)
        self.model: SegFormerClassifier | ExportedModel
        self.runtime: Runtime
        self.model, self.runtime = open_for_prediction(model, self.config, "classifier")
        self.preprocessing = _override(self.model.preprocessing, self.config)
        same_size = self.preprocessing.crop is not None or isinstance(
            self.preprocessing.size, tuple
        )
        self.batch_size = (self.config.batch_size or _BATCH_SIZE) if same_size else 1

    def __call__(self, source: ImageSource) -> Classification:
        """Classify one image.

        Args:
            source: Path, encoded bytes, PIL image, or array (H, W, C).

        Raises:
            UnreadableImage: The image cannot be read; the message names it.
        """
        return next(self.stream([source]))

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        on_error: Callable[[ImageSource, Exception], None] | None = None,
        readers: int = 2,
    ) -> Iterator[Classification]:
        """Classify many images, in order and in batches; threads read ahead.

        Args:
            sources: Images, as for a single call.
            on_error: Called with an image and the error if it cannot be read; the image is then
                skipped. Default: the error is raised.
            readers: Number of threads that read images.

        Yields:
            A result for each image that could be read, in order.
        """
        upcoming = iter(sources)
        with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
            reading = self._read(pool, upcoming)
            while reading:
                batch, reading = reading, self._read(pool, upcoming)  # the next while this runs
                read, views = [], []
                for source, future in batch:
                    try:
                        views.append(future.result())
                    except (ValueError, MemoryError) as error:
                        if on_error is None:
                            raise
                        on_error(source, error)
                    else:
                        read.append(source)
                if views:
                    yield from self._classify(read, views)

    def _read(self, pool: ThreadPoolExecutor, upcoming: Iterator[ImageSource]) -> list[_Reading]:
        return [
            (source, pool.submit(self._view, source))
            for source in islice(upcoming, self.batch_size)
        ]

    def _view(self, source: ImageSource) -> NDArray[np.float32]:
        """Read an image and make it the input of the model: (h, w, C), normalized."""
        image = read_image(
            source,
            self.model.config.in_channels,
            as_8_bit=self.preprocessing.expects_8_bit,
            value_range=self.config.value_range,
        )
        seen = resize(
            image,
            self.preprocessing.target_size(*image.shape[:2]),
            self.preprocessing.resample,
        )
        if self.preprocessing.crop is not None:
            seen = center_crop(seen, self.preprocessing.crop)
        return self.preprocessing.normalize(seen)

    def _classify(
        self, sources: list[ImageSource], views: list[NDArray[np.float32]]
    ) -> Iterator[Classification]:
        pixels = np.stack(views).transpose(0, 3, 1, 2)
        found = self._probabilities(pixels)
        if self.config.flip:
            found = (found + self._probabilities(pixels[..., ::-1].copy())) / np.float32(2)
        for source, values in zip(sources, found, strict=True):
            path = Path(source) if isinstance(source, (str, Path)) else None
            yield Classification(values, self.model.classes, path)

    def _probabilities(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, h, w) -> (B, K)."""
        logits = self.runtime(pixels)
        return softmax(logits if isinstance(logits, np.ndarray) else logits.cpu().numpy())


def check_classifier_options(config: PredictConfig) -> None:
    """Raise a ValueError if options are set that only segmentation has."""
    default = PredictConfig()
    given = [
        name for name in _SEGMENTATION_OPTIONS if getattr(config, name) != getattr(default, name)
    ]
    if given:
        raise ValueError(
            f"the model is a classifier, which gives one class per image: {', '.join(given)} "
            "cannot be used with it"
        )


def _override(preprocessing: Preprocessing, config: PredictConfig) -> Preprocessing:
    """The preprocessing with the size that the options ask for."""
    if config.size is not None:
        return replace(preprocessing, size=config.size, crop=None)
    if config.short_side is not None:
        if preprocessing.crop is not None and config.short_side < max(preprocessing.crop):
            raise ValueError(
                f"short_side {config.short_side} is smaller than the center crop of the model, "
                f"{preprocessing.crop[0]} x {preprocessing.crop[1]}; give size to resize without "
                "a crop"
            )
        return replace(preprocessing, size=config.short_side)
    return preprocessing
