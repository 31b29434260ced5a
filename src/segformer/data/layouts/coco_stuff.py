"""COCO-Stuff 164k: a PNG of class ids for each image of COCO 2017."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    class_table,
    first_folder,
    has_images,
    missing_split,
    pair_folders,
    require_samples,
    walk_files,
)

_YEARS = {"train": "train2017", "val": "val2017"}
_MAPS = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
_TRAIN_IDS = "_labelTrainIds"


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """Images and maps of a split."""
    year = _YEARS.get(split, split)
    images = first_folder(root, f"images/{year}", year)
    maps = first_folder(root, *(f"{name}/{year}" for name in _MAPS))
    return (images, maps) if images is not None and maps is not None else None


def _splits(root: Path) -> list[str]:
    return [split for split in _YEARS if _folders(root, split)]


def _recognize(root: Path) -> str | None:
    for split in _splits(root):
        folders = _folders(root, split)
        assert folders is not None
        first = next(walk_files(folders[1], (".png",)), None)
        if first is not None and re.fullmatch(rf"\d{{12}}({_TRAIN_IDS})?", first.stem):
            where = folders[1].relative_to(root).as_posix()
            return f"{where} holds a PNG of 12 digits for each image of {_YEARS[split]}"
    return None


def _read(root: Path, split: str) -> LayoutSplit:
    folders = _folders(root, split)
    if folders is None or split not in _YEARS:
        raise missing_split(root, split, _splits(root))
    images, maps = folders
    classes = class_table("coco_stuff")
    released = any(not file.stem.endswith(_TRAIN_IDS) for file in walk_files(maps, (".png",)))
    if not released and has_images(maps, _TRAIN_IDS):
        classes = replace(classes, mapping={})
        samples, strays = pair_folders(images, maps, mask_ending=_TRAIN_IDS)
    else:
        samples, strays = pair_folders(images, maps)
        strays = [mask for mask in strays if not mask.stem.endswith(_TRAIN_IDS)]
    return LayoutSplit(require_samples(samples, images, split), classes, tuple(strays))


COCO_STUFF = Layout("coco-stuff", "COCO-Stuff 164k", _recognize, _splits, _read)
