"""YOLO segmentation: ``data.yaml``, and a text file of normalized polygons for each image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.annotation import BrokenAnnotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    contrast_palette,
    image_files,
    missing_split,
    named_classes,
    require_samples,
    sort_splits,
    walk_files,
    with_background,
)
from segformer.data.layouts.regions import Region, paint, polygon_region
from segformer.data.pairing import Sample
from segformer.image import IMAGE_SUFFIXES

_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class YoloClasses:
    """Class id of each id in the text files, and the classes of the data set."""

    ids: tuple[int, ...]
    classes: ClassSet


@dataclass(frozen=True, slots=True)
class YoloPolygons:
    """The polygons of one image, one per line: class x1 y1 x2 y2 ..., as fractions of its size."""

    file: Path
    classes: YoloClasses

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W), small polygons over large ones; no text file: background alone."""
        regions = []
        try:
            lines = self.file.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            lines = []
        except (OSError, ValueError) as error:
            raise DatasetError(f"{self.file}: cannot be read as text: {error}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                entry = f"{self.file}: line {number}"
                regions.append(self._region(line.split(), height, width, entry))
        try:
            return paint(
                regions,
                height,
                width,
                background=0,
                ignore_index=self.classes.classes.ignore_index,
                small_on_top=True,
            )
        except ValueError as error:
            raise DatasetError(str(error)) from None

    def _region(self, words: list[str], height: int, width: int, entry: str) -> Region:
        try:
            class_id = int(words[0])
            numbers = np.array([float(word) for word in words[1:]])
        except ValueError:
            raise DatasetError(
                f"{entry}: expected a class id and coordinates, not {' '.join(words)[:60]!r}"
            ) from None
        if not 0 <= class_id < len(self.classes.ids):
            raise DatasetError(
                f"{entry}: class {class_id} is not among the {len(self.classes.ids)} names of "
                "the data set"
            )
        if len(numbers) == 4:
            raise DatasetError(
                f"{entry}: a bounding box (4 numbers), not a polygon; export the data set for "
                "segmentation"
            )
        if len(numbers) % 2:
            raise DatasetError(f"{entry}: {len(numbers)} coordinates; x and y must alternate")
        with np.errstate(over="ignore"):
            points = numbers.reshape(-1, 2) * (width, height)
        try:
            return polygon_region([points], height, width, self.classes.ids[class_id], entry)
        except ValueError as error:
            raise DatasetError(str(error)) from None


def _find(root: Path) -> Path | None:
    """The description: a YAML file with names and splits, beside folders of labels."""
    for file in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        entries = _read_yaml(file)
        if (
            entries
            and entries.get("names")
            and any(entries.get(key) for keys in _KEYS.values() for key in keys)
        ):
            return file
    return None


@lru_cache(maxsize=8)
def _parsed(file: Path, stamp: int) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None


def _read_yaml(file: Path) -> dict[str, Any] | None:
    entries = _parsed(file, file.stat().st_mtime_ns)
    return entries if isinstance(entries, dict) else None


def _places(root: Path, file: Path) -> dict[str, list[Path]]:
    """Split -> folders or lists of images."""
    entries = _read_yaml(file) or {}
    base = root / str(entries.get("path") or ".")
    found: dict[str, list[Path]] = {}
    for split, keys in _KEYS.items():
        given = next((entries[key] for key in keys if entries.get(key)), None)
        for place in given if isinstance(given, list) else [given]:
            # Roboflow writes ../train/images into a file that lies beside train/
            candidates = (
                []
                if place is None
                else [
                    folder / relative
                    for folder in (base, root, root / Path(str(entries.get("path") or ".")).name)
                    for relative in (str(place), str(place).replace("\\", "/").removeprefix("../"))
                ]
            )
            existing = [candidate for candidate in candidates if candidate.exists()]
            if existing:
                found.setdefault(split, []).append(existing[0])
    return found


def _images(place: Path) -> list[Path]:
    if place.is_dir():
        return image_files(place)
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{place}: cannot be read as a list of images: {error}") from None
    return [place.parent / line.strip() for line in lines if line.strip()]


def label_file(image: Path) -> Path:
    """``images/train/a.jpg`` -> ``labels/train/a.txt``; the last folder called images counts."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _recognize(root: Path) -> str | None:
    file = _find(root)
    if file is None:
        return None
    for places in _places(root, file).values():
        for place in places:
            folder = label_file(place / "x.jpg").parent if place.is_dir() else root / "labels"
            if next(walk_files(folder, (".txt",)), None) is not None:
                return f"{file.name} names the classes, and {folder.name}/ holds text files"
    return None


def describes_polygons(root: Path) -> bool:
    """Whether ``dataset.yaml`` is YOLO's description rather than one of images and masks."""
    entries = _read_yaml(root / "dataset.yaml") if (root / "dataset.yaml").is_file() else None
    return (
        entries is not None
        and not entries.keys() & {"masks_dir", "mask_suffix", "masks", "images"}
        and not (root / "masks").is_dir()
        and _recognize(root) is not None
    )


def _splits(root: Path) -> list[str]:
    file = _find(root)
    return [] if file is None else sort_splits(_places(root, file))


def _classes(file: Path) -> YoloClasses:
    entries = _read_yaml(file) or {}
    try:
        given = ClassSet.from_names(entries["names"]).names
        names = with_background(given)
        ids = tuple(0 if name not in names else names.index(name) for name in given)
        return YoloClasses(ids, named_classes(names, contrast_palette(len(names))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{file}: names: {error}") from None


def _read(root: Path, split: str) -> LayoutSplit:
    file = _find(root)
    if file is None:
        raise DatasetError(f"{root}: there is no data.yaml with names, train and val")
    places = _places(root, file)
    if split not in places:
        raise missing_split(root, split, sort_splits(places))
    classes = _classes(file)
    images = [image for place in places[split] for image in _images(place)]
    of_label: dict[Path, list[Path]] = {}
    for image in images:
        of_label.setdefault(label_file(image), []).append(image)
    samples, unlabeled = [], 0
    for label, alike in of_label.items():
        unlabeled += not label.is_file()
        for image in alike:
            mask: YoloPolygons | BrokenAnnotation = YoloPolygons(label, classes)
            if len(alike) > 1:
                mask = BrokenAnnotation(
                    label, f"{label}: {len(alike)} images have this name, with other suffixes"
                )
            name = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
            samples.append(Sample(name.as_posix(), image, mask))
    problems = []
    if unlabeled:
        problems.append(
            f"{root}: {unlabeled} of {len(images)} images of {split!r} have no text file and are "
            "background alone"
        )
    folder = label_file(places[split][0] / "x.jpg").parent
    if places[split][0].is_dir():
        problems += [
            f"{text}: no image belongs to this text file"
            for text in walk_files(folder, (".txt",))
            if text not in of_label and not _is_list(text)
        ]
    return LayoutSplit(
        require_samples(samples, places[split][0], split), classes.classes, problems=tuple(problems)
    )


def _is_list(file: Path) -> bool:
    """Whether a text file is not a label: classes.txt, or a list of images."""
    return file.stem in ("classes", "train", "val", "test") and not any(
        file.with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES
    )


YOLO = Layout("yolo", "YOLO segmentation", _recognize, _splits, _read)
