"""The configuration of a training: what the command line, a recipe and the run folder hold.

A recipe is a YAML file of options. Its keys are the fields of `SegmentationTrainConfig` or
`ClassificationTrainConfig`, and ``task``, ``dataset``, ``out`` and ``variants``: for each variant
of the model, the options in which its training differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import yaml

from segformer.training.options.checked import Options
from segformer.training.options.data import (
    ClassificationDataOptions,
    DataOptions,
    SegmentationDataOptions,
    SplitOptions,
)
from segformer.training.options.distillation import DistillationOptions
from segformer.training.options.loss import ClassificationLossOptions, SegmentationLossOptions
from segformer.training.options.model import ModelOptions, SegmentationModelOptions
from segformer.training.options.optimization import (
    ClassificationOptimizationOptions,
    OptimizationOptions,
)
from segformer.training.options.run import (
    CheckpointOptions,
    HardwareOptions,
    SegmentationHardwareOptions,
)

RECIPES = Path(__file__).parent.parent / "recipes"
"""Folder of the recipes that are part of the package."""


@dataclass(frozen=True)
class TrainConfig(
    ModelOptions, DataOptions, OptimizationOptions, CheckpointOptions, HardwareOptions
):
    """What the configurations of both tasks have in common.

    Use `SegmentationTrainConfig` or `ClassificationTrainConfig`.

    Attributes:
        task: Name of the task, ``segment`` or ``classify``.
        groups: Classes that declare the options, by the title of their group in the help.
    """

    task: ClassVar[str]
    groups: ClassVar[dict[str, type[Options]]]

    @property
    def images_per_step(self) -> int:
        """Images that make one optimizer step, in all processes."""
        assert isinstance(self.batch_size, int)
        processes = self.devices * self.num_nodes
        return self.batch_size * self.accumulate_grad_batches * processes

    def steps_per_validation(self, images: int) -> float:
        """Optimizer steps from one validation to the next, of a number of training images."""
        return self.val_every_steps or self.val_every * images / self.images_per_step

    @staticmethod
    def from_yaml(path: str | Path) -> TrainConfig:
        """Read a recipe; `Recipe.read` also gives its data set and run folder."""
        return Recipe.read(path).config

    @staticmethod
    def from_dict(entries: dict[str, Any]) -> TrainConfig:
        """Make a configuration from keys and values.

        Args:
            entries: Values by field; ``task`` chooses the class (default: segment).

        Raises:
            ValueError: A key or value is wrong; the message names it.
        """
        task = entries.get("task", "segment")
        if task not in CONFIGS:
            raise ValueError(f"task must be one of {', '.join(CONFIGS)}, not {task!r}")
        config = CONFIGS[task]
        known = {f.name for f in fields(config)}
        for key in entries.keys() - known - {"task"}:
            raise ValueError(unknown_option(str(key), task))
        return config(**{key: value for key, value in entries.items() if key != "task"})

    def as_dict(self) -> dict[str, Any]:
        """Keys and values of a recipe: the inverse of `from_dict`."""
        names = [f.name for group in self.groups.values() for f in fields(group)]
        values = {name: getattr(self, name) for name in names}
        lists = {k: list(v) for k, v in values.items() if isinstance(v, tuple)}
        return {"task": self.task, **values, **lists}


@dataclass(frozen=True)
class SegmentationTrainConfig(
    SplitOptions,
    SegmentationModelOptions,
    SegmentationDataOptions,
    SegmentationLossOptions,
    DistillationOptions,
    SegmentationHardwareOptions,
    TrainConfig,
):
    """How to train a segmentation model on images and masks.

    The fields are the options of ``segformer train``, whose ``--help`` explains them.

    Example:
        >>> SegmentationTrainConfig(variant="b2", epochs=100, crop_size=320, lr=1e-4)
    """

    task: ClassVar[str] = "segment"
    groups: ClassVar[dict[str, type[Options]]] = {
        "split of the data set": SplitOptions,
        "model": SegmentationModelOptions,
        "data and augmentation": SegmentationDataOptions,
        "optimization": OptimizationOptions,
        "loss": SegmentationLossOptions,
        "distillation": DistillationOptions,
        "validation and checkpoint": CheckpointOptions,
        "hardware": SegmentationHardwareOptions,
    }


@dataclass(frozen=True)
class ClassificationTrainConfig(
    ClassificationDataOptions,
    ClassificationOptimizationOptions,
    ClassificationLossOptions,
    TrainConfig,
):
    """How to train a classifier on images in one folder per class.

    The fields are the options of ``segformer train --task classify``, whose ``--help`` explains
    them.

    Example:
        >>> ClassificationTrainConfig(variant="b0", epochs=300, lr=1e-3)
    """

    task: ClassVar[str] = "classify"
    groups: ClassVar[dict[str, type[Options]]] = {
        "model": ModelOptions,
        "data and augmentation": ClassificationDataOptions,
        "optimization": ClassificationOptimizationOptions,
        "loss": ClassificationLossOptions,
        "validation and checkpoint": CheckpointOptions,
        "hardware": HardwareOptions,
    }


CONFIGS: dict[str, type[TrainConfig]] = {
    config.task: config for config in (SegmentationTrainConfig, ClassificationTrainConfig)
}
"""Configuration classes by task."""


def unknown_option(name: str, task: str) -> str:
    """The message for an option that a task does not have."""
    for other, config in CONFIGS.items():
        if other != task and name in {f.name for f in fields(config)}:
            return f"{name} is an option of task {other}; this is task {task}"
    close = get_close_matches(name, [f.name for f in fields(CONFIGS[task])], 1)
    return f"there is no option {name!r}" + (f"; did you mean {close[0]}?" if close else "")


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes:
        config: Its options.
        dataset: The data set that it names, or None.
        out: The run folder that it names, or None.
        given: Names of the options that it sets.
    """

    config: TrainConfig
    dataset: Path | None = None
    out: Path | None = None
    given: frozenset[str] = field(default=frozenset())

    @classmethod
    def read(cls, source: str | Path, variant: str | None = None) -> Recipe:
        """Read a recipe.

        Args:
            source: A YAML file, the ``config.yaml`` of a run included, or the name of a recipe
                that is part of the package, such as "camvid-b0". Relative paths in it are
                relative to the current folder.
            variant: Variant of the model, instead of the ``variant`` of the recipe.

        Raises:
            ValueError: The file, a key or a value is wrong; the message names it.
        """
        path = find_recipe(source)
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read as a recipe: {error}") from None
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: a recipe is keys and values, such as epochs: 50")
        try:
            entries = _of_variant(entries, variant)
            places = {key: _path(key, entries.pop(key, None)) for key in ("dataset", "out")}
            config = TrainConfig.from_dict(entries)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(config, **places, given=frozenset(map(str, entries)))


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe, by its path or by the name of one in the package.

    Raises:
        ValueError: There is no such recipe; the message lists those of the package.
    """
    path = Path(source)
    if path.is_file():
        return path
    packaged = RECIPES / f"{source}.yaml"
    if path.name == str(source) and packaged.is_file():
        return packaged
    names = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
    raise ValueError(f"{source}: no such recipe; give a YAML file, or one of {names}")


def _of_variant(entries: dict[str, Any], variant: str | None) -> dict[str, Any]:
    """Keys and values of a recipe for one variant of the model."""
    entries = dict(entries)
    variants = entries.pop("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()):
        raise ValueError("variants must hold keys and values for each variant, such as b5: {...}")
    if variant is not None:
        entries["variant"] = variant
    variant = entries.get("variant")
    if variants and variant not in variants:
        raise ValueError(f"variant must be one of {', '.join(map(str, variants))}, not {variant}")
    return entries | variants.get(variant, {})


def _path(key: str, value: Any) -> Path | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} must be a path, not {value!r}")
    return None if value is None else Path(value)
