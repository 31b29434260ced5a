"""Training on images and masks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from segformer.config import SegFormerConfig
from segformer.data.check import SplitReport, check_split
from segformer.data.dataset import Dataset
from segformer.data.loader import TrainingCrops
from segformer.data.source import open_training
from segformer.evaluation.evaluate import Failure, evaluate, score_table, write_report
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.plots import examples_sheet
from segformer.model.segformer import SegFormer
from segformer.progress import ProgressBar
from segformer.training.config import SegmentationTrainConfig
from segformer.training.losses import (
    OHEM,
    cross_entropy_at_mask_size,
    dice_loss,
    lovasz_loss,
)
from segformer.training.preparation import (
    augmentation,
    build_model,
    class_weights,
    preprocessing,
    resolve,
)
from segformer.training.samples import Files, sample_names
from segformer.training.task import Model, Outcome, Task
from segformer.training.validation_loss import LossPredictor

logger = logging.getLogger(__name__)


class Segmentation(Task):
    """Training on images and masks.

    Args:
        dataset: As `segformer.data.dataset.open_dataset` takes it.
        config: The configuration.
        state: State of the run that is resumed; without it the data set is checked first.

    Raises:
        ValueError: The data set or the configuration cannot be used.
    """

    score = "mIoU"

    def __init__(
        self,
        dataset: Path,
        config: SegmentationTrainConfig,
        state: dict[str, Any] | None = None,
    ):
        earlier = sample_names(state["samples"]) if state is not None else None
        self.training, self.validation = self._open(dataset, config, earlier)
        self.images, self.validates = len(self.training), self.validation is not None
        self._config = config
        if state is not None:
            self.check_state(state)
            self.weights: Tensor | None = state["class_weights"]
            return
        report = _checked(self.training)
        if self.validation is None:
            logger.info("no split 'val': training without validation, the last model is kept")
        else:
            _checked(self.validation)
        self._config = resolve(config, report)
        self.weights = class_weights(self.config, report)

    def _open(
        self,
        dataset: Path,
        config: SegmentationTrainConfig,
        earlier: dict[str, list[str]] | None,
    ) -> tuple[Dataset, Dataset | None]:
        """What is trained and validated on; ``earlier``: the samples of the run that is resumed."""
        return open_training(dataset, config, config.seed, earlier=earlier)

    @property
    def config(self) -> SegmentationTrainConfig:
        """The configuration, with all defaults filled in."""
        return self._config

    def state(self) -> dict[str, Any]:
        """With the class weights, which are computed from all masks."""
        return {**super().state(), "class_weights": self.weights}

    @property
    def files(self) -> Files:
        """Images and masks."""
        return {
            dataset.split: (
                (
                    sample.name,
                    tuple(f for f in (*sample.image_files, sample.mask_file) if f is not None),
                )
                for sample in dataset
            )
            for dataset in (self.training, self.validation)
            if dataset is not None
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the masks."""
        return self.training.classes.names

    def build_model(self) -> SegFormer:
        """With random weights, or those of a pretrained model."""
        return build_model(self.config, self.training)

    def restore_model(self, config: SegFormerConfig) -> SegFormer:
        """Without reading the pretrained model, which may no longer exist."""
        model = SegFormer(config, self.training.classes)
        model.preprocessing = preprocessing(self.config, self.training)
        return model

    def crops(self, model: Model) -> TrainingCrops:
        """Crops of images and masks."""
        return TrainingCrops(
            self.training,
            augmentation(self.config, self.training.classes),
            model.preprocessing,
            self.config.seed,
            self.config.cache,
        )

    def prepare(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the batch as it is."""
        return pixels, targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy at the size of the masks, plus the terms of the configuration."""
        config, ignore_index = self.config, self.training.classes.ignore_index
        weights = self.weights.to(logits.device) if self.weights is not None else None
        loss = cross_entropy_at_mask_size(
            logits,
            targets,
            class_weights=weights,
            ignore_index=ignore_index,
            avg_non_ignore=config.avg_non_ignore,
            label_smoothing=config.label_smoothing,
            focal_gamma=config.focal_gamma,
            ohem=(
                OHEM(config.ohem_threshold, config.ohem_min_kept) if config.ohem_threshold else None
            ),
        )
        if config.dice_weight:
            loss = loss + config.dice_weight * dice_loss(logits, targets, ignore_index=ignore_index)
        if config.lovasz_weight:
            loss = loss + config.lovasz_weight * lovasz_loss(
                logits, targets, ignore_index=ignore_index
            )
        return loss

    def validate(self, model: Model, device: str) -> Outcome:
        """IoU and loss over the validation images."""
        assert isinstance(model, SegFormer)
        predictor = self._predictor(model, device)
        matrix, _ = self._evaluate(predictor)
        return _outcome(matrix, predictor.mean_loss)

    def report(self, best: Path, folder: Path, device: str, notes: dict[str, Any]) -> Outcome:
        """``report.json``, ``confusion.png`` and ``val_examples.jpg``."""
        assert self.validation is not None
        predictor = self._predictor(best, device)
        matrix, failed = self._evaluate(predictor)
        write_report(matrix, folder, self.validation, notes, failed)
        unreadable = {failure.image for failure in failed}
        readable = [s for s in self.validation if str(s.image) not in unreadable]
        chosen = readable[:: max(1, len(readable) // 8)][:8]
        pairs = [(predictor(s.image), self.validation.read(s)[1]) for s in chosen]
        examples_sheet(pairs, folder / "val_examples.jpg")
        return _outcome(matrix, predictor.mean_loss)

    def _predictor(self, model: SegFormer | Path, device: str) -> LossPredictor:
        """How validation images are predicted."""
        return LossPredictor(model, self.loss, device=device)

    def _evaluate(self, predictor: LossPredictor) -> tuple[ConfusionMatrix, list[Failure]]:
        """Counts of pixels, and the images that could not be read."""
        assert self.validation is not None
        failed: list[Failure] = []
        with ProgressBar("validating", len(self.validation), "images") as bar:
            matrix = evaluate(
                self.validation,
                predictor,
                on_image=bar.advance,
                on_error=lambda source, error: failed.append(Failure(str(source), str(error))),
                on_prediction=predictor.add,
            )
        for failure in failed[:5]:
            logger.warning("skipped in validation: %s", failure)
        return matrix, failed


def _outcome(matrix: ConfusionMatrix, loss: float) -> Outcome:
    scores = matrix.scores()
    row = {
        "val_miou": scores.miou,
        "val_mean_accuracy": scores.mean_accuracy,
        "val_pixel_accuracy": scores.pixel_accuracy,
        "val_loss": loss,
    }
    words = f"mIoU {scores.miou:.2%}, pixel accuracy {scores.pixel_accuracy:.2%}"
    return Outcome(row, words, score_table(scores))


def _checked(dataset: Dataset) -> SplitReport:
    with ProgressBar(f"checking {dataset.split}", len(dataset), "images") as bar:
        report = check_split(dataset, bar.advance)
    report.raise_errors()
    for warning in report.warnings:
        logger.warning(warning)
    return report
