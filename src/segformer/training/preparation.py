"""What a recipe means for a data set: defaults, class weights, augmentation, the model."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from segformer.checkpoints.opening import open_checkpoint
from segformer.classes import ClassSet
from segformer.data.check import SplitReport
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.recolor import ClassColorJitter
from segformer.data.transforms import Augmentation
from segformer.image import Preprocessing
from segformer.model import pretrained
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.training.config import TrainConfig

Whole = TypeVar("Whole", SegFormer, SegFormerClassifier)


def resolve(config: TrainConfig, report: SplitReport) -> TrainConfig:
    """Fill in the defaults of a segmentation recipe for the training images."""
    training = report.dataset
    if config.background_replace_prob and config.background_class >= len(training.classes):
        raise ValueError(
            f"there is no class {config.background_class} to put backgrounds in place of"
        )
    source = open_checkpoint(config.pretrained) if config.pretrained is not None else None
    if source is not None and source.config.in_channels == training.channels:
        normalization = source.preprocessing
    elif report.dtypes == {"uint8"} and training.channels == 3:
        normalization = Preprocessing()
    else:
        mean, std = report.mean_and_std
        normalization = Preprocessing(mean=mean, std=std, rescale=1.0)
    config = replace(config, eval_size=config.eval_size or config.short_side)
    return with_defaults(config, len(training), normalization)


def with_defaults(config: TrainConfig, images: int, normalization: Preprocessing) -> TrainConfig:
    """Fill in the defaults that depend on other fields.

    Args:
        config: The recipe.
        images: How many there are to train on.
        normalization: Its mean, deviation and rescaling are the defaults.
    """
    effective = config.batch_size * config.accumulate_grad_batches * config.devices
    steps = config.max_steps or math.ceil(config.epochs * images / effective)
    started = config.pretrained is not None
    if config.pretrained is not None and Path(config.pretrained).exists():
        config = replace(config, pretrained=str(Path(config.pretrained).resolve()))
    defaults = {
        "mean": normalization.mean,
        "std": normalization.std,
        "rescale": normalization.rescale,
        "max_steps": steps,
        "warmup_steps": min(1500, steps // 20),
        "lr": 6e-5 if started else 6e-4,
        "head_lr_factor": 10.0 if started else 1.0,
        "label_smoothing": 0.1 if config.task == "classify" else 0.0,
        "num_workers": min(os.cpu_count() or 1, 8),
    }
    missing = {name: v for name, v in defaults.items() if getattr(config, name) is None}
    return replace(config, **missing)  # type: ignore[arg-type]


def class_weights(config: TrainConfig, report: SplitReport) -> Tensor | None:
    """(K,) weights of the classes in the loss: frequency ** -power, 1 for the mean pixel.

    Classes that never occur keep 1, and none weighs more than 10 times the mean.
    """
    if config.class_weight_power == 0:
        return None
    frequency = report.frequencies
    powers = np.maximum(frequency, 1e-12) ** -config.class_weight_power
    weights = np.where(frequency > 0, powers, 0)
    weights /= (weights * frequency).sum()
    return torch.tensor(np.where(frequency > 0, weights.clip(max=10), 1), dtype=torch.float32)


def build_model(config: TrainConfig, training: Dataset) -> SegFormer:
    """The model at step 0: fresh, or from another one with what fits of it."""
    torch.manual_seed(config.seed)
    classes = training.classes
    if config.binary and len(classes) != 2:
        raise DatasetError(
            f"{training.root}: binary training needs two classes, there are {len(classes)}"
        )
    outputs = 1 if config.binary else len(classes)
    regularization: dict[str, Any] = {"drop_path": config.drop_path, "dropout": config.dropout}
    if config.pretrained is None:
        model = SegFormer.from_variant(
            config.variant,
            classes=classes,
            num_classes=outputs,
            in_channels=training.channels,
            **regularization,
        )
    else:
        model = start_from(SegFormer, config, classes, outputs, training.channels)
    model.preprocessing = preprocessing(config, training)
    return model


def start_from(
    whole: type[Whole], config: TrainConfig, classes: ClassSet, outputs: int, channels: int
) -> Whole:
    """A model that starts from the one that the recipe names: everything of it that fits.

    Args:
        whole: What to make of it.
        config: The recipe.
        classes: Classes of the data set.
        outputs: Channels of the logits.
        channels: Of the images.
    """
    assert config.pretrained is not None
    checkpoint = open_checkpoint(config.pretrained)
    checkpoint.config = replace(
        checkpoint.config, drop_path=config.drop_path, dropout=config.dropout
    )
    if config.pretrained_encoder_only:
        checkpoint = checkpoint.encoder_alone()
    same_classes = checkpoint.classes.names == classes.names
    return pretrained.assemble(
        whole, checkpoint, classes, outputs, channels, reinitialize_classifier=not same_classes
    )


def preprocessing(config: TrainConfig, training: Dataset) -> Preprocessing:
    """How the trained model is to see images, from a resolved recipe."""
    assert config.eval_size and config.mean and config.std and config.rescale
    if len(config.mean) != training.channels:
        raise ValueError(
            f"mean has {len(config.mean)} values, images have {training.channels} channels"
        )
    return Preprocessing(
        size=config.eval_size, mean=config.mean, std=config.std, rescale=config.rescale
    )


def augmentation(config: TrainConfig, classes: ClassSet) -> Augmentation:
    """The recipe's augmentation."""
    names = Augmentation.__dataclass_fields__.keys() - {"ignore_index", "class_color_jitter"}
    fields = {name: getattr(config, name) for name in names}
    jitter = ClassColorJitter(
        exclude=_class_ids("class_color_jitter_exclude", config, classes),
        gentle=_class_ids("class_color_jitter_gentle", config, classes),
    )
    return Augmentation(**fields, class_color_jitter=jitter, ignore_index=classes.ignore_index)


def _class_ids(option: str, config: TrainConfig, classes: ClassSet) -> frozenset[int]:
    """Ids of the classes that an option names."""
    unknown = [name for name in getattr(config, option) if name not in classes.names]
    if unknown:
        raise ValueError(
            f"{option}: the data set has no class {unknown[0]!r}; "
            f"its classes are {', '.join(classes.names)}"
        )
    return frozenset(classes.names.index(name) for name in getattr(config, option))
