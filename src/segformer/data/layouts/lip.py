"""Look into Person (LIP): train_images and val_images, and masks of the same names elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    class_table,
    image_files,
    missing_split,
    pair_folders,
    require_samples,
    subfolders,
)

_SPLITS = ("train", "val")


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> images and masks; the zips of LIP nest them up to three folders deep."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    level = [root]
    for _ in range(3):
        level = [folder for parent in level for folder in subfolders(parent)]
        for folder in level:
            inside = folder.relative_to(root).as_posix().lower()
            for split in _SPLITS:
                if folder.name == f"{split}_segmentations" or (
                    folder.name == f"{split}_images" and "parsing" in inside
                ):
                    masks.setdefault(split, folder)
                elif folder.name == f"{split}_images":
                    images.setdefault(split, folder)
    return {
        split: (images[split], masks[split])
        for split in _SPLITS
        if split in images and split in masks
    }


def _recognize(root: Path) -> str | None:
    for images, masks in _folders(root).values():
        first = next(iter(image_files(images)), None)
        if first is not None and re.fullmatch(r"\d+_\d+", first.stem):
            where = masks.relative_to(root).as_posix()
            return f"{images.relative_to(root).as_posix()} and {where} hold files such as 77_471474"
    return None


def _splits(root: Path) -> list[str]:
    return list(_folders(root))


def _read(root: Path, split: str) -> LayoutSplit:
    folders = _folders(root)
    if split not in folders:
        raise missing_split(root, split, folders)
    images, masks = folders[split]
    samples, strays = pair_folders(images, masks)
    return LayoutSplit(require_samples(samples, images, split), class_table("lip"), tuple(strays))


LIP = Layout("lip", "Look into Person", _recognize, _splits, _read)
