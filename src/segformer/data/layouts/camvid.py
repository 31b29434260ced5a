"""CamVid: the original color masks of 32 classes, and the 11 classes of SegNet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from segformer.classes import ClassSet
from segformer.data.annotation import BrokenAnnotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    WHOLE,
    Layout,
    LayoutSplit,
    class_table,
    image_files,
    missing_split,
    named_classes,
    pair_folders,
    require_samples,
    some_files,
    sort_splits,
    split_of,
    subfolders,
)
from segformer.data.layouts.color_masks import ColorMask, ColorTable
from segformer.data.layouts.pascal_voc import in_colors
from segformer.data.pairing import Sample
from segformer.image import IMAGE_SUFFIXES

_STEM = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_?\w*", re.IGNORECASE)
_ENDING = "_L"
_COLORS = ("label_colors.txt", "class_dict.csv")
_VOID = ("void", "unlabelled", "unlabeled")


def _color_file(root: Path) -> Path | None:
    return next((root / name for name in _COLORS if (root / name).is_file()), None)


def read_colors(root: Path) -> tuple[ClassSet, ColorTable]:
    """Classes and colors of label_colors.txt or class_dict.csv; without one, the official ones.

    Raises:
        DatasetError: The file cannot be read.
    """
    file = _color_file(root)
    if file is None:
        classes = class_table("camvid")
        table = {color: i for i, color in enumerate(classes.palette)}
        return classes, ColorTable(table | {(0, 0, 0): classes.ignore_index})
    colors: dict[str, tuple[int, int, int]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if file.suffix == ".csv":
                for row in csv.DictReader(opened):
                    colors[row["name"].strip()] = (int(row["r"]), int(row["g"]), int(row["b"]))
            else:
                for line in opened:
                    if line.strip() and not line.startswith("#"):
                        red, green, blue, name = line.split(maxsplit=3)
                        colors[name.strip()] = (int(red), int(green), int(blue))
        names = [name for name in colors if name.lower() not in _VOID]
        classes = named_classes(names, [colors[name] for name in names])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DatasetError(f"{file}: cannot be read as a list of colors: {error}") from None
    table = {colors[name]: i for i, name in enumerate(names)}
    voids = [colors[name] for name in colors if name.lower() in _VOID] or [(0, 0, 0)]
    return classes, ColorTable(dict.fromkeys(voids, classes.ignore_index) | table)


def _color_pairs(root: Path, paths: Iterable[Path]) -> dict[str, list[tuple[Path, Path]]]:
    """Split -> image and color mask; ``0001TP_006690.png`` goes with ``0001TP_006690_L.png``."""
    files = [file for file in paths if file.suffix.lower() in IMAGE_SUFFIXES]
    images: dict[str, list[Path]] = {}
    for file in files:
        if not file.stem.endswith(_ENDING):
            images.setdefault(file.stem, []).append(file)
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for mask in files:
        if mask.stem.endswith(_ENDING):
            for image in images.get(mask.stem.removesuffix(_ENDING), []):
                split = split_of(image.parent.relative_to(root).as_posix())
                pairs.setdefault(split, []).append((image, mask))
    return pairs


def _recognize_colors(root: Path) -> str | None:
    colors = _color_file(root)
    for pairs in _color_pairs(root, some_files(root)).values():
        image, mask = pairs[0]
        if colors is not None or _STEM.fullmatch(image.stem):
            return f"{mask.relative_to(root)} has the name of {image.relative_to(root)} and _L"
    return None


def _color_splits(root: Path) -> list[str]:
    return sort_splits(_color_pairs(root, image_files(root)))


def _read_colors(root: Path, split: str) -> LayoutSplit:
    pairs = _color_pairs(root, image_files(root))
    if split not in pairs:
        raise missing_split(root, split, sort_splits(pairs))
    classes, colors = read_colors(root)
    masks_of: dict[Path, list[Path]] = {}
    for image, mask in pairs[split]:
        masks_of.setdefault(image, []).append(mask)
    samples = []
    for image, masks in masks_of.items():
        annotation: ColorMask | BrokenAnnotation = ColorMask(masks[0], colors)
        if len(masks) > 1:
            listed = ", ".join(str(mask) for mask in masks)
            annotation = BrokenAnnotation(masks[0], f"{image}: more than one mask: {listed}")
        samples.append(Sample(image.relative_to(root).as_posix(), image, annotation))
    return LayoutSplit(require_samples(samples, root, split), classes)


def _annotated(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> images and masks of SegNet's folders: train and trainannot."""
    found = {}
    for folder in subfolders(root):
        masks = root / f"{folder.name}annot"
        if masks.is_dir():
            found[split_of(folder.name) if split_of(folder.name) != WHOLE else folder.name] = (
                folder,
                masks,
            )
    return found


def _recognize_segnet(root: Path) -> str | None:
    for images, masks in _annotated(root).values():
        first = next(iter(image_files(images)), None)
        if first is not None and (_STEM.fullmatch(first.stem) or _color_file(root)):
            return f"{masks.name}/ is beside {images.name}/"
    return None


def _segnet_splits(root: Path) -> list[str]:
    return sort_splits(_annotated(root))


def _read_segnet(root: Path, split: str) -> LayoutSplit:
    folders = _annotated(root)
    if split not in folders:
        raise missing_split(root, split, sort_splits(folders))
    images, masks = folders[split]
    first = next(iter(image_files(masks)), None)
    if first is not None and in_colors(first) and _color_file(root):
        classes, colors = read_colors(root)
        samples, strays = pair_folders(images, masks, annotate=lambda mask: ColorMask(mask, colors))
    else:
        classes = class_table("camvid11")
        samples, strays = pair_folders(images, masks)
    return LayoutSplit(require_samples(samples, images, split), classes, tuple(strays))


CAMVID = (
    Layout("camvid", "CamVid, color masks", _recognize_colors, _color_splits, _read_colors),
    Layout("camvid11", "CamVid, 11 classes", _recognize_segnet, _segnet_splits, _read_segnet),
)
