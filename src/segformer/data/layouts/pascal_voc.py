"""Pascal VOC: JPEGImages, SegmentationClass and lists in ImageSets/Segmentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from segformer.classes import ClassSet
from segformer.data.annotation import Annotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    WHOLE,
    Layout,
    LayoutSplit,
    class_table,
    first_folder,
    image_files,
    missing_split,
    named_classes,
    pair_folders,
    pair_listed,
    read_list,
    require_samples,
    sort_splits,
    walk_files,
)
from segformer.data.layouts.color_masks import ColorMask, ColorTable
from segformer.image import MASK_SUFFIXES

_IMAGES = "JPEGImages"
_MASKS = ("SegmentationClass", "SegmentationClassPNG")
_AUGMENTED = "SegmentationClassAug"
_LISTS = "ImageSets/Segmentation"
_VOID = (224, 224, 192)


def voc_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The color map of Pascal VOC: the bits of the class id, spread over the three channels."""
    colors = []
    for class_id in range(num_classes):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (class_id >> (3 * bit + channel) & 1) << (7 - bit)
        colors.append((color[0], color[1], color[2]))
    return tuple(colors)


def in_colors(file: Path, *, palette_too: bool = False) -> bool:
    """Whether an image file holds colors of its own rather than gray levels.

    Args:
        file: The image.
        palette_too: Take the entries of a palette as colors.
    """
    try:
        with Image.open(file) as image:
            return image.mode in (("RGB", "RGBA", "P") if palette_too else ("RGB", "RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # reading the mask says what is wrong with it


def _recognize(root: Path) -> str | None:
    if (root / "labelmap.txt").is_file() or not (root / _IMAGES).is_dir():
        return None
    masks = first_folder(root, *_MASKS, _AUGMENTED)
    return None if masks is None else f"{_IMAGES}/ is beside {masks.name}/"


def _lists(root: Path) -> dict[str, Path]:
    return {file.stem: file for file in walk_files(root / _LISTS, (".txt",))}


def _splits(root: Path) -> list[str]:
    return sort_splits(_lists(root)) or [WHOLE]


def _classes(root: Path) -> ClassSet:
    for name in ("class_names.txt", "labels.txt", "classes.txt"):
        file = root / name
        if file.is_file():
            try:
                lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
            except (OSError, ValueError) as error:
                raise DatasetError(f"{file}: cannot be read as text: {error}") from None
            names = [
                "background" if line == "_background_" else line
                for line in lines
                if line and line != "__ignore__"
            ]
            try:
                return named_classes(names, voc_palette(len(names)))
            except ValueError as error:
                raise DatasetError(f"{file}: {error}") from None
    first = next(iter(image_files(root / _IMAGES)), None)
    if first is not None and not re.fullmatch(r"(\d{4}_)?\d{6}", first.stem):
        raise DatasetError(
            f"{root}: files such as {first.name} are not of Pascal VOC itself, and nothing names "
            "the classes; add class_names.txt, one name per line, background first"
        )
    return class_table("pascal_voc")


def _read(root: Path, split: str) -> LayoutSplit:
    lists = _lists(root)
    if split not in _splits(root):
        raise missing_split(root, split, _splits(root))
    images = root / _IMAGES
    augmented = split in ("trainaug", "aug") and (root / _AUGMENTED).is_dir()
    masks = root / _AUGMENTED if augmented else first_folder(root, *_MASKS, _AUGMENTED)
    if masks is None:
        raise DatasetError(f"{root}: there is no folder SegmentationClass")
    classes = _classes(root)
    annotate: Callable[[Path], Path | Annotation] = lambda mask: mask  # noqa: E731
    first = next(walk_files(masks, MASK_SUFFIXES), None)
    if first is not None and in_colors(first):
        table = {color: i for i, color in enumerate(classes.palette)} | {_VOID: 255}
        colors = ColorTable(table)
        annotate = lambda mask: ColorMask(mask, colors)  # noqa: E731
    strays: list[Path] = []
    if split in lists:
        # Some lists of the augmented set hold paths: /JPEGImages/2011_003276.jpg ...
        names = [Path(name).stem if "/" in name else name for name in read_list(lists[split])]
        samples = pair_listed(names, images, masks, annotate)
    else:
        samples, strays = pair_folders(images, masks, annotate=annotate)
        samples = [sample for sample in samples if sample.mask is not None]
    return LayoutSplit(require_samples(samples, images, split), classes, tuple(strays))


PASCAL_VOC = Layout("pascal-voc", "Pascal VOC", _recognize, _splits, _read)
