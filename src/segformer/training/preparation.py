"""From a configuration and a data set: defaults, class weights, augmentation, the model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer.checkpoints.opening import open_checkpoint
from segformer.classes import ClassSet
from segformer.config import SegFormerConfig
from segformer.data.check import SplitReport
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.paper_transforms import PaperAugmentation
from segformer.data.recolor import ClassColorJitter
from segformer.data.sampling import repeat_factors
from segformer.data.transforms import Augmentation
from segformer.image import Preprocessing
from segformer.machine import available_cpus
from segformer.model import pretrained
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.training.config import SegmentationTrainConfig, TrainConfig
from segformer.training.distillation import check_teacher

AnyModel = TypeVar("AnyModel", SegFormer, SegFormerClassifier)
AnyConfig = TypeVar("AnyConfig", bound=TrainConfig)

LARGEST_WEIGHT = 10.0
"""Of a class of very few pixels, whose gradients would drown all others."""


def resolve(config: SegmentationTrainConfig, report: SplitReport) -> SegmentationTrainConfig:
    """Fill in the defaults of a configuration for the training images.

    Raises:
        ValueError: An option does not fit the data set or the pretrained model.
    """
    training = report.dataset
    if config.background_replace_prob and config.background_class >= len(training.classes):
        raise ValueError(
            f"background_class is {config.background_class}, but the data set has only "
            f"{len(training.classes)} classes"
        )
    if config.teacher is not None:
        check_teacher(config.teacher, training.classes, training.channels)
        if Path(config.teacher).exists():
            config = replace(config, teacher=str(Path(config.teacher).resolve()))
    source = open_checkpoint(config.pretrained) if config.pretrained is not None else None
    all_8_bit = report.dtypes == {"uint8"}
    if (
        source is not None
        and source.config.in_channels == training.channels
        and (all_8_bit or not source.preprocessing.expects_8_bit)
    ):
        normalization = source.preprocessing
    elif all_8_bit and training.channels == 3:
        normalization = Preprocessing()
    else:
        mean, std = report.mean_and_std
        rescale = 1 / 255 if all_8_bit else 1.0  # 1/255 marks models of 8-bit images
        normalization = Preprocessing(
            mean=tuple(rescale * value for value in mean),
            std=tuple(rescale * value for value in std),
            rescale=rescale,
        )
    config = replace(config, eval_size=config.eval_size or config.short_side)
    return with_defaults(
        config, len(training), normalization, source.config if source is not None else None
    )


def check_overlap(config: SegmentationTrainConfig, training: Dataset) -> None:
    """Raise a ValueError if an option does not apply to classes that may overlap."""
    if not training.multilabel:
        return
    for option in (
        "binary",
        "ohem_threshold",
        "background_replace_prob",
        "class_color_jitter_prob",
        "teacher",
    ):
        if getattr(config, option):
            raise ValueError(
                f"{option} is for one class per pixel, but the classes of {training.root} may "
                "overlap"
            )


def with_defaults(
    config: AnyConfig,
    images: int,
    normalization: Preprocessing,
    pretrained: SegFormerConfig | None = None,
) -> AnyConfig:
    """Fill in the defaults that depend on other options.

    Args:
        config: The configuration.
        images: Number of training images.
        normalization: Its mean, deviation and rescaling are the defaults.
        pretrained: Configuration of the model to start from.

    Raises:
        ValueError: An option contradicts another or the pretrained model.
    """
    whole = config.pretrained is not None and not config.lora_rank  # all weights are fine-tuned
    if config.pretrained is not None and Path(config.pretrained).exists():
        config = replace(config, pretrained=str(Path(config.pretrained).resolve()))
    defaults = {
        "variant": _variant(config, pretrained),
        "mean": normalization.mean,
        "std": normalization.std,
        "rescale": normalization.rescale,
        "lr": 6e-5 if whole else 6e-4,
        "head_lr_factor": 10.0 if whole else 1.0,
        "num_workers": min(available_cpus(), 8),
    }
    missing = {name: v for name, v in defaults.items() if getattr(config, name) is None}
    config = replace(config, **missing)  # type: ignore[arg-type]
    assert config.lr is not None
    if config.min_lr > config.lr:
        raise ValueError(f"min_lr is {config.min_lr:g}, more than lr, {config.lr:g}")
    return with_schedule(config, images)


def with_schedule(config: AnyConfig, images: int) -> AnyConfig:
    """Fill in the number of steps and the warm-up.

    Nothing is filled in before an automatic batch size, or the number of steps that fits a time
    limit, has been measured.

    Args:
        config: The configuration.
        images: Number of training images.
    """
    if config.batch_size == "auto" or (config.max_time is not None and config.max_steps is None):
        return config
    per_step = config.batch_size * config.accumulate_grad_batches * config.devices
    steps = config.max_steps or math.ceil(config.epochs * images / per_step)
    warmup = min(1500, steps // 20) if config.warmup_steps is None else config.warmup_steps
    return replace(config, max_steps=steps, warmup_steps=warmup)


def _variant(config: TrainConfig, pretrained: SegFormerConfig | None) -> str | None:
    """Variant of the model; None if the pretrained model is none of the table."""
    if pretrained is None:
        return config.variant or "b0"
    if config.variant is not None:
        wanted = SegFormerConfig.from_variant(config.variant)
        if (wanted.hidden_sizes, wanted.depths) != (pretrained.hidden_sizes, pretrained.depths):
            found = pretrained.variant or f"a model of hidden sizes {pretrained.hidden_sizes}"
            raise ValueError(
                f"{config.pretrained} is {found}, but variant is {config.variant}; "
                "set only one of pretrained and variant"
            )
    return pretrained.variant


def class_weights(config: SegmentationTrainConfig, report: SplitReport) -> Tensor | None:
    """Weights of the classes in the cross-entropy, (K,), or None if all are equal.

    "auto" weights a class by its inverse frequency to ``class_weight_power``, relative to the mean
    pixel, which has weight 1 (inverse class frequency: King and Zeng 2001, as ``balanced`` in
    scikit-learn). Of classes that may overlap, only the pixels where a class is present are
    weighted: by the ratio of absent to present pixels, to that power. Classes that do not occur
    have weight 1. No weight exceeds `LARGEST_WEIGHT`.

    Raises:
        ValueError: A class with an explicit weight does not exist.
    """
    names = report.dataset.classes.names
    explicit = config.explicit_class_weights()
    if explicit:
        for name in explicit.keys() - set(names):
            raise ValueError(
                f"class_weights: the data set has no class {name!r}; its classes are "
                f"{', '.join(names)}"
            )
        return torch.tensor([explicit.get(name, 1.0) for name in names])
    if config.class_weights != ("auto",):
        return None
    frequency = report.frequencies
    if report.dataset.multilabel:
        odds = (1 - frequency) / np.maximum(frequency, 1e-12)
        weights = (odds**config.class_weight_power).clip(max=LARGEST_WEIGHT)
        return torch.tensor(np.where(frequency > 0, weights, 1), dtype=torch.float32)
    inverse = np.maximum(frequency, 1e-12) ** -config.class_weight_power
    weights = np.where(frequency > 0, inverse, 0)
    weights /= (weights * frequency).sum()
    weights = np.where(frequency > 0, weights.clip(max=LARGEST_WEIGHT), 1)
    return torch.tensor(weights, dtype=torch.float32)


def draw_factors(
    config: SegmentationTrainConfig, report: SplitReport
) -> NDArray[np.float64] | None:
    """How often each training image is drawn, (N,), or None if all are drawn equally often."""
    if config.oversample_threshold == 0:
        return None
    presence = np.zeros((len(report.presence), len(report.pixels)), bool)
    for row, class_ids in zip(presence, report.presence, strict=True):
        row[class_ids] = True
    return repeat_factors(presence, config.oversample_threshold)


def build_model(config: SegmentationTrainConfig, training: Dataset) -> SegFormer:
    """The model at step 0, with random weights or those of a pretrained model that fit."""
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
            config.variant or "b0",
            classes=classes,
            num_classes=outputs,
            in_channels=training.channels,
            **regularization,
        )
    else:
        model = start_from(
            SegFormer,
            config,
            classes,
            outputs,
            training.channels,
            multilabel=training.multilabel,
            **regularization,
        )
    model.config = replace(model.config, multilabel=training.multilabel, thresholds=())
    model.preprocessing = preprocessing(config, training)
    return model


def start_from(
    kind: type[AnyModel],
    config: TrainConfig,
    classes: ClassSet,
    outputs: int,
    channels: int,
    *,
    multilabel: bool = False,
    **regularization: float,
) -> AnyModel:
    """A model with all weights of the pretrained model that fit.

    Args:
        kind: Class of the model.
        config: The configuration; names the pretrained model.
        classes: Classes of the data set.
        outputs: Channels of the logits.
        channels: Channels of the images.
        multilabel: Classes may overlap.
        **regularization: Fields of the model's configuration to set.
    """
    assert config.pretrained is not None
    checkpoint = open_checkpoint(config.pretrained)
    checkpoint.config = replace(checkpoint.config, **regularization)  # type: ignore[arg-type]
    if config.pretrained_encoder_only:
        checkpoint = checkpoint.encoder_alone()
    same_classes = checkpoint.classes.names == classes.names
    same_classes = same_classes and checkpoint.config.multilabel == multilabel
    return pretrained.assemble(
        kind, checkpoint, classes, outputs, channels, reinitialize_classifier=not same_classes
    )


def preprocessing(config: SegmentationTrainConfig, training: Dataset) -> Preprocessing:
    """The preprocessing of the trained model, from a resolved configuration."""
    assert config.eval_size and config.mean and config.std and config.rescale
    if len(config.mean) != training.channels:
        raise ValueError(
            f"mean has {len(config.mean)} values, images have {training.channels} channels"
        )
    return Preprocessing(
        size=config.eval_size,
        mean=config.mean,
        std=config.std,
        rescale=config.rescale,
        nodata=training.nodata,
        channel_names=training.channel_names,
    )


def augmentation(config: SegmentationTrainConfig, classes: ClassSet) -> Augmentation:
    """The augmentation that a configuration describes."""
    names = Augmentation.__dataclass_fields__.keys() - {"ignore_index", "class_color_jitter"}
    fields = {name: getattr(config, name) for name in names}
    jitter = ClassColorJitter(
        exclude=_class_ids("class_color_jitter_exclude", config, classes),
        gentle=_class_ids("class_color_jitter_gentle", config, classes),
    )
    kind = PaperAugmentation if config.protocol == "paper" else Augmentation
    return kind(**fields, class_color_jitter=jitter, ignore_index=classes.ignore_index)


def _class_ids(option: str, config: SegmentationTrainConfig, classes: ClassSet) -> frozenset[int]:
    """Ids of the classes that an option names."""
    unknown = [name for name in getattr(config, option) if name not in classes.names]
    if unknown:
        raise ValueError(
            f"{option}: the data set has no class {unknown[0]!r}; "
            f"its classes are {', '.join(classes.names)}"
        )
    return frozenset(classes.names.index(name) for name in getattr(config, option))
