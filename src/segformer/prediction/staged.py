"""A predictor in two stages, for callers that queue and batch images themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segformer.image import ImageSource
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor


@dataclass(frozen=True)
class PreparedImage:
    """An image that has been read and resized for the model.

    Attributes:
        shapes: Images of equal shapes can be run together.
        content: What the predictor runs.
    """

    shapes: Hashable
    content: Any


class StagedPredictor:
    """Reading and running as separate calls; threads may read while another one runs.

    Args:
        predictor: Model and options.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self._with_confidence = copy.copy(predictor)  # with the same model and runtime
        self._with_confidence.config = replace(predictor.config, confidence=True)

    @property
    def batch_size(self) -> int:
        """Images to run at once at most; 1 where images are run in windows."""
        return 1 if self.predictor.config.window is not None else self.predictor.batch_size

    def prepare(self, source: ImageSource) -> PreparedImage:
        """Read an image and resize it.

        Raises:
            UnreadableImage: The image cannot be read.
        """
        prepared = self.predictor._prepare(source)
        return PreparedImage(tuple(prepared.shapes), prepared)

    def run(
        self,
        images: Sequence[PreparedImage],
        *,
        confidence: bool = False,
        on_windows: Callable[[int, int], None] | None = None,
    ) -> list[Prediction]:
        """Segment images of equal shapes.

        Args:
            images: From `prepare`.
            confidence: Keep the probability of each pixel's class.
            on_windows: Called during an image that is run in windows, with the number of windows
                done and of all. An exception that it raises ends the run.

        Raises:
            MemoryError: The images do not fit into memory.
        """
        predictor = self._with_confidence if confidence else self.predictor
        return predictor._predict([image.content for image in images], on_windows)
