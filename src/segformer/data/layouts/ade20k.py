"""ADE20K SceneParse150, as in ADEChallengeData2016."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segformer.classes import ClassSet
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    class_table,
    image_files,
    missing_split,
    pair_folders,
    require_samples,
)

_FOLDERS = {"train": "training", "val": "validation"}
_NAMES = "objectInfo150.txt"


def _splits(root: Path) -> list[str]:
    return [
        split
        for split, folder in _FOLDERS.items()
        if (root / "images" / folder).is_dir() and (root / "annotations" / folder).is_dir()
    ]


def _recognize(root: Path) -> str | None:
    found = _splits(root)
    if not found:
        return None
    if (root / _NAMES).is_file():
        return f"images/ and annotations/ are divided into training and validation beside {_NAMES}"
    first = next(iter(image_files(root / "images" / _FOLDERS[found[0]])), None)
    if first is not None and first.name.startswith("ADE_"):
        return "images/ and annotations/ are divided into training and validation, files are ADE_*"
    return None


def _classes(root: Path) -> ClassSet:
    """The official classes; names from objectInfo150.txt, the first of each row's synonyms."""
    table = class_table("ade20k")
    file = root / _NAMES
    if not file.is_file():
        return table
    try:
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        names = {int(row[0]): row[-1].split(",")[0].strip() for row in rows if row[0].strip()}
        if sorted(names) != list(range(1, 151)):
            raise ValueError(f"it names {len(names)} classes, not 150")
        return replace(table, names=tuple(names[i] for i in range(1, 151)))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read as the list of classes: {error}") from None


def _read(root: Path, split: str) -> LayoutSplit:
    if split not in _splits(root):
        raise missing_split(root, split, _splits(root))
    images = root / "images" / _FOLDERS[split]
    samples, strays = pair_folders(images, root / "annotations" / _FOLDERS[split])
    return LayoutSplit(require_samples(samples, images, split), _classes(root), tuple(strays))


ADE20K = Layout("ade20k", "ADE20K SceneParse150", _recognize, _splits, _read)
