"""`segformer.evaluate`: a data set and a model in, scores out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from segformer.data.dataset import Dataset
from segformer.data.opening import open_dataset
from segformer.evaluation.evaluate import evaluate as count_pixels
from segformer.evaluation.matching import MatchClasses
from segformer.evaluation.metrics import Scores
from segformer.evaluation.protocol import open_predictor
from segformer.image import ImageSource
from segformer.model.segformer import SegFormer
from segformer.prediction.config import PredictConfig, Protocol
from segformer.prediction.predictor import Predictor

logger = logging.getLogger(__name__)


def evaluate(
    dataset: str | Path | Dataset,
    model: str | Path | SegFormer | Predictor,
    *,
    split: str = "val",
    config: PredictConfig | None = None,
    match_classes: MatchClasses = "name",
    protocol: Protocol = "default",
    on_image: Callable[[], None] | None = None,
    on_error: Callable[[ImageSource, Exception], None] | None = None,
) -> Scores:
    """Score a segmentation model on a data set, at the size of the masks.

    Args:
        dataset: Folder or ``dataset.yaml`` of a data set, or an opened split.
        model: A model, a predictor, or the folder, file or Hub id to load the model from.
        split: Split to evaluate; not used if ``dataset`` is an opened split.
        config: How images are seen and run, such as ``PredictConfig(flip=True)``. Default: the
            model's own preprocessing.
        match_classes: Match the classes of model and data set by "name" or by "position".
        protocol: "paper" sees images exactly as the original evaluation did; see
            `segformer.evaluation.protocol.PaperPredictor`. Not used if ``model`` is a predictor.
        on_image: Called after each image, scored or skipped.
        on_error: Called with an image and the error if the image or its mask cannot be read; the
            image is then skipped. Default: the error is raised.

    Returns:
        IoU, accuracy and Dice per class, their means, and the confusion matrix.

    Raises:
        ValueError: The data set, the model or the options cannot be used, the classes cannot be
            matched, or an image cannot be read.

    Example:
        >>> scores = segformer.evaluate("shapes", "runs/shapes/best")
        >>> scores.miou, dict(zip(scores.classes.names, scores.iou))
    """
    if isinstance(model, Predictor):
        if config is not None or protocol != "default":
            raise ValueError(
                "a Predictor has its own config and protocol; pass the model to give others"
            )
        predictor = model
    else:
        predictor = open_predictor(model, config or PredictConfig(), protocol)
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, split)
    scores = count_pixels(
        opened, predictor, match_classes=match_classes, on_image=on_image, on_error=on_error
    ).scores()
    for warning in scores.warnings:
        logger.warning(warning)
    return scores
