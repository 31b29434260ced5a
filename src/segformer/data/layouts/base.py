"""What a layout is, and what the readers of all layouts need."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from segformer.classes import ClassSet, default_palette, printable
from segformer.data.annotation import Annotation, BrokenAnnotation
from segformer.data.errors import DatasetError
from segformer.data.pairing import Sample
from segformer.image import IMAGE_SUFFIXES, MASK_SUFFIXES

WHOLE = "all"
"""Name of the only split where a source is not divided."""

_EXAMINED = 500
"""Files of a folder that a layout is recognized by."""


@dataclass(frozen=True)
class LayoutSplit:
    """One split as a layout gives it.

    Attributes:
        samples: Images with their annotations, sorted by name.
        classes: Classes, and the mapping of values where masks do not hold class ids.
        stray_masks: Masks that no image belongs to.
        problems: Sentences about entries that belong to no sample.
    """

    samples: tuple[Sample, ...]
    classes: ClassSet
    stray_masks: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A way to arrange images and annotations in a folder.

    Attributes:
        name: As given to ``--layout``.
        title: As shown to people.
        recognize: Folder -> why it has this layout, in one sentence, or None.
        splits: Folder -> names of its splits, "train" first.
        read: Folder and split -> samples and classes.
    """

    name: str
    title: str
    recognize: Callable[[Path], str | None]
    splits: Callable[[Path], list[str]]
    read: Callable[[Path, str], LayoutSplit]


_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_ORDER = ("train", "val", "test")


def split_of(name: str) -> str:
    """The split that a file or folder name speaks of: ``instances_val2017`` -> ``val``."""
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in _SPLIT_WORDS:
            return _SPLIT_WORDS[word]
    return WHOLE


def sort_splits(names: Iterable[str]) -> list[str]:
    """Train, val, test, then others by name."""
    return sorted(set(names), key=lambda n: (_ORDER.index(n) if n in _ORDER else 3, n))


@lru_cache
def class_table(name: str) -> ClassSet:
    """A class table of the package: official names and colors, and the values in masks."""
    text = files("segformer.data.layouts").joinpath("tables", f"{name}.yaml").read_text("utf-8")
    table = yaml.safe_load(text)
    rows = table["classes"]
    mapping = {row["value"]: i for i, row in enumerate(rows) if "value" in row}
    mapping |= dict.fromkeys(table.get("ignored", ()), 255)
    palette = tuple((r, g, b) for r, g, b in (row["color"] for row in rows))
    return ClassSet(tuple(row["name"] for row in rows), palette, mapping=mapping)


def named_classes(names: Iterable[str], palette: Iterable[tuple[int, int, int]] = ()) -> ClassSet:
    """Classes of these names; the ignore index lies above them."""
    names = tuple(printable(name) for name in names)
    colors = tuple(palette)
    return ClassSet(names, colors, ignore_index=255 if len(names) <= 255 else 65535)


def with_background(names: Iterable[str]) -> tuple[str, ...]:
    """The names, "background" first; it is added where none has that name."""
    names = tuple(names)
    given = [name for name in names if name.lower() in ("background", "_background_")]
    return ("background", *(name for name in names if name not in given))


def contrast_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Colors for a class set whose source has none: the background is dark."""
    return ((40, 40, 40), *default_palette(num_classes)[1:])


def walk_files(folder: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Files with one of the suffixes, below a folder, sorted; hidden ones are skipped."""
    wanted = tuple(suffixes)
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f[0] != "." and f != "__MACOSX")
        for name in sorted(names):
            if name[0] != "." and name.lower().endswith(wanted):
                yield Path(where, name)


def some_files(root: Path) -> list[Path]:
    """The first files of each folder down to four levels, enough to recognize a layout by."""
    found = []
    for where, folders, names in os.walk(root):
        depth = len(Path(where).relative_to(root).parts)
        folders[:] = sorted(f for f in folders if f[0] != "." and f != "__MACOSX" and depth < 4)
        found += [Path(where, name) for name in sorted(names)[:_EXAMINED] if name[0] != "."]
    return found


def image_files(folder: Path) -> list[Path]:
    """Images below a folder, sorted."""
    return list(walk_files(folder, IMAGE_SUFFIXES))


def has_images(folder: Path, ending: str = "") -> bool:
    """Whether an image, its stem ending so, lies below a folder."""
    return any(file.stem.endswith(ending) for file in walk_files(folder, IMAGE_SUFFIXES))


def subfolders(folder: Path) -> list[Path]:
    """Folders directly below, sorted; hidden ones are skipped."""
    if not folder.is_dir():
        return []
    found = (f for f in folder.iterdir() if f.is_dir() and f.name[0] != ".")
    return sorted(f for f in found if f.name != "__MACOSX")


def first_folder(root: Path, *names: str) -> Path | None:
    """The first of these folders that exists."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def pair_folders(
    images: Path,
    masks: Path,
    *,
    image_ending: str = "",
    mask_ending: str = "",
    annotate: Callable[[Path], Path | Annotation] = lambda mask: mask,
    mask_suffixes: Iterable[str] = MASK_SUFFIXES,
) -> tuple[list[Sample], list[Path]]:
    """Pair images and masks of the same relative path, apart from suffix and ending.

    Args:
        images: Folder of images.
        masks: Folder of masks.
        image_ending: What the stem of an image has after the common part; other files are skipped.
        mask_ending: The same for masks.
        annotate: Makes the annotation from the path of a mask.
        mask_suffixes: Suffixes of masks.

    Returns:
        Samples, and masks that no image belongs to.
    """
    found = _by_key(walk_files(masks, mask_suffixes), masks, mask_ending)
    pictured = _by_key(image_files(images), images, image_ending)
    samples = []
    for key, files_ in pictured.items():
        matching = found.pop(key, [])
        for file in files_:
            mask: Path | Annotation | None = None
            if len(files_) > 1:
                mask = BrokenAnnotation(
                    file, f"{file}: {len(files_)} images have this name, with other suffixes"
                )
            elif len(matching) > 1:
                mask = BrokenAnnotation(
                    matching[0],
                    f"{matching[0]}: the image {file} has more than one mask: "
                    + ", ".join(m.name for m in matching),
                )
            elif matching:
                mask = annotate(matching[0])
            samples.append(Sample(file.relative_to(images).as_posix(), file, mask))
    return samples, [mask for strays in found.values() for mask in strays]


def _by_key(paths: Iterable[Path], folder: Path, ending: str) -> dict[str, list[Path]]:
    """Files by their path inside the folder, without suffix and ending."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key.endswith(ending):
            found.setdefault(key.removesuffix(ending), []).append(path)
    return found


def pair_listed(
    names: Iterable[str], images: Path, masks: Path, annotate: Callable[[Path], Path | Annotation]
) -> list[Sample]:
    """Samples of names from a list, with the suffixes the files have.

    A name without an image or without a mask is a sample that says so when it is read.
    """
    image_of = {
        file.relative_to(images).with_suffix("").as_posix(): file for file in image_files(images)
    }
    mask_of = {
        file.relative_to(masks).with_suffix("").as_posix(): file
        for file in walk_files(masks, MASK_SUFFIXES)
    }
    samples = []
    for name in names:
        image = image_of.get(name, images / f"{name}.jpg")
        mask = mask_of.get(name)
        samples.append(
            Sample(image.relative_to(images).as_posix(), image, annotate(mask) if mask else None)
        )
    return samples


def read_list(file: Path) -> list[str]:
    """Names of a text file, one per line; what follows a blank is dropped.

    Raises:
        DatasetError: The file is not text, or holds no name.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read as text: {error}") from None
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not names:
        raise DatasetError(f"{file}: the list is empty")
    return names


def read_json(file: Path) -> Any:
    """A JSON file.

    Raises:
        DatasetError: It is missing or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: cannot be read as JSON: {error}") from None


def file_head(file: Path, size: int = 1 << 16) -> bytes:
    """The first bytes of a file; empty where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError:
        return b""


def base_name(path: str) -> str:
    r"""The file name of a path as written on any system: ``C:\data\a.jpg`` -> ``a.jpg``."""
    return PureWindowsPath(path).name


def require_samples(samples: Iterable[Sample], where: Path, split: str) -> tuple[Sample, ...]:
    """The samples, sorted.

    Raises:
        DatasetError: There are none.
    """
    found = tuple(sorted(samples, key=lambda sample: sample.name))
    if not found:
        raise DatasetError(f"{where}: there are no images of the split {split!r}")
    return found


def missing_split(root: Path, split: str, splits: Iterable[str]) -> DatasetError:
    """The error for a split that a source does not have."""
    return DatasetError(
        f"{root}: there is no split {split!r}; the source has {', '.join(splits) or 'none'}"
    )
