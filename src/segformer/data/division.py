"""Training and validation out of a data set that is not divided, or not as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.data.dataset import Dataset
from segformer.data.errors import DatasetError
from segformer.data.masks import read_values, to_class_ids
from segformer.data.multilabel import count_pixels
from segformer.data.pairing import Sample
from segformer.data.parallel import map_ordered
from segformer.data.splitting import (
    group_samples,
    parse_fold,
    read_names,
    split_fold,
    split_fraction,
    split_lists,
)
from segformer.files import write_text


@dataclass(frozen=True)
class Division:
    """How to divide samples into training and validation: one of three ways.

    Attributes:
        val_fraction: Fraction of the samples for validation.
        fold: Fold for validation, "2/5" for the second of five.
        val_list: Text file of the names of the validation samples.
        train_list: The same for training. Default: all samples that are not in ``val_list``.
        group_by: "folder", or a regular expression that finds the scene or patient in a name; no
            group is in both parts. For ``val_fraction`` and ``fold``.
        seed: Of the random choices.
    """

    val_fraction: float | None = None
    fold: str | None = None
    val_list: Path | None = None
    train_list: Path | None = None
    group_by: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise a DatasetError if none or several of the ways are given, or they do not fit."""
        ways = (self.val_fraction, self.fold, self.val_list)
        if sum(way is not None for way in ways) != 1:
            raise DatasetError(
                "a source is divided in one way: give one of val_fraction, fold and val_list"
            )
        if self.train_list is not None and self.val_list is None:
            raise DatasetError("train_list needs val_list too")
        if self.group_by is not None and self.val_list is not None:
            raise DatasetError("lists cannot be combined with group_by")


def divide(
    dataset: Dataset, division: Division, on_sample: Callable[[], None] | None = None
) -> tuple[Dataset, Dataset]:
    """Divide a data set into training and validation.

    For a fraction or a fold all masks are read, so that both parts have all classes in proportion.

    Args:
        dataset: All samples.
        division: How.
        on_sample: Called after each mask.

    Returns:
        Training and validation, as splits "train" and "val".

    Raises:
        DatasetError: None or several of the ways are given, or the division is not possible.
    """
    division.check()
    names = [sample.name for sample in dataset]
    if division.val_list is not None:
        listed = None if division.train_list is None else read_names(division.train_list)
        train, val = split_lists(names, read_names(division.val_list), listed)
    else:
        groups = group_samples(names, division.group_by) if division.group_by else None
        present = class_presence(dataset, on_sample)
        if division.fold is not None:
            fold, num_folds = parse_fold(division.fold)
            train, val = split_fold(
                names, fold, num_folds, present=present, groups=groups, seed=division.seed
            )
        else:
            assert division.val_fraction is not None
            train, val = split_fraction(
                names, division.val_fraction, present=present, groups=groups, seed=division.seed
            )
    return _part(dataset, "train", train), _part(dataset, "val", val)


def class_presence(
    dataset: Dataset, on_sample: Callable[[], None] | None = None
) -> NDArray[np.bool_]:
    """Which classes occur in each mask, (N, K); none where a mask cannot be read.

    Args:
        dataset: A split.
        on_sample: Called after each mask.
    """
    present = np.zeros((len(dataset), len(dataset.classes)), bool)
    found = map_ordered(lambda sample: classes_in(dataset, sample), dataset.samples)
    for row, ids in zip(present, found, strict=True):
        row[ids] = True
        if on_sample is not None:
            on_sample()
    return present


def write_lists(folder: Path, names: Mapping[str, Iterable[str]]) -> None:
    """Write the names of the samples of each split into ``SPLIT.txt``, as `Division` reads them."""
    for split, lines in names.items():
        write_text(folder / f"{split}.txt", "".join(f"{line}\n" for line in lines))


def classes_in(dataset: Dataset, sample: Sample) -> NDArray[np.integer]:
    """Classes that occur in a mask, none where it cannot be read; checking reports that."""
    classes = dataset.classes
    try:
        if isinstance(sample.mask, Path):  # needs no image
            values = read_values(sample.mask)
            ids = to_class_ids(values, sample.mask, classes, dataset.colors)
        else:
            _, ids = dataset.read(sample)
    except ValueError:
        return np.empty(0, np.int64)
    if dataset.multilabel:
        return np.flatnonzero(count_pixels(ids, len(classes)))
    return np.flatnonzero(np.bincount(ids[ids != classes.ignore_index].ravel().astype(np.int64)))


def _part(dataset: Dataset, split: str, positions: list[int]) -> Dataset:
    samples = tuple(dataset.samples[i] for i in positions)
    return replace(dataset, split=split, samples=samples, stray_masks=(), problems=())
