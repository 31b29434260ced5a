"""Small data sets in the layouts of other tools, and what a layout reads out of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.data.layouts.base import LayoutSplit
from segformer.data.layouts.recognition import Recognized, recognize
from segformer.data.pairing import Sample
from segformer.image import read_image, read_mask

HEIGHT, WIDTH = 24, 32


def write_image(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A random image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_mask(
    path: Path, values: NDArray[Any], palette: Sequence[Sequence[int]] | None = None
) -> Path:
    """A mask of values (H, W) with a palette or without, or of colors (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette is not None:
        image = image.convert("L")
        image.putpalette([channel for color in palette for channel in color])
    image.save(path)
    return path


def columns(*values: int) -> NDArray[np.uint8]:
    """A mask of vertical stripes of these values."""
    stripes = np.array_split(np.arange(WIDTH), len(values))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, stripe in zip(values, stripes, strict=True):
        mask[:, stripe] = value
    return mask


def colored(*colors: Sequence[int]) -> NDArray[np.uint8]:
    """An RGB mask of vertical stripes of these colors."""
    return np.array(colors, np.uint8)[columns(*range(len(colors)))]


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def taken_for(root: Path, name: str | None = None) -> Recognized:
    """What a folder is recognized as; fails the test where it is nothing."""
    found = recognize(root, name)
    assert found is not None
    return found


def read_split(root: Path, layout: str, split: str) -> LayoutSplit:
    """A split of a folder that must be recognized as this layout without being named."""
    found = taken_for(root)
    assert found.layout.name == layout
    assert split in found.layout.splits(found.root)
    return found.layout.read(found.root, split)


def class_ids(split: LayoutSplit, sample: Sample | None = None) -> NDArray[np.integer]:
    """Class ids of a sample (default: the first), each a class or ignored."""
    sample = sample or split.samples[0]
    assert sample.mask is not None
    if isinstance(sample.mask, Path):
        ids = split.classes.to_class_ids(read_mask(sample.mask))
    else:
        ids = sample.mask.rasterize(*read_image(sample.image).shape[:2])
    assert not split.classes.unknown_values(ids)
    return ids


def stripes(split: LayoutSplit, sample: Sample | None = None) -> list[str]:
    """The classes of a mask from left to right, by name."""
    row = class_ids(split, sample)[0]
    changes = np.flatnonzero(np.diff(row, prepend=-1))
    names = dict(enumerate(split.classes.names)) | {split.classes.ignore_index: "ignored"}
    return [names[int(row[i])] for i in changes]
