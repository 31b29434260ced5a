"""Training on images in one folder per class, which is how the encoder is pre-trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.checkpoints.opening import open_checkpoint
from segformer.config import SegFormerConfig
from segformer.data.class_folders import ClassFolders, class_splits, open_class_folders
from segformer.data.class_transforms import ClassAugmentation, mix
from segformer.data.loader import ClassCrops
from segformer.evaluation.classify import (
    ClassScores,
    class_table,
    write_class_report,
)
from segformer.evaluation.plots import class_sheet
from segformer.image import Preprocessing
from segformer.model import pretrained
from segformer.model.segformer import SegFormerClassifier
from segformer.prediction.classifier import ClassPredictor
from segformer.training.config import ClassificationTrainConfig
from segformer.training.folder import RunFolder
from segformer.training.measuring import evaluate_classes_together
from segformer.training.preparation import start_from, with_defaults
from segformer.training.processes import Processes
from segformer.training.samples import Files
from segformer.training.task import Model, Outcome, Task

logger = logging.getLogger(__name__)


class Classification(Task):
    """Training on the classes of whole images.

    Args:
        dataset: As `segformer.data.class_folders.open_class_folders` takes it.
        config: The configuration.
        state: State of the run that is resumed.

    Raises:
        ValueError: The data set or the configuration cannot be used.
    """

    score = "top-1"

    def __init__(
        self,
        dataset: Path,
        config: ClassificationTrainConfig,
        state: dict[str, Any] | None = None,
    ):
        self.training = open_class_folders(dataset, "train")
        has_validation = "val" in class_splits(dataset)
        self.validation = open_class_folders(dataset, "val") if has_validation else None
        self.images, self.validates = len(self.training), self.validation is not None
        self._config = config
        if state is not None:
            self.check_state(state)
            return
        if self.validation is None:
            logger.info("no split 'val': training without validation, the last model is kept")
        if config.eval_size is None:
            # 256 for 224, the ratio at which ImageNet is commonly evaluated
            config = replace(config, eval_size=round(config.crop_size * 8 / 7))
        normalization, architecture = Preprocessing.for_channels(self.training.channels), None
        if config.pretrained is not None:
            source = open_checkpoint(config.pretrained)
            normalization = pretrained.adapt_preprocessing(
                source.preprocessing, self.training.channels
            )
            architecture = source.config
        self._config = with_defaults(config, self.images, normalization, architecture)

    @property
    def config(self) -> ClassificationTrainConfig:
        """The configuration, with all defaults filled in."""
        return self._config

    @property
    def files(self) -> Files:
        """Images."""
        present = [d for d in (self.training, self.validation) if d is not None]
        return {dataset.split: _names_and_files(dataset) for dataset in present}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders."""
        return self.training.classes.names

    def build_model(self) -> SegFormerClassifier:
        """With random weights, or those of a pretrained model."""
        config, classes = self.config, self.training.classes
        torch.manual_seed(config.seed)
        if config.pretrained is None:
            model = SegFormerClassifier.from_variant(
                config.variant or "b0", classes=classes, drop_path=config.drop_path
            )
        else:
            model = start_from(
                SegFormerClassifier,
                config,
                classes,
                len(classes),
                self.training.channels,
                drop_path=config.drop_path,
            )
        model.preprocessing = self._preprocessing()
        return model

    def restore_model(self, config: SegFormerConfig) -> SegFormerClassifier:
        """Without reading the pretrained model, which may no longer exist."""
        return SegFormerClassifier(config, self.training.classes, self._preprocessing())

    def crops(self, model: Model, processes: int) -> ClassCrops:
        """Random crops of images."""
        names = ClassAugmentation.__dataclass_fields__
        chosen = ClassAugmentation(**{name: getattr(self.config, name) for name in names})
        return ClassCrops(self.training, chosen, model.preprocessing, self.config.seed)

    def prepare(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Apply mixup and CutMix; class ids become probabilities."""
        classes = len(self.training.classes)
        return mix(pixels, targets, classes, self.config.mixup_alpha, self.config.cutmix_alpha)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with label smoothing."""
        smoothing = self.config.label_smoothing
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)

    def validate(self, model: Model, processes: Processes) -> Outcome:
        """Top-1 and top-5 over the validation images."""
        assert isinstance(model, SegFormerClassifier)
        device = str(processes.device)
        return _outcome(self._evaluate(lambda: ClassPredictor(model, device=device), processes))

    def report(
        self, best: Path, folder: Path, processes: Processes, notes: dict[str, Any]
    ) -> Outcome:
        """The files of `write_class_report`, and ``val_examples.jpg``."""
        open_best = cache(partial(ClassPredictor, best, device=str(processes.device)))
        scores = self._evaluate(open_best, processes)

        def write() -> None:
            assert self.validation is not None
            curves = RunFolder(folder).curves("val_top1")
            write_class_report(scores, folder, self.validation, notes, curves)
            samples = self.validation.samples
            shown = samples[:: max(1, len(samples) // 24)][:24]
            class_sheet(open_best(), shown, folder / "val_examples.jpg")

        processes.run_in_first(write)
        return _outcome(scores)

    def _evaluate(
        self, predictor: Callable[[], ClassPredictor], processes: Processes
    ) -> ClassScores:
        assert self.validation is not None
        scores = evaluate_classes_together(self.validation, predictor, processes)
        for sentence in scores.failed[:5]:
            logger.warning("skipped: %s", sentence)
        return scores

    def _preprocessing(self) -> Preprocessing:
        config = self.config
        assert config.mean and config.std and config.rescale
        return Preprocessing(
            size=config.eval_size,
            crop=(config.crop_size, config.crop_size),
            mean=config.mean,
            std=config.std,
            rescale=config.rescale,
        )


def _names_and_files(dataset: ClassFolders) -> Iterator[tuple[str, tuple[Path, ...]]]:
    folder = dataset.root / dataset.split
    return ((path.relative_to(folder).as_posix(), (path,)) for path, _ in dataset)


def _outcome(scores: ClassScores) -> Outcome:
    row = {"val_top1": scores.top1, "val_top5": scores.top5, "val_loss": scores.loss}
    words = f"top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}"
    return Outcome(row, words, class_table(scores))
