"""Images in one folder per class, as ImageNet is laid out: a data set for classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from segformer.classes import ClassSet, printable
from segformer.data.description import SPLITS
from segformer.data.errors import DatasetError
from segformer.data.pairing import visible_files
from segformer.image import IMAGE_SUFFIXES, ImageArray, read_image


@dataclass(frozen=True)
class ClassFolders:
    """One split of a data set of classes.

    Attributes:
        root: Folder it came from.
        split: "train", "val" or another.
        samples: Image files and their class ids, sorted by class and name.
        classes: Classes, named after their folders, sorted by name.
        channels: Channels of the images.
        as_8_bit: Images of more than 8 bits are scaled to 0..255 when read; by default they keep
            their stored values.
    """

    root: Path
    split: str
    samples: tuple[tuple[Path, int], ...]
    classes: ClassSet
    channels: int = 3
    as_8_bit: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[Path, int]]:
        return iter(self.samples)

    def read(self, index: int) -> tuple[ImageArray, int]:
        """Image (H, W, channels) and class id of a sample.

        Raises:
            UnreadableImage: The image cannot be read; the message names it.
        """
        path, class_id = self.samples[index]
        return read_image(path, self.channels, as_8_bit=self.as_8_bit), class_id

    def with_channels(self, channels: int) -> ClassFolders:
        """The same data set, its images read with another number of channels."""
        return replace(self, channels=channels)

    def with_8_bit(self, as_8_bit: bool) -> ClassFolders:
        """The same data set, its images scaled to 0..255 or not."""
        return replace(self, as_8_bit=as_8_bit)


def class_splits(source: str | Path) -> list[str]:
    """The splits that a folder has: those of "train", "val" and "test" that exist.

    Raises:
        DatasetError: There is no such folder.
    """
    path = Path(source)
    if not path.is_dir():
        raise DatasetError(f"{path}: no such data set")
    return [split for split in SPLITS if (path / split).is_dir()]


def open_class_folders(source: str | Path, split: str = "train") -> ClassFolders:
    """Open one split of a data set of classes: ``source/split/CLASS/image.jpg``.

    The classes are the folders of the training split, so that every split has the same ids.

    Args:
        source: Folder of the data set.
        split: Which of its splits.

    Raises:
        DatasetError: There is no such split, it has no images, or a class that training lacks.
    """
    root = Path(source)
    found = class_splits(root)
    if split not in found:
        hint = f"there are {', '.join(found)}" if found else "images go to train/CLASS/ in it"
        raise DatasetError(f"{root}: the data set has no split {split!r}; {hint}")
    names = _folders(root / ("train" if "train" in found else split))
    if len(names) < 2:
        raise DatasetError(
            f"{root / split}: {len(names)} folders of classes; a classifier needs at least two, "
            "each with its images"
        )
    strangers = set(_folders(root / split)) - set(names)
    if strangers:
        raise DatasetError(f"{root / split}: classes that training lacks: {sorted(strangers)[:5]}")
    samples = [
        (file, class_id)
        for class_id, name in enumerate(names)
        if (root / split / name).is_dir()
        for file in visible_files(root / split / name, IMAGE_SUFFIXES)
    ]
    if not samples:
        raise DatasetError(f"{root / split}: there are no images in its folders")
    without = [name for i, name in enumerate(names) if i not in {c for _, c in samples}]
    if split == "train" and without:
        raise DatasetError(f"{root / split}: classes without images: {', '.join(without[:5])}")
    shown = tuple(printable(name) for name in names)
    return ClassFolders(root, split, tuple(samples), ClassSet(shown, ignore_index=-1))


def _folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != ".")
