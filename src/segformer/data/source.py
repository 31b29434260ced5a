"""Opening a source as options say: its layout, and how it is divided."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from segformer.data.dataset import Dataset, DatasetError
from segformer.data.division import Division, divide
from segformer.data.opening import open_dataset, splits
from segformer.data.options import SourceOptions
from segformer.progress import ProgressBar


def source_splits(source: str | Path, options: SourceOptions) -> list[str]:
    """Names of the splits of a source, after it is divided.

    Raises:
        DatasetError: It is no data set, or already divided and to be divided again.
    """
    found = splits(source, layout=options.layout)
    if not options.divides:
        return found
    whole = _undivided(source, found)
    return ["train", "val", *(split for split in found if split != whole)]


def open_splits(
    source: str | Path, options: SourceOptions, seed: int = 0
) -> Iterator[tuple[str, Dataset | DatasetError]]:
    """Open each split of a source; a split that cannot be opened is given as its error.

    Args:
        source: As `segformer.data.opening.open_dataset` takes it.
        options: Layout and division.
        seed: Of the division.

    Raises:
        DatasetError: It is no data set, or cannot be divided.
    """
    names = source_splits(source, options)
    parts = (
        dict(zip(("train", "val"), _divided(source, options, seed), strict=True))
        if (options.divides)
        else {}
    )
    for name in names:
        try:
            yield name, parts.get(name) or open_dataset(source, name, layout=options.layout)
        except DatasetError as error:
            yield name, error


def open_parts(source: str | Path, options: SourceOptions, seed: int = 0) -> list[Dataset]:
    """Open all splits of a source.

    Raises:
        DatasetError: One of them cannot be opened or divided.
    """
    parts = []
    for _, dataset in open_splits(source, options, seed):
        if isinstance(dataset, DatasetError):
            raise dataset
        parts.append(dataset)
    return parts


def open_split(source: str | Path, split: str, options: SourceOptions, seed: int = 0) -> Dataset:
    """Open one split of a source.

    Args:
        source: As `segformer.data.opening.open_dataset` takes it.
        split: Name of the split.
        options: Layout and division.
        seed: Of the division.

    Raises:
        DatasetError: It cannot be opened or divided.
    """
    if options.divides and split in ("train", "val"):
        return _divided(source, options, seed)[split == "val"]
    return open_dataset(source, split, layout=options.layout)


def open_training(
    source: str | Path,
    options: SourceOptions,
    seed: int = 0,
    *,
    earlier: Mapping[str, Collection[str]] | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Open what is trained on, and what it is validated on.

    Args:
        source: As `segformer.data.opening.open_dataset` takes it.
        options: Layout and division.
        seed: Of the division.
        earlier: Names of the samples of each split in the run that is resumed. A source that was
            divided then is divided in the same way, without reading its masks. Samples that are
            new go to training.

    Returns:
        Training, and validation or None.

    Raises:
        DatasetError: There is nothing to train on, or the source cannot be divided.
    """
    if options.divides:
        if earlier is None:
            return _divided(source, options, seed)
        whole = open_dataset(source, _whole(source, options), layout=options.layout)
        held = frozenset(earlier.get("val", ()))
        listed = held.union(earlier.get("train", ())) if options.train_list is not None else None
        train = tuple(s for s in whole if s.name not in held and (not listed or s.name in listed))
        val = tuple(s for s in whole if s.name in held)
        return (
            replace(whole, split="train", samples=train, stray_masks=(), problems=()),
            replace(whole, split="val", samples=val, stray_masks=(), problems=()),
        )
    found = splits(source, layout=options.layout)
    if "train" not in found:
        raise DatasetError(f"{source}: {no_training_split(found)}")
    validation = open_dataset(source, "val", layout=options.layout) if "val" in found else None
    return open_dataset(source, "train", layout=options.layout), validation


def no_training_split(found: Collection[str]) -> str:
    """The sentence for a source without a split 'train'."""
    return (
        f"there is no split 'train' to train on, only {', '.join(found)}; divide it with "
        "--val-fraction 0.2, --fold 1/5 or --val-list FILE"
    )


def _divided(source: str | Path, options: SourceOptions, seed: int) -> tuple[Dataset, Dataset]:
    division = Division(
        val_fraction=options.val_fraction,
        fold=options.fold,
        val_list=None if options.val_list is None else Path(options.val_list),
        train_list=None if options.train_list is None else Path(options.train_list),
        group_by=options.group_by,
        seed=seed,
    )
    division.check()
    whole = open_dataset(source, _whole(source, options), layout=options.layout)
    with ProgressBar("dividing", len(whole), "masks") as bar:
        return divide(whole, division, bar.advance)


def _whole(source: str | Path, options: SourceOptions) -> str:
    return _undivided(source, splits(source, layout=options.layout))


def _undivided(source: str | Path, found: list[str]) -> str:
    """The only split with masks, which can be divided."""
    labeled = [split for split in found if split != "test"]
    if len(labeled) != 1:
        raise DatasetError(
            f"{source}: the source is divided already, into {', '.join(found)}; a fraction, folds, "
            "lists and groups are for sources that are not"
        )
    return labeled[0]
