"""Cityscapes: images in leftImg8bit, fine or coarse annotations beside it, cities as folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    class_table,
    has_images,
    image_files,
    missing_split,
    pair_folders,
    require_samples,
    sort_splits,
    subfolders,
)
from segformer.data.pairing import Sample

_IMAGES = "leftImg8bit"
_KINDS = ("gtFine", "gtCoarse")


def _annotated(root: Path) -> dict[str, str]:
    """Split -> "gtFine", or "gtCoarse" where there are no fine annotations."""
    found = {}
    for folder in subfolders(root / _IMAGES):
        kinds = [kind for kind in _KINDS if (root / kind / folder.name).is_dir()]
        if kinds:
            found[folder.name] = kinds[0]
    return found


def _recognize(root: Path) -> str | None:
    for split, kind in _annotated(root).items():
        if has_images(root / _IMAGES / split, f"_{_IMAGES}"):
            return f"{_IMAGES}/{split} holds *_{_IMAGES} files, and {kind}/{split} is beside it"
    return None


def _splits(root: Path) -> list[str]:
    return sort_splits(_annotated(root))


def _read(root: Path, split: str) -> LayoutSplit:
    kinds = _annotated(root)
    if split not in kinds:
        raise missing_split(root, split, _splits(root))
    images, kind = root / _IMAGES / split, kinds[split]
    if split == "test":  # its annotations are withheld; the files released hold no classes
        files = image_files(images)
        found = [Sample(file.relative_to(images).as_posix(), file, None) for file in files]
        return LayoutSplit(require_samples(found, images, split), class_table("cityscapes"))
    masks = root / kind / split
    classes = class_table("cityscapes")
    ending = f"_{kind}_labelIds"
    if not has_images(masks, ending):
        ending = f"_{kind}_labelTrainIds"
        classes = replace(classes, mapping={})
        if not has_images(masks, ending):
            raise DatasetError(f"{masks}: there are neither *_labelIds.png nor *_labelTrainIds.png")
    samples, strays = pair_folders(images, masks, image_ending=f"_{_IMAGES}", mask_ending=ending)
    return LayoutSplit(require_samples(samples, images, split), classes, tuple(strays))


CITYSCAPES = Layout("cityscapes", "Cityscapes", _recognize, _splits, _read)
