"""CVAT "Segmentation mask 1.1": color masks, and labelmap.txt that says what the colors mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segformer.classes import ClassSet
from segformer.data.annotation import Annotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    WHOLE,
    Layout,
    LayoutSplit,
    first_folder,
    missing_split,
    named_classes,
    pair_folders,
    pair_listed,
    require_samples,
    sort_splits,
    split_of,
    walk_files,
)
from segformer.data.layouts.color_masks import ColorMask, ColorTable
from segformer.data.layouts.pascal_voc import in_colors

_LISTS = "ImageSets/Segmentation"
_MASKS = "SegmentationClass"
_BLACK = (0, 0, 0)


def _recognize(root: Path) -> str | None:
    if (root / "labelmap.txt").is_file() and (root / _MASKS).is_dir():
        return f"labelmap.txt gives the colors of the masks in {_MASKS}/"
    return None


def _lists(root: Path) -> dict[str, Path]:
    """Split -> list; CVAT calls the undivided one "default"."""
    return {split_of(file.stem): file for file in walk_files(root / _LISTS, (".txt",))}


def _splits(root: Path) -> list[str]:
    return sort_splits(_lists(root)) or [WHOLE]


def read_labelmap(file: Path) -> tuple[ClassSet, ColorTable]:
    """Classes and colors of ``label:red,green,blue:parts:actions`` lines, background first.

    Raises:
        DatasetError: A line cannot be read, or two labels have the same name or color.
    """
    colors: dict[str, tuple[int, int, int]] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read as text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.rsplit(":", 3)
        try:
            red, green, blue = (int(value) for value in parts[1].split(","))
        except (IndexError, ValueError):
            raise DatasetError(
                f"{file}: line {number}: expected label:red,green,blue:parts:actions, not {line!r}"
            ) from None
        name, color = parts[0].strip(), (red, green, blue)
        if name in colors or color in colors.values():
            raise DatasetError(f"{file}: line {number}: the name or the color occurs twice: {line}")
        colors[name] = color
    background = next((n for n, c in colors.items() if n.lower() == "background"), None)
    background = background or next((n for n, c in colors.items() if c == _BLACK), None)
    if background is None:
        background = "background"
        colors[background] = _BLACK
    names = (background, *(name for name in colors if name != background))
    try:
        classes = named_classes(names, [colors[name] for name in names])
    except ValueError as error:
        raise DatasetError(f"{file}: {error}") from None
    # Masks of one channel hold the position of the label in the file
    mapping = {at: names.index(name) for at, name in enumerate(colors) if at != names.index(name)}
    table = {_BLACK: 0} | {colors[name]: i for i, name in enumerate(names)}
    return replace(classes, mapping=mapping), ColorTable(table)


def _read(root: Path, split: str) -> LayoutSplit:
    lists = _lists(root)
    if split not in _splits(root):
        raise missing_split(root, split, _splits(root))
    images = first_folder(root, "JPEGImages", "images", "Images")
    if images is None:
        raise DatasetError(
            f"{root}: the export has no images; export again with images, or put them into "
            f"{root / 'JPEGImages'}"
        )
    classes, colors = read_labelmap(root / "labelmap.txt")
    masks = root / _MASKS

    def annotate(mask: Path) -> Path | Annotation:
        return ColorMask(mask, colors) if in_colors(mask, palette_too=True) else mask

    if split in lists:
        try:
            text = lists[split].read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise DatasetError(f"{lists[split]}: cannot be read as text: {error}") from None
        # A name may hold blanks: CVAT writes one name per line and nothing else
        names = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
        samples = pair_listed(names, images, masks, annotate)
        strays: list[Path] = []
    else:
        samples, strays = pair_folders(images, masks, annotate=annotate)
    return LayoutSplit(require_samples(samples, images, split), classes, tuple(strays))


CVAT = Layout("cvat", "CVAT segmentation mask 1.1", _recognize, _splits, _read)
