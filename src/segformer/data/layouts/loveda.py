"""LoveDA: {Train,Val}/{Rural,Urban}/{images_png,masks_png}."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    class_table,
    missing_split,
    pair_folders,
    require_samples,
    sort_splits,
    split_of,
    subfolders,
)


def _areas(root: Path) -> dict[str, list[Path]]:
    """Split -> folders of its areas that have masks."""
    found: dict[str, list[Path]] = {}
    for folder in subfolders(root):
        for area in subfolders(folder):
            if (area / "images_png").is_dir() and (area / "masks_png").is_dir():
                found.setdefault(split_of(folder.name), []).append(area)
    return found


def _recognize(root: Path) -> str | None:
    for areas in _areas(root).values():
        return f"{areas[0].relative_to(root).as_posix()} holds images_png/ and masks_png/"
    return None


def _splits(root: Path) -> list[str]:
    return sort_splits(_areas(root))


def _read(root: Path, split: str) -> LayoutSplit:
    areas = _areas(root)
    if split not in areas:
        raise missing_split(root, split, _splits(root))
    samples, strays = [], []
    for area in areas[split]:
        of_area, unused = pair_folders(area / "images_png", area / "masks_png")
        samples += [replace(sample, name=f"{area.name}/{sample.name}") for sample in of_area]
        strays += unused
    return LayoutSplit(require_samples(samples, root, split), class_table("loveda"), tuple(strays))


LOVEDA = Layout("loveda", "LoveDA", _recognize, _splits, _read)
