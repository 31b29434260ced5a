"""A data set: pairs of an image and a mask, and the classes that the masks speak of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.image import IMAGE_SUFFIXES, MASK_SUFFIXES, ImageArray, read_image, read_mask

SPLITS = ("train", "val", "test")


class DatasetError(ValueError):
    """A data set that cannot be used; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Sample:
    """One image and its mask.

    Attributes:
        name: Path of the image inside its split's folder, for messages and reports.
        image: File.
        mask: File, or None where there is no mask.
    """

    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    Attributes:
        root: Folder it came from.
        split: "train", "val" or another.
        samples: Pairs, sorted by name.
        classes: Classes, ignore index and mapping of mask values.
        stray_masks: Masks that no image belongs to.
        channels: Channels of the images.
    """

    root: Path
    split: str
    samples: tuple[Sample, ...]
    classes: ClassSet
    stray_masks: tuple[Path, ...] = field(default=(), repr=False)
    channels: int = 3

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def read(self, sample: Sample) -> tuple[ImageArray, NDArray[np.integer]]:
        """Image (H, W, channels) and class ids (H, W) of a sample.

        Raises:
            ValueError: A file cannot be read, there is no mask, sizes differ, or the mask has
                values outside the classes.
        """
        if sample.mask is None:
            raise DatasetError(f"{sample.image}: there is no mask for this image")
        image = read_image(sample.image, self.channels)
        class_ids = self.classes.to_class_ids(read_mask(sample.mask))
        if image.shape[:2] != class_ids.shape:
            raise DatasetError(_describe_sizes(sample, image.shape[:2], class_ids.shape))
        unknown = self.classes.unknown_values(class_ids)
        if unknown:
            raise DatasetError(_describe_unknown(sample, unknown, self.classes))
        return image, class_ids

    def with_channels(self, channels: int) -> Dataset:
        """The same data set, its images read with another number of channels."""
        return replace(self, channels=channels)


def _describe_sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    """The sentence for an image and a mask of different sizes."""
    return (
        f"{sample.mask}: the mask is {mask[1]} x {mask[0]} pixels, "
        f"its image {image[1]} x {image[0]}"
    )


def _describe_unknown(sample: Sample, unknown: dict[int, int], classes: ClassSet) -> str:
    """The sentence for mask values that are no class."""
    values = ", ".join(f"{value} ({count} pixels)" for value, count in sorted(unknown.items())[:8])
    more = f" and {len(unknown) - 8} more values" if len(unknown) > 8 else ""
    return (
        f"{sample.mask}: values outside the classes: {values}{more}; classes are "
        f"0..{len(classes) - 1} and {classes.ignore_index} for ignored pixels. "
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
        f"{path}: not a data set: it needs a dataset.yaml, or images in images/train and "
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
    unknown = set(entries) - known - {"label_mapping", "palette", "channels"}
    if unknown:
        raise DatasetError(f"{file}: unknown keys: {', '.join(sorted(map(str, unknown)))}")
    if "names" not in entries:
        raise DatasetError(f"{file}: there are no class names; add names: {{0: background, ...}}")
    if not entries.get(split):
        raise DatasetError(f"{file}: the data set has no split {split!r}")
    root = file.parent / str(entries.get("path") or ".")
    images = root / str(entries[split])
    masks = _masks_folder(root, str(entries[split]), str(entries.get("masks_dir") or "masks"))
    try:
        classes = _labels(entries)
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file}: {error}") from None
    if entries.get("nc", len(classes)) != len(classes):
        raise DatasetError(f"{file}: nc is {entries['nc']}, but there are {len(classes)} names")
    channels = entries.get("channels", 3)
    if not isinstance(channels, int) or channels < 1:
        raise DatasetError(f"{file}: channels must be a number of at least 1, not {channels!r}")
    return _pair(file.parent, split, images, masks, classes, channels)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(entries, dict):
        raise DatasetError(f"{file}: must be keys and values: path, train, val, masks_dir, names")
    return entries


def _labels(entries: dict[str, Any]) -> ClassSet:
    classes = ClassSet.from_names(
        entries["names"], ignore_index=int(entries.get("ignore_index", 255))
    )
    mapping = {int(k): int(v) for k, v in (entries.get("label_mapping") or {}).items()}
    palette = tuple(tuple(int(v) for v in rgb) for rgb in entries.get("palette") or ())
    return replace(classes, mapping=mapping, palette=palette or classes.palette)  # type: ignore[arg-type]


def _masks_folder(root: Path, images: str, masks_dir: str) -> Path:
    """images/train -> masks/train; a folder without images/ in its path -> masks/<folder>."""
    parts = Path(images).parts
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        parts = parts[at + 1 :] if at == 0 else (*parts[:at], masks_dir, *parts[at + 1 :])
        return root / Path(*parts) if masks_dir in parts else root / masks_dir / Path(*parts)
    return root / masks_dir / images


def _from_folders(root: Path, split: str) -> Dataset:
    """Without a description the classes are what the masks of the training split hold."""
    if not (root / "images" / split).is_dir():
        raise DatasetError(f"{root}: the data set has no split {split!r}")
    placeholder = ClassSet(("background",))
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
    return _pair(root, split, root / "images" / split, root / "masks" / split, ClassSet(names), 3)


def _pair(
    root: Path, split: str, images: Path, masks: Path, classes: ClassSet, channels: int
) -> Dataset:
    if not images.is_dir():
        raise DatasetError(f"{images}: there is no such folder of images")
    if not masks.is_dir():
        raise DatasetError(f"{masks}: there is no such folder of masks")
    mask_of = {
        file.relative_to(masks).with_suffix(""): file
        for file in sorted(masks.rglob("*"))
        if file.suffix.lower() in MASK_SUFFIXES and file.is_file()
    }
    samples = []
    for file in sorted(images.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and file.name[0] != ".":
            relative = file.relative_to(images)
            mask = mask_of.pop(relative.with_suffix(""), None)
            samples.append(Sample(relative.as_posix(), file, mask))
    if not samples:
        raise DatasetError(f"{images}: there are no images in this folder")
    return Dataset(root, split, tuple(samples), classes, tuple(mask_of.values()), channels)
