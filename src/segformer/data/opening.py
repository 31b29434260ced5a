"""Opening a data set, however it is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segformer.classes import ClassSet
from segformer.data.class_masks import find_class_masks
from segformer.data.dataset import Dataset
from segformer.data.description import SPLITS, Description, read_description
from segformer.data.errors import DatasetError
from segformer.data.layouts.archive import unpacked
from segformer.data.layouts.base import WHOLE, subfolders
from segformer.data.layouts.recognition import LAYOUTS, Recognized, recognize
from segformer.data.layouts.yolo import describes_polygons
from segformer.data.masks import WHITE, values_of
from segformer.data.multilabel import IGNORED
from segformer.data.pairing import MaskNames, Sample, find_samples
from segformer.data.scenes.opening import open_scenes
from segformer.image import LOSSY_SUFFIXES

_LEVELS = 3
"""Folders, one in another, in which a data set is looked for."""


def open_dataset(source: str | Path, split: str = "train", *, layout: str | None = None) -> Dataset:
    """Open one split of a data set.

    Args:
        source: Folder with ``dataset.yaml``, that file itself, a folder that has
            ``images/{train,val}`` beside ``masks/{train,val}``, a folder in one of the known
            layouts, or a zip of one of these, which is unpacked next to itself.
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
    if file.is_file() and read_description(file).scenes is not None:
        return open_scenes(file, split)
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
        description = read_description(file)
        if description.scenes is not None:
            return description.scenes.splits
        folders = description.folders
        return [split for split in (*SPLITS, WHOLE) if split in folders]
    found = [split for split in SPLITS if (path / "images" / split).is_dir()]
    return found or [WHOLE]


def _locate(source: Path, layout: str | None) -> tuple[Path, Recognized | None]:
    """The folder or description to read, and its layout if it has one of the known ones."""
    if not source.exists():
        raise DatasetError(f"{source}: no such data set")
    if source.suffix.lower() == ".zip" and source.is_file():
        source = unpacked(source)
    if source.name == "data.yaml" or (
        source.name == "dataset.yaml" and describes_polygons(source.parent)
    ):
        source = source.parent  # YOLO's description, beside folders of images and labels
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
            return None if describes_polygons(folder) else folder
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
    if description.multilabel:
        classes = replace(classes, ignore_index=IGNORED)
    elif len(classes) == 2 and not description.values_are_given and not description.colors:
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
        multilabel=description.multilabel,
    )


def _samples(description: Description, split: str) -> tuple[tuple[Sample, ...], tuple[Path, ...]]:
    files = description.channel_files
    images, names = description.folders[split], description.mask_names[split]
    channels = None if files is None else files.find(split)
    if not description.multilabel:
        return find_samples(images, names, split, channels)
    classes = description.classes
    ignored = classes.ignore_index if description.values_are_given else None
    return find_class_masks(images, names, split, classes, ignored, channels)


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
