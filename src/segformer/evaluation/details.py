"""What a report shows in addition to the confusion matrix, collected while images are evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segformer.data.dataset import Sample
from segformer.evaluation.calibration import Calibration
from segformer.evaluation.examples import Example, Examples, make_example
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.per_image import ImageCounts
from segformer.evaluation.speed import Speed
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Scored:
    """An image that has been compared with its mask.

    Attributes:
        sample: Image and mask.
        prediction: The prediction, in the classes of the model.
        truth: (H, W) class ids of the mask.
        predicted: (H, W) predicted class ids, in the classes of the data set.
        counts: Confusion matrix of this image.
    """

    sample: Sample
    prediction: Prediction
    truth: NDArray[np.integer]
    predicted: NDArray[np.integer]
    counts: ConfusionMatrix


class Collector(Protocol):
    """What looks at each image of an evaluation."""

    confidence_pixels: int
    """Pixels of each image whose confidence is wanted."""

    def add(self, scored: Scored) -> None:
        """Look at an image."""


@dataclass
class Details:
    """Scores per image, calibration, the worst and best images, speed and memory.

    The memory is bounded: some hundred bytes per image, and a few images at the size of a report.

    Attributes:
        speed: Time and memory.
        confidence_pixels: Pixels of each image that enter the calibration, at most.
        images: Pixels of each image, by class.
        calibration: Confidence and correctness of these pixels.
        examples: The images with the lowest and the highest mIoU.
    """

    speed: Speed
    confidence_pixels: int = 1 << 14
    images: ImageCounts = field(default_factory=ImageCounts)
    calibration: Calibration = field(default_factory=Calibration)
    examples: Examples = field(default_factory=Examples)

    @classmethod
    def of(cls, predictor: Predictor) -> Details:
        """Empty, for an evaluation that begins now."""
        return cls(Speed(str(predictor.runtime.device)))

    def add(self, scored: Scored) -> None:
        """Add an image."""
        scores = self.images.add(scored.sample.name, scored.counts)
        self.examples.add(scores.miou, lambda: _example(scored, scores.miou))
        sampled = scored.prediction.sampled_confidence
        if sampled is not None:
            truth, predicted = sampled.at(scored.truth), sampled.at(scored.predicted)
            labeled = truth != scored.counts.classes.ignore_index
            self.calibration.update(sampled.values[labeled], (truth == predicted)[labeled])
        self.speed.image_done()

    def merge(self, other: Details) -> None:
        """Add the images of another evaluation, such as that of another process."""
        self.images.merge(other.images)
        self.calibration.merge(other.calibration)
        self.examples.merge(other.examples)
        self.speed.merge(other.speed)


def _example(scored: Scored, score: float) -> Example:
    return make_example(
        scored.sample.name,
        score,
        scored.prediction.image,
        scored.truth,
        scored.predicted,
        rgb_channels=scored.prediction.rgb_channels,
    )
