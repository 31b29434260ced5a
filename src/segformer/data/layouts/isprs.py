"""ISPRS Potsdam and Vaihingen: large tiles, with masks of six colors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from segformer.data.annotation import BrokenAnnotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    WHOLE,
    Layout,
    LayoutSplit,
    class_table,
    missing_split,
    some_files,
    sort_splits,
    walk_files,
)
from segformer.data.layouts.color_masks import ColorMask, ColorTable
from segformer.data.pairing import Sample

_TRAIN = {
    "potsdam": frozenset(
        "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
        "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12".split()
    ),
    "vaihingen": frozenset("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split()),
}
"""Tiles to train on, as published; the others are for validation."""
_VAL = {
    "potsdam": frozenset(
        "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()
    ),
    "vaihingen": frozenset("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split()),
}
_POTSDAM = re.compile(
    r"top_potsdam_(\d+)_(\d+)_(RGB|IRRG|RGBIR|label|label_noBoundary)", re.IGNORECASE
)
_VAIHINGEN = re.compile(r"top_mosaic_09cm_area(\d+)(_noBoundary)?", re.IGNORECASE)
_SUFFIXES = (".tif", ".tiff", ".png")
_KINDS = ("rgb", "irrg", "rgbir")
"""Color images in order of preference."""


@dataclass
class _Tile:
    """Files of one tile; the name of the kind -> file."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, list[Path]] = field(default_factory=dict)


def _tiles(paths: Iterable[Path], area: str) -> dict[str, _Tile]:
    tiles: dict[str, _Tile] = {}
    for file in paths:
        if area == "potsdam":
            match = _POTSDAM.fullmatch(file.stem)
            if match is None or file.suffix.lower() not in _SUFFIXES:
                continue
            # Some tools write 02_10 for 2_10
            name, kind = f"{int(match[1])}_{int(match[2])}", match[3].lower()
        else:
            match = _VAIHINGEN.fullmatch(file.stem)
            if match is None or file.suffix.lower() not in _SUFFIXES:
                continue
            name, kind = str(int(match[1])), "irrg"
            folder = file.parent.name.lower()
            if match[2] or "eroded" in folder:
                kind = "label_noboundary"
            elif re.search(r"gts?_|ground_?truth|label", f"{folder}_"):
                kind = "label"
        tile = tiles.setdefault(name, _Tile())
        if kind in _KINDS:
            tile.images[kind] = file
        else:
            tile.labels.setdefault(kind, []).append(file)
    return tiles


def _split_names(tiles: dict[str, _Tile], area: str) -> dict[str, list[str]]:
    """Split -> tiles that have a label; all in one where the published split names none."""
    labeled = [name for name, tile in tiles.items() if tile.labels and tile.images]
    listed = {
        "train": [name for name in labeled if name in _TRAIN[area]],
        "val": [name for name in labeled if name in _VAL[area]],
    }
    found = {split: names for split, names in listed.items() if names}
    return found or ({WHOLE: labeled} if labeled else {})


def _recognize(root: Path, area: str) -> str | None:
    for tile in _tiles(some_files(root), area).values():
        if tile.labels and tile.images:
            image, label = next(iter(tile.images.values())), next(iter(tile.labels.values()))[0]
            return f"{image.relative_to(root)} and {label.relative_to(root)} are of one tile"
    return None


def _splits(root: Path, area: str) -> list[str]:
    return sort_splits(_split_names(_tiles(walk_files(root, _SUFFIXES), area), area))


def _read(root: Path, split: str, area: str) -> LayoutSplit:
    tiles = _tiles(walk_files(root, _SUFFIXES), area)
    names = _split_names(tiles, area)
    if split not in names:
        raise missing_split(root, split, sort_splits(names))
    table = class_table("isprs")
    # One tile of Potsdam has colors such as (252, 255, 0)
    colors = ColorTable(
        {color: i for i, color in enumerate(table.palette)} | {(0, 0, 0): 255}, tolerance=16
    )
    samples = []
    for name in names[split]:
        tile = tiles[name]
        image = next(tile.images[kind] for kind in _KINDS if kind in tile.images)
        labels = tile.labels.get("label") or tile.labels["label_noboundary"]
        mask: ColorMask | BrokenAnnotation = ColorMask(labels[0], colors)
        if len(labels) > 1:
            listed = ", ".join(str(file) for file in labels)
            mask = BrokenAnnotation(labels[0], f"{image}: more than one label: {listed}")
        samples.append(Sample(image.name, image, mask))
    unlisted = sorted(set(tiles) - _TRAIN[area] - _VAL[area]) if split != WHOLE else []
    problems = [f"{root}: tile {name} is in neither published split" for name in unlisted]
    if not samples:
        raise DatasetError(f"{root}: there are no tiles of the split {split!r}")
    samples.sort(key=lambda sample: sample.name)
    return LayoutSplit(tuple(samples), table, problems=tuple(problems))


def _layout(area: str) -> Layout:
    return Layout(
        area,
        f"ISPRS {area.capitalize()}",
        partial(_recognize, area=area),
        partial(_splits, area=area),
        partial(_read, area=area),
    )


ISPRS = (_layout("potsdam"), _layout("vaihingen"))
