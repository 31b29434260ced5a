"""From images to class probabilities.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.image import ImageSource, center_crop, read_image, resize
from segformer.model import pretrained
from segformer.model.segformer import SegFormerClassifier
from segformer.prediction.runtime import TorchRuntime

_Reading: TypeAlias = tuple[ImageSource, "Future[NDArray[np.float32]]"]


@dataclass(frozen=True)
class Classification:
    """What a classifier says of an image.

    Attributes:
        probabilities: (K,) float32, summing to 1.
        classes: The classes.
        source: The image's file, if it came from one.
    """

    probabilities: NDArray[np.float32]
    classes: ClassSet
    source: Path | None = None

    def top(self, count: int = 5) -> dict[str, float]:
        """The most probable classes, the first the most."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return {self.classes.names[i]: float(self.probabilities[i]) for i in order}


class ClassPredictor:
    """Classifies images with one model, seen as its preprocessing says.

    Args:
        model: A classifier, or where to load it from.
        device: cpu, cuda, cuda:1, mps; left out, the best there is.
        precision: "float32", or "bfloat16" under autocast.
        batch_size: Images at a time, where the preprocessing makes them of one size.

    Raises:
        CheckpointError: The model cannot be loaded.

    Example:
        >>> predictor = ClassPredictor("nvidia/mit-b0")
        >>> predictor("cat.jpg").top(3)
    """

    def __init__(
        self,
        model: SegFormerClassifier | str | Path,
        *,
        device: str | None = None,
        precision: str = "float32",
        batch_size: int = 16,
    ):
        if not isinstance(model, SegFormerClassifier):
            model = pretrained.load_classifier(model)
        self.model, self.preprocessing = model, model.preprocessing
        self.runtime = TorchRuntime(model, device, precision)
        same_size = self.preprocessing.crop is not None or isinstance(
            self.preprocessing.size, tuple
        )
        self.batch_size = batch_size if same_size else 1

    def __call__(self, source: ImageSource) -> Classification:
        """Classify one image: path, encoded bytes, PIL image, or array (H, W, C).

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
        """Classify many images in order, in batches; reading runs in threads.

        Args:
            sources: As for one.
            on_error: Called with a source that cannot be read, which is then left out; left out
                itself, such a source raises.
            readers: Threads that read.
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
        """An image as the model is to see it: (h, w, C), normalized."""
        image = read_image(source, self.model.config.in_channels)
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
        logits = self.runtime(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2))
        for source, values in zip(sources, logits.softmax(1).cpu().numpy(), strict=True):
            path = Path(source) if isinstance(source, (str, Path)) else None
            yield Classification(values, self.model.classes, path)
