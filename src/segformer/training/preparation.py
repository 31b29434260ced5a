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

from segformer.checkpoints import store
from segformer.data.check import SplitReport
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.recolor import ClassColorJitter
from segformer.data.transforms import Augmentation
from segformer.image import Preprocessing
from segformer.labels import LabelSet
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.training.config import TrainConfig

Whole = TypeVar("Whole", SegFormer, SegFormerClassifier)


def resolve(config: TrainConfig, report: SplitReport) -> TrainConfig:
    """Fill in the defaults of a segmentation recipe for the training pictures."""
    training = report.dataset
    if config.backdrop and config.backdrop_class >= len(training.labels):
        raise ValueError(f"there is no class {config.backdrop_class} to put backdrops in place of")
    source = store.open_checkpoint(config.init) if config.init is not None else None
    if source is not None and source.config.in_channels == training.bands:
        normalisation = source.preprocessing
    elif report.dtypes == {"uint8"} and training.bands == 3:
        normalisation = Preprocessing()
    else:
        mean, std = report.mean_and_std
        normalisation = Preprocessing(mean=mean, std=std, rescale=1.0)
    config = replace(config, predict_size=config.predict_size or config.short_side)
    return with_defaults(config, len(training), normalisation)


def with_defaults(config: TrainConfig, pictures: int, normalisation: Preprocessing) -> TrainConfig:
    """Fill in the defaults that depend on other fields.

    Args:
        config: The recipe.
        pictures: How many there are to train on.
        normalisation: Its mean, deviation and rescaling are the defaults.
    """
    effective = config.batch_size * config.accumulate * config.devices
    steps = config.max_steps or math.ceil(config.epochs * pictures / effective)
    started = config.init is not None
    if config.init is not None and Path(config.init).exists():
        config = replace(config, init=str(Path(config.init).resolve()))
    defaults = {
        "mean": normalisation.mean,
        "std": normalisation.std,
        "rescale": normalisation.rescale,
        "max_steps": steps,
        "warmup_steps": min(1500, steps // 20),
        "lr": 6e-5 if started else 6e-4,
        "head_lr_factor": 10.0 if started else 1.0,
        "label_smoothing": 0.1 if config.task == "classify" else 0.0,
        "workers": min(os.cpu_count() or 1, 8),
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
    labels = training.labels
    if config.binary and len(labels) != 2:
        raise DatasetError(
            f"{training.root}: binary training needs two classes, there are {len(labels)}"
        )
    outputs = 1 if config.binary else len(labels)
    regularisation: dict[str, Any] = {"drop_path": config.drop_path, "dropout": config.dropout}
    if config.init is None:
        model = SegFormer.from_variant(
            config.variant,
            labels=labels,
            num_classes=outputs,
            in_channels=training.bands,
            **regularisation,
        )
    else:
        model = start_from(SegFormer, config, labels, outputs, training.bands)
    model.preprocessing = preprocessing(config, training)
    return model


def start_from(
    whole: type[Whole], config: TrainConfig, labels: LabelSet, outputs: int, bands: int
) -> Whole:
    """A model that starts from the one that the recipe names: everything of it that fits.

    Args:
        whole: What to make of it.
        config: The recipe.
        labels: Classes of the data set.
        outputs: Channels of the logits.
        bands: Of the pictures.
    """
    assert config.init is not None
    checkpoint = store.open_checkpoint(config.init)
    checkpoint.config = replace(
        checkpoint.config, drop_path=config.drop_path, dropout=config.dropout
    )
    if config.init_encoder_only:
        checkpoint = checkpoint.encoder_alone()
    same_classes = checkpoint.labels.names == labels.names
    return store.assemble(
        whole, checkpoint, labels, outputs, bands, classifier_anew=not same_classes
    )


def preprocessing(config: TrainConfig, training: Dataset) -> Preprocessing:
    """How the trained model is to see pictures, from a resolved recipe."""
    assert config.predict_size and config.mean and config.std and config.rescale
    if len(config.mean) != training.bands:
        raise ValueError(
            f"mean has {len(config.mean)} values, pictures have {training.bands} bands"
        )
    return Preprocessing(
        size=config.predict_size, mean=config.mean, std=config.std, rescale=config.rescale
    )


def augmentation(config: TrainConfig, labels: LabelSet) -> Augmentation:
    """The recipe's augmentation."""
    names = Augmentation.__dataclass_fields__.keys() - {"ignore_index", "class_color_jitter"}
    fields = {name: getattr(config, name) for name in names}
    jitter = ClassColorJitter(
        exclude=_class_ids("class_color_jitter_exclude", config, labels),
        gentle=_class_ids("class_color_jitter_gentle", config, labels),
    )
    return Augmentation(**fields, class_color_jitter=jitter, ignore_index=labels.ignore_index)


def _class_ids(option: str, config: TrainConfig, labels: LabelSet) -> frozenset[int]:
    """Ids of the classes that an option names."""
    unknown = [name for name in getattr(config, option) if name not in labels.names]
    if unknown:
        raise ValueError(
            f"{option}: the data set has no class {unknown[0]!r}; "
            f"its classes are {', '.join(labels.names)}"
        )
    return frozenset(labels.names.index(name) for name in getattr(config, option))
