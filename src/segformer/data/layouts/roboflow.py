"""Roboflow "semantic segmentation masks": ``*_mask.png`` and ``_classes.csv`` in each split."""

from __future__ import annotations

import csv
from pathlib import Path

from segformer.classes import ClassSet
from segformer.data.annotation import BrokenAnnotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    image_files,
    missing_split,
    named_classes,
    require_samples,
    sort_splits,
    split_of,
    subfolders,
)
from segformer.data.pairing import Sample

_CLASSES = "_classes.csv"
_ENDING = "_mask"


def _folders(root: Path) -> dict[str, Path]:
    """Split -> folder; an export without splits has its files in the root itself."""
    return {
        split_of(folder.name) if folder != root else "all": folder
        for folder in (*subfolders(root), root)
        if (folder / _CLASSES).is_file()
        and any(file.stem.endswith(_ENDING) for file in image_files(folder))
    }


def _recognize(root: Path) -> str | None:
    for folder in _folders(root).values():
        where = (folder / _CLASSES).relative_to(root).as_posix()
        return f"{where} names the values of the *_mask.png files beside it"
    return None


def _splits(root: Path) -> list[str]:
    return sort_splits(_folders(root))


def _read_classes(file: Path) -> dict[int, str]:
    """Value -> name."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [[cell.strip() for cell in row] for row in csv.reader(opened) if row]
        named = {int(row[0]): row[1] for row in rows[1:]}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise DatasetError(f"{file}: cannot be read as a list of classes: {error}") from None
    if not named or len(named) < len(rows) - 1:
        raise DatasetError(f"{file}: there are no classes, or one value has two names")
    return named


def _classes(folders: dict[str, Path]) -> ClassSet:
    """The classes of all splits, which must agree; gaps between the values are closed."""
    named: dict[int, str] = {}
    for folder in folders.values():
        for value, name in _read_classes(folder / _CLASSES).items():
            if named.setdefault(value, name) != name:
                raise DatasetError(
                    f"{folder / _CLASSES}: the value {value} is {name!r} here and "
                    f"{named[value]!r} in another split"
                )
    values = sorted(named)
    try:
        classes = named_classes(named[value] for value in values)
        mapping = {value: i for i, value in enumerate(values) if value != i}
        return ClassSet(classes.names, classes.palette, classes.ignore_index, mapping)
    except ValueError as error:
        raise DatasetError(f"{next(iter(folders.values())) / _CLASSES}: {error}") from None


def _read(root: Path, split: str) -> LayoutSplit:
    folders = _folders(root)
    if split not in folders:
        raise missing_split(root, split, sort_splits(folders))
    folder = folders[split]
    files = [file for file in image_files(folder) if file.parent == folder]
    masks = {
        file.stem.removesuffix(_ENDING): file
        for file in files
        if file.stem.endswith(_ENDING) and file.suffix.lower() == ".png"
    }
    used = set(masks.values())
    images: dict[str, list[Path]] = {}
    for file in files:
        if file not in used:
            images.setdefault(file.stem, []).append(file)
    samples = []
    for stem, alike in images.items():
        for file in alike:
            mask: Path | BrokenAnnotation | None = masks.get(stem)
            if len(alike) > 1:
                mask = BrokenAnnotation(file, f"{file}: {len(alike)} images have this name")
            samples.append(Sample(file.name, file, mask))
    strays = tuple(mask for stem, mask in masks.items() if stem not in images)
    return LayoutSplit(require_samples(samples, folder, split), _classes(folders), strays)


ROBOFLOW_MASKS = Layout(
    "roboflow-masks", "Roboflow semantic segmentation masks", _recognize, _splits, _read
)
