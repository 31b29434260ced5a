"""A data set: pairs of an image and a mask, and the classes of the masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.annotation import Annotation
from segformer.data.description import SPLITS, Description, read_description
from segformer.data.errors import Color, DatasetError
from segformer.data.layouts.archive import unpacked
from segformer.data.layouts.base import WHOLE, subfolders
from segformer.data.layouts.recognition import LAYOUTS, Recognized, recognize
from segformer.data.masks import WHITE, read_values, to_class_ids, values_of
from segformer.data.pairing import MaskNames, Sample, find_samples
from segformer.image import (
    LOSSY_SUFFIXES,
    ImageArray,
    exif_orientation,
    image_name,
    missing_pixels,
    read_image,
    turn_upright,
)

__all__ = ["SPLITS", "Dataset", "DatasetError", "Sample", "open_dataset", "splits"]

_LEVELS = 3
"""Folders, one in another, in which a data set is looked for."""

_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


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
        as_8_bit: Images of more than 8 bits are scaled to 0..255 when read; by default they keep
            their stored values.
        colors: Class id of each color, for RGB masks.
        described: The classes come from a ``dataset.yaml``, not from the values of the masks.
        allow_missing_classes: Classes need not occur in the training split.
        taken_for: The layout that the source was taken for, and why.
        notes: Sentences about what was recognized or decided, for the user to read.
        problems: Sentences about entries of annotation files that belong to no sample.
        nodata: Value in the images that means that there is no data; GDAL's tag in TIFF files
            is used where it is None.
        channel_names: Name of each channel, where known.
    """

    root: Path
    split: str
    samples: tuple[Sample, ...]
    classes: ClassSet
    stray_masks: tuple[Path, ...] = field(default=(), repr=False)
    channels: int = 3
    as_8_bit: bool = False
    colors: Mapping[Color, int] = field(default_factory=dict, repr=False)
    described: bool = True
    allow_missing_classes: bool = False
    taken_for: str = ""
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    nodata: float | None = None
    channel_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def has_masks(self) -> bool:
        """Whether any image has a mask; a test split may be without."""
        return any(sample.mask is not None for sample in self.samples)

    def read(self, sample: Sample) -> tuple[ImageArray, NDArray[np.integer]]:
        """Image (H, W, channels) and class ids (H, W) of a sample.

        Where the EXIF orientation turns an image by 90 degrees, and its mask has the size of
        the image before turning, the mask is turned too. Pixels without data are NaN in the image
        (8-bit images keep their values), and ignored in the mask.

        Raises:
            ValueError: A file cannot be read, there is no mask, sizes differ, or the mask has
                values outside the classes.
        """
        image = read_image(sample.image, self.channels, as_8_bit=self.as_8_bit, nodata=self.nodata)
        return image, self.read_mask(sample, image)

    def read_mask(self, sample: Sample, image: ImageArray) -> NDArray[np.integer]:
        """Class ids (H, W) of a sample whose image has been read; see `read`.

        Raises:
            ValueError: The mask cannot be read, there is none, its size is not that of the image,
                or it has values outside the classes.
        """
        if sample.mask is None:
            raise DatasetError(f"{image_name(sample.image)}: there is no mask for this image")
        class_ids = self._class_ids(sample, sample.mask, image)
        missing = missing_pixels(image, self.nodata)
        if missing is not None and missing.any():
            class_ids = np.where(missing, np.int32(self.classes.ignore_index), class_ids)
        return class_ids

    def _class_ids(
        self, sample: Sample, mask: Path | Annotation, image: ImageArray
    ) -> NDArray[np.integer]:
        """Class ids (H, W) of a sample whose image has been read."""
        height, width = image.shape[:2]
        if not isinstance(mask, Path):
            class_ids = mask.rasterize(height, width)
            if class_ids.shape != (height, width):
                raise DatasetError(_describe_sizes(sample, image.shape[:2], class_ids.shape))
            return class_ids
        values = read_values(mask)
        if height != width and values.shape[:2] == (width, height):
            orientation = exif_orientation(sample.image_files[0])
            if orientation in _SIDEWAYS and exif_orientation(mask) == 1:
                values = turn_upright(values, orientation)
        if values.shape[:2] != (height, width):
            raise DatasetError(_describe_sizes(sample, image.shape[:2], values.shape[:2]))
        return to_class_ids(values, mask, self.classes, self.colors)

    def with_channels(self, channels: int) -> Dataset:
        """The same data set, its images read with another number of channels."""
        names = self.channel_names if channels == self.channels else ()
        return replace(self, channels=channels, channel_names=names)

    def with_8_bit(self, as_8_bit: bool) -> Dataset:
        """The same data set, its images scaled to 0..255 or not."""
        return replace(self, as_8_bit=as_8_bit)


def orientation_is_unclear(sample: Sample, is_square: bool) -> bool:
    """Whether an image is turned by EXIF and the size of its mask cannot tell if the mask is.

    Such masks are taken as drawn on the upright image, which is what annotation tools show.

    Args:
        sample: Image and mask.
        is_square: Height and width of the image are the same.
    """
    if not isinstance(sample.mask, Path):
        return False
    orientation = exif_orientation(sample.image_files[0])
    if orientation == 1 or exif_orientation(sample.mask) != 1:
        return False
    return is_square or orientation not in _SIDEWAYS


def _describe_sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    """The sentence for an image and a mask of different sizes."""
    return (
        f"{sample.mask_file}: the mask is {mask[1]} x {mask[0]} pixels, "
        f"its image {image[1]} x {image[0]}"
    )


def open_dataset(source: str | Path, split: str = "train", *, layout: str | None = None) -> Dataset:
    """Open one split of a data set.

    Args:
        source: Folder with ``dataset.yaml``, that file itself, a folder that has
            ``images/{train,val}`` beside ``masks/{train,val}``, a folder in one of the known
            layouts, or a zip of one of these, which is unpacked beside itself.
        split: Which of its splits; "all" is the only one of a source that is not divided.
        layout: Name of the layout. Default: the one the folder is recognized by.

    Raises:
        DatasetError: There is none, it can be read in several ways, the description is wrong, or
            the split is empty.
    """
    path, recognized = _locate(Path(source), layout)
    if recognized is not None:
        return _from_layout(recognized, split)
    file = path / "dataset.yaml" if path.is_dir() else path
    return _from_description(file, split) if file.is_file() else _from_folders(path, split)


def splits(source: str | Path, *, layout: str | None = None) -> list[str]:
    """The splits a data set has, "train", "val" and "test" first.

    Args:
        source: As `open_dataset` takes it.
        layout: Name of the layout. Default: the one the folder is recognized by.

    Raises:
        DatasetError: It is no data set.
    """
    path, recognized = _locate(Path(source), layout)
    if recognized is not None:
        return recognized.layout.splits(recognized.root)
    file = path / "dataset.yaml" if path.is_dir() else path
    if file.is_file():
        folders = read_description(file).folders
        return [split for split in (*SPLITS, WHOLE) if split in folders]
    found = [split for split in SPLITS if (path / "images" / split).is_dir()]
    return found or [WHOLE]


def _locate(source: Path, layout: str | None) -> tuple[Path, Recognized | None]:
    """The folder or description to read, and its layout if it has one of the known ones."""
    if not source.exists():
        raise DatasetError(f"{source}: no such data set")
    if source.suffix.lower() == ".zip" and source.is_file():
        source = unpacked(source)
    if source.name == "data.yaml":  # YOLO's description names a folder of images and labels
        source = source.parent
    if source.is_file() and layout is None:
        return source, None
    own = _own_folder(source) if layout is None else None
    if own is not None:
        return own, None
    if not source.is_dir():
        raise DatasetError(f"{source}: a layout can be given for a folder or a zip")
    recognized = recognize(source, layout)
    if recognized is None:
        known = ", ".join(layout.title for layout in LAYOUTS)
        raise DatasetError(
            f"{source}: not a data set: it needs a dataset.yaml, or images in images/train and "
            f"images/val beside masks of the same names in masks/train and masks/val, or one of "
            f"the layouts {known}"
        )
    return recognized.root, recognized


def _own_folder(source: Path) -> Path | None:
    """The folder with a description, or with images and masks: the source or the only one inside.

    Zips often hold one folder that holds everything.
    """
    folder = source
    for _ in range(_LEVELS):
        if (folder / "dataset.yaml").is_file():
            return folder
        images, masks = folder / "images", folder / "masks"
        if images.is_dir() and (masks.is_dir() or (images / "test").is_dir()):
            return folder
        inside = subfolders(folder)
        if len(inside) != 1:
            return None
        folder = inside[0]
    return None


def _from_layout(recognized: Recognized, split: str) -> Dataset:
    layout, root = recognized.layout, recognized.root
    found = layout.read(root, split)
    return Dataset(
        root=root,
        split=split,
        samples=found.samples,
        classes=found.classes,
        stray_masks=found.stray_masks,
        allow_missing_classes=True,
        taken_for=f"{layout.title} ({layout.name}): {recognized.reason}",
        notes=(f"read as {layout.title}: {recognized.reason}",),
        problems=found.problems,
    )


def _from_description(file: Path, split: str) -> Dataset:
    description = read_description(file)
    if split not in description.folders:
        raise DatasetError(f"{file}: the data set has no split {split!r}")
    samples, stray = _samples(description, split)
    classes, notes = description.classes, list[str]()
    if len(classes) == 2 and not description.values_are_given and not description.colors:
        training = samples
        if split != "train" and "train" in description.folders:
            training, _ = _samples(description, "train")
        classes, notes = _black_and_white(classes, _masks_of(training))
    return Dataset(
        root=file.parent,
        split=split,
        samples=samples,
        classes=classes,
        stray_masks=stray,
        channels=description.channels,
        colors=description.colors,
        allow_missing_classes=description.allow_missing_classes,
        taken_for=f"images and masks as {file.name} describes them",
        notes=(*notes, *_lossy_notes(classes, _masks_of(samples))),
        nodata=description.nodata,
        channel_names=description.channel_names,
    )


def _samples(description: Description, split: str) -> tuple[tuple[Sample, ...], tuple[Path, ...]]:
    files = description.channel_files
    return find_samples(
        description.folders[split],
        description.mask_names[split],
        split,
        None if files is None else files.find(split),
    )


def _masks_of(samples: tuple[Sample, ...]) -> list[Path]:
    return [sample.mask for sample in samples if isinstance(sample.mask, Path)]


def _black_and_white(classes: ClassSet, masks: list[Path]) -> tuple[ClassSet, list[str]]:
    """Two classes whose masks hold only 0 and 255: the second class is the 255."""
    found = values_of(masks, stop_at_others=True)
    white = found & WHITE
    if len(white) != 1 or found != white | {0}:
        return classes, []
    (value,) = white
    note = (
        f"masks hold only 0 and {value}: 0 is {classes.names[0]!r}, {value} is "
        f"{classes.names[1]!r} (to ignore {value} instead, write ignore_index: {value} into "
        "dataset.yaml)"
    )
    return replace(classes, mapping={value: 1}), [note]


def _lossy_notes(classes: ClassSet, masks: list[Path]) -> list[str]:
    lossy = sum(mask.suffix.lower() in LOSSY_SUFFIXES for mask in masks)
    if not lossy or len(classes) != 2:
        return []
    dark, bright = classes.mapping.get(0, 0), classes.mapping.get(255, 1)
    words = {**dict(enumerate(map(repr, classes.names))), classes.ignore_index: "ignored"}
    return [
        f"{lossy} masks are JPEG, which changes values: gray levels of 128 and more are "
        f"{words[bright]}, darker ones {words[dark]}"
    ]


def _from_folders(root: Path, split: str) -> Dataset:
    """Without a description, the classes are the values of the training masks."""
    divided = any((root / "images" / name).is_dir() for name in SPLITS)
    if not (root / "images" / split).is_dir() if divided else split != WHOLE:
        found = "" if divided else f"; it is not divided, its only split is {WHOLE!r}"
        raise DatasetError(f"{root}: the data set has no split {split!r}{found}")

    def pair(name: str) -> tuple[tuple[Sample, ...], tuple[Path, ...]]:
        folder = name if divided else "."
        names = MaskNames(root / "masks" / folder, root=root)
        return find_samples(root / "images" / folder, names, name)

    samples, stray = pair(split)
    training = samples
    if split != "train" and (root / "images/train").is_dir() and (root / "masks/train").is_dir():
        training, _ = pair("train")
    masks = _masks_of(training)
    classes, notes = _black_and_white(ClassSet(("background", "foreground")), masks)
    if not notes:
        values = values_of(masks)
        highest = max(values - {255}, default=0)
        if highest > 254:
            raise DatasetError(
                f"{root}: masks hold values up to {highest}; describe the classes in a dataset.yaml"
            )
        lossy = any(mask.suffix.lower() in LOSSY_SUFFIXES for mask in masks)
        if not lossy or highest > 1:
            numbered = (f"class {i}" for i in range(1, highest + 1))
            classes = ClassSet(("background", *numbered))
    return Dataset(
        root=root,
        split=split,
        samples=samples,
        classes=classes,
        stray_masks=stray,
        described=False,
        taken_for="images/ beside masks/, without dataset.yaml",
        notes=(*notes, *_lossy_notes(classes, _masks_of(samples))),
    )
