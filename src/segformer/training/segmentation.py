"""Training on images and masks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segformer.config import SegFormerConfig
from segformer.data.check import SplitReport, check_split
from segformer.data.dataset import Dataset
from segformer.data.loader import TrainingCrops
from segformer.data.source import open_training
from segformer.evaluation.evaluate import evaluate, score_table, write_report
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.multilabel import (
    MultiLabelScores,
    binary_matrix,
    evaluate_multilabel,
    measure_probabilities,
    write_multilabel_report,
)
from segformer.evaluation.plots import examples_sheet
from segformer.evaluation.protocol import open_predictor
from segformer.model.segformer import SegFormer
from segformer.prediction.config import PredictConfig
from segformer.prediction.predictor import Predictor
from segformer.progress import ProgressBar
from segformer.training.config import SegmentationTrainConfig
from segformer.training.folder import RunFolder
from segformer.training.losses import Objective
from segformer.training.measuring import (
    DetailedMatrix,
    Measured,
    Measurement,
    evaluate_in_detail,
    measure_together,
)
from segformer.training.preparation import (
    augmentation,
    build_model,
    check_overlap,
    class_weights,
    draw_factors,
    preprocessing,
    resolve,
)
from segformer.training.processes import Processes
from segformer.training.samples import Files, sample_names
from segformer.training.task import Model, Outcome, Task

logger = logging.getLogger(__name__)


class Segmentation(Task):
    """Training on images and masks.

    Args:
        dataset: As `segformer.data.opening.open_dataset` takes it.
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
            factors: Tensor | None = state["factors"]
            self.factors = None if factors is None else factors.numpy()
            return
        check_overlap(config, self.training)
        report = _checked(self.training)
        if self.validation is None:
            logger.info("no split 'val': training without validation, the last model is kept")
        else:
            _checked(self.validation)
        self._config = resolve(config, report)
        self.weights = class_weights(self.config, report)
        self.factors = draw_factors(self.config, report)

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
        """With the weights of classes and images, which are computed from all masks."""
        factors = None if self.factors is None else torch.from_numpy(self.factors)
        return {**super().state(), "class_weights": self.weights, "factors": factors}

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

    def crops(self, model: Model, processes: int) -> TrainingCrops:
        """Crops of images and masks."""
        return TrainingCrops(
            self.training,
            augmentation(self.config, self.training.classes),
            model.preprocessing,
            self.config.seed,
            self.config.cache,
            processes,
        )

    def prepare(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the batch as it is."""
        return pixels, targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The weighted sum of loss functions of the configuration."""
        objective = Objective(
            self.config,
            self.training.classes.ignore_index,
            self.weights,
            self.training.multilabel,
        )
        return objective(logits, targets)

    def validate(self, model: Model, processes: Processes) -> Outcome:
        """IoU and loss over the validation images; the thresholds of sigmoids are fitted."""
        assert isinstance(model, SegFormer)
        if not model.config.num_sigmoids:
            measured = self._measure(
                evaluate, partial(self._predictor, model, processes), processes
            )
            return _outcome(measured.value, measured.loss)
        certain = partial(self._predictor, model, processes, confidence=True)
        found = self._measure(measure_probabilities, certain, processes)
        thresholds = found.value.fit() if self.config.fit_thresholds else ()
        model.config = replace(model.config, thresholds=thresholds)
        counts = found.value.at(model.config.decision_thresholds)
        if model.config.multilabel:
            thresholds = model.config.decision_thresholds
            scores = MultiLabelScores(model.classes, thresholds, counts)
            return _overlapping_outcome(scores, found.loss)
        return _outcome(binary_matrix(model.classes, counts), found.loss)

    def report(
        self, best: Path, folder: Path, processes: Processes, notes: dict[str, Any]
    ) -> Outcome:
        """The files of `write_report`, and ``val_examples.jpg``."""
        open_best = cache(lambda: self._predictor(SegFormer.from_pretrained(best), processes))
        measure: Callable[..., MultiLabelScores | DetailedMatrix] = evaluate_in_detail
        if self.training.multilabel:
            measure = evaluate_multilabel
        measurement = self._measure(measure, open_best, processes)
        measured, failed = measurement.value, measurement.failed

        def write() -> None:
            assert self.validation is not None
            if isinstance(measured, MultiLabelScores):
                write_multilabel_report(measured, folder, self.validation, notes, failed)
            else:
                curves = RunFolder(folder).curves("val_miou")
                matrix, details = measured.matrix, measured.details
                write_report(matrix, folder, self.validation, notes, details, failed, curves)
            unreadable = {failure.image for failure in failed}
            readable = [s for s in self.validation if str(s.image) not in unreadable]
            chosen = readable[:: max(1, len(readable) // 8)][:8]
            pairs = [(open_best()(s.image), self.validation.read(s)[1]) for s in chosen]
            examples_sheet(pairs, folder / "val_examples.jpg")

        processes.run_in_first(write)
        if isinstance(measured, MultiLabelScores):
            return _overlapping_outcome(measured, measurement.loss)
        return _outcome(measured.matrix, measurement.loss)

    def _predictor(
        self, model: SegFormer, processes: Processes, *, confidence: bool = False
    ) -> Predictor:
        """How the validation sees images."""
        config = self.config
        seen = PredictConfig(
            window=config.eval_window,
            stride=config.eval_stride,
            device=str(processes.device),
            confidence=confidence,
        )
        if config.eval_window is not None:  # by default, windows are run over the stored image
            seen = replace(seen, short_side=config.eval_size)
        return open_predictor(model, seen, config.protocol, long_side=config.long_side)

    def _measure(
        self,
        measure: Callable[..., Measured],
        predictor: Callable[[], Predictor],
        processes: Processes,
    ) -> Measurement[Measured]:
        """What a function measures over the validation images."""
        assert self.validation is not None
        found = measure_together(measure, self.validation, predictor, processes, self.loss)
        for failure in found.failed[:5]:
            logger.warning("skipped in validation: %s", failure)
        return found


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


def _overlapping_outcome(scores: MultiLabelScores, loss: float) -> Outcome:
    row = {
        "val_miou": scores.miou,
        "val_mean_accuracy": scores.mean_recall,
        "val_pixel_accuracy": scores.accuracy,
        "val_loss": loss,
    }
    words = f"mIoU {scores.miou:.2%}, mean recall {scores.mean_recall:.2%}"
    return Outcome(row, words, scores.table())


def _checked(dataset: Dataset) -> SplitReport:
    with ProgressBar(f"checking {dataset.split}", len(dataset), "images") as bar:
        report = check_split(dataset, bar.advance)
    report.raise_errors()
    for warning in report.warnings:
        logger.warning(warning)
    return report
