"""A data set: pairs of a picture and a mask, and the classes that the masks speak of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segformer.image import MASK_SUFFIXES, PICTURE_SUFFIXES, Picture, read_mask, read_picture
from segformer.labels import LabelSet

SPLITS = ("train", "val", "test")


class DatasetError(ValueError):
    """A data set that cannot be used; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Sample:
    """One picture and its mask.

    Attributes:
        name: Path of the picture inside its split's folder, for messages and reports.
        picture: File.
        mask: File, or None where there is no mask.
    """

    name: str
    picture: Path
    mask: Path | None


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    Attributes:
        root: Folder it came from.
        split: "train", "val" or another.
        samples: Pairs, sorted by name.
        labels: Classes, ignore index and mapping of mask values.
        stray_masks: Masks that no picture belongs to.
        bands: Channels of the pictures.
    """

    root: Path
    split: str
    samples: tuple[Sample, ...]
    labels: LabelSet
    stray_masks: tuple[Path, ...] = field(default=(), repr=False)
    bands: int = 3

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def read(self, sample: Sample) -> tuple[Picture, NDArray[np.integer]]:
        """Picture (H, W, bands) and class ids (H, W) of a sample.

        Raises:
            ValueError: A file cannot be read, there is no mask, sizes differ, or the mask has
                values outside the classes.
        """
        if sample.mask is None:
            raise DatasetError(f"{sample.picture}: there is no mask for this picture")
        picture = read_picture(sample.picture, self.bands)
        class_ids = self.labels.to_class_ids(read_mask(sample.mask))
        if picture.shape[:2] != class_ids.shape:
            raise DatasetError(_describe_sizes(sample, picture.shape[:2], class_ids.shape))
        unknown = self.labels.unknown_values(class_ids)
        if unknown:
            raise DatasetError(_describe_unknown(sample, unknown, self.labels))
        return picture, class_ids

    def with_bands(self, bands: int) -> Dataset:
        """The same data set, its pictures read with another number of bands."""
        return replace(self, bands=bands)


def _describe_sizes(sample: Sample, picture: tuple[int, ...], mask: tuple[int, ...]) -> str:
    """The sentence for a picture and a mask of different sizes."""
    return (
        f"{sample.mask}: the mask is {mask[1]} x {mask[0]} pixels, "
        f"its picture {picture[1]} x {picture[0]}"
    )


def _describe_unknown(sample: Sample, unknown: dict[int, int], labels: LabelSet) -> str:
    """The sentence for mask values that are no class."""
    values = ", ".join(f"{value} ({count} pixels)" for value, count in sorted(unknown.items())[:8])
    more = f" and {len(unknown) - 8} more values" if len(unknown) > 8 else ""
    return (
        f"{sample.mask}: values outside the classes: {values}{more}; classes are "
        f"0..{len(labels) - 1} and {labels.ignore_index} for ignored pixels. "
        "Name the classes, or map the values with label_mapping in dataset.yaml"
    )


def open_dataset(source: str | Path, split: str = "train") -> Dataset:
    """Open one split of a data set.

    Args:
        source: Folder with ``dataset.yaml``, that file itself, or a folder that has
            ``images/{train,val}`` beside ``masks/{train,val}``.
        split: Which of its splits.

    Raises:
        DatasetError: There is none, the description is wrong, or the split is empty.
    """
    path = Path(source)
    if not path.exists():
        raise DatasetError(f"{path}: no such data set")
    description = path / "dataset.yaml" if path.is_dir() else path
    if description.is_file():
        return _from_yaml(description, split)
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return _from_folders(path, split)
    raise DatasetError(
        f"{path}: not a data set: it needs a dataset.yaml, or pictures in images/train and "
        "images/val beside masks of the same names in masks/train and masks/val"
    )


def splits(source: str | Path) -> list[str]:
    """The splits a data set has: those of "train", "val" and "test" that are there.

    Raises:
        DatasetError: It is no data set.
    """
    path = Path(source)
    description = path / "dataset.yaml" if path.is_dir() else path
    if description.is_file():
        entries = _read_yaml(description)
        return [split for split in SPLITS if entries.get(split)]
    if not (path / "images").is_dir():
        open_dataset(path)  # says what is wrong
    return [split for split in SPLITS if (path / "images" / split).is_dir()]


def _from_yaml(file: Path, split: str) -> Dataset:
    entries = _read_yaml(file)
    known = {"path", "train", "val", "test", "masks_dir", "ignore_index", "names", "nc"}
    unknown = set(entries) - known - {"label_mapping", "palette", "bands"}
    if unknown:
        raise DatasetError(f"{file}: unknown keys: {', '.join(sorted(map(str, unknown)))}")
    if "names" not in entries:
        raise DatasetError(f"{file}: there are no class names; add names: {{0: background, ...}}")
    if not entries.get(split):
        raise DatasetError(f"{file}: the data set has no split {split!r}")
    root = file.parent / str(entries.get("path") or ".")
    pictures = root / str(entries[split])
    masks = _masks_folder(root, str(entries[split]), str(entries.get("masks_dir") or "masks"))
    try:
        labels = _labels(entries)
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file}: {error}") from None
    if entries.get("nc", len(labels)) != len(labels):
        raise DatasetError(f"{file}: nc is {entries['nc']}, but there are {len(labels)} names")
    bands = entries.get("bands", 3)
    if not isinstance(bands, int) or bands < 1:
        raise DatasetError(f"{file}: bands must be a number of at least 1, not {bands!r}")
    return _pair(file.parent, split, pictures, masks, labels, bands)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(entries, dict):
        raise DatasetError(f"{file}: must be keys and values: path, train, val, masks_dir, names")
    return entries


def _labels(entries: dict[str, Any]) -> LabelSet:
    labels = LabelSet.from_names(
        entries["names"], ignore_index=int(entries.get("ignore_index", 255))
    )
    mapping = {int(k): int(v) for k, v in (entries.get("label_mapping") or {}).items()}
    palette = tuple(tuple(int(v) for v in rgb) for rgb in entries.get("palette") or ())
    return replace(labels, mapping=mapping, palette=palette or labels.palette)  # type: ignore[arg-type]


def _masks_folder(root: Path, pictures: str, masks_dir: str) -> Path:
    """images/train -> masks/train; a folder without images/ in its path -> masks/<folder>."""
    parts = Path(pictures).parts
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        parts = parts[at + 1 :] if at == 0 else (*parts[:at], masks_dir, *parts[at + 1 :])
        return root / Path(*parts) if masks_dir in parts else root / masks_dir / Path(*parts)
    return root / masks_dir / pictures


def _from_folders(root: Path, split: str) -> Dataset:
    """Without a description the classes are what the masks of the training split hold."""
    if not (root / "images" / split).is_dir():
        raise DatasetError(f"{root}: the data set has no split {split!r}")
    placeholder = LabelSet(("background",))
    first = "train" if (root / "masks" / "train").is_dir() else split
    train = _pair(root, first, root / "images" / first, root / "masks" / first, placeholder, 3)
    highest = 0
    for sample in train:
        if sample.mask is not None:
            try:
                values = read_mask(sample.mask)
            except ValueError:
                continue  # `data check` names unreadable masks; here they only hold no classes
            highest = max(highest, int(values[values != placeholder.ignore_index].max(initial=0)))
    names = ("background", *(f"class {i}" for i in range(1, highest + 1)))
    if highest > 254:
        raise DatasetError(
            f"{root}: masks hold values up to {highest}; describe the classes in a dataset.yaml"
        )
    return _pair(root, split, root / "images" / split, root / "masks" / split, LabelSet(names), 3)


def _pair(
    root: Path, split: str, pictures: Path, masks: Path, labels: LabelSet, bands: int
) -> Dataset:
    if not pictures.is_dir():
        raise DatasetError(f"{pictures}: there is no such folder of pictures")
    if not masks.is_dir():
        raise DatasetError(f"{masks}: there is no such folder of masks")
    mask_of = {
        file.relative_to(masks).with_suffix(""): file
        for file in sorted(masks.rglob("*"))
        if file.suffix.lower() in MASK_SUFFIXES and file.is_file()
    }
    samples = []
    for file in sorted(pictures.rglob("*")):
        if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file() and file.name[0] != ".":
            relative = file.relative_to(pictures)
            mask = mask_of.pop(relative.with_suffix(""), None)
            samples.append(Sample(relative.as_posix(), file, mask))
    if not samples:
        raise DatasetError(f"{pictures}: there are no pictures in this folder")
    return Dataset(root, split, tuple(samples), labels, tuple(mask_of.values()), bands)
