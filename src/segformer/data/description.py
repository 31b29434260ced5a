"""``dataset.yaml``: what a data set says of itself. Its keys are listed in docs/datasets.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from segformer.classes import ClassSet, printable
from segformer.data.channel_files import ChannelFiles, channel_files
from segformer.data.class_masks import CLASS
from segformer.data.errors import Color, DatasetError
from segformer.data.layouts.base import WHOLE
from segformer.data.multilabel import MOST_CLASSES
from segformer.data.pairing import MaskNames, check_pattern
from segformer.data.scenes.description import SCENE_KEYS, SceneSet, raster_mapping, scene_set

SPLITS = ("train", "val", "test")

_KEYS = frozenset(
    "path train val test masks_dir masks mask_suffix ignore_index names nc label_mapping palette "
    "channels allow_missing_classes images nodata multilabel".split()
)


@dataclass(frozen=True)
class Description:
    """What a data set says of itself.

    Attributes:
        classes: Classes, ignore index and mapping of mask values.
        folders: Folder of the images of each split.
        mask_names: How the masks of each split are named.
        colors: Class id of each color in RGB masks.
        channels: Channels of the images.
        values_are_given: What the values of masks mean is written down (``label_mapping`` or
            ``ignore_index``).
        allow_missing_classes: Classes need not occur in the training split.
        channel_names: Name of each channel, where given.
        channel_files: Where the channels are, if each has its own file.
        nodata: Value in the images that means that there is no data.
        multilabel: Classes may overlap; see `segformer.data.class_masks`.
        scenes: Scenes that are read tile by tile, instead of folders of images.
    """

    classes: ClassSet
    folders: Mapping[str, Path]
    mask_names: Mapping[str, MaskNames]
    colors: Mapping[Color, int] = field(default_factory=dict)
    channels: int = 3
    values_are_given: bool = False
    allow_missing_classes: bool = False
    channel_names: tuple[str, ...] = ()
    channel_files: ChannelFiles | None = None
    nodata: float | None = None
    multilabel: bool = False
    scenes: SceneSet | None = None


def read_description(file: Path) -> Description:
    """Read a ``dataset.yaml``.

    Raises:
        DatasetError: It cannot be read, or an entry is wrong.
    """
    entries = _read_yaml(file)
    unknown = sorted(printable(str(key)) for key in set(entries) - _KEYS - SCENE_KEYS)
    if unknown:
        raise DatasetError(f"{file}: unknown keys: {', '.join(unknown)}")
    if "names" not in entries:
        raise DatasetError(f"{file}: there are no class names; add names: {{0: background, ...}}")
    if entries.get("scenes") is not None:
        return _of_scenes(file, entries)
    without = sorted(SCENE_KEYS & set(entries))
    if without:
        raise DatasetError(f"{file}: keys that need scenes: {', '.join(without)}")
    try:
        classes, colors = _classes(entries)
        files = None
        if entries.get("images") is not None:
            files = channel_files(entries["images"], _root(file, entries))
        folders, mask_names = _places(file, entries, files)
        channels, channel_names = _channels(entries, files)
        nodata = _nodata(entries)
        missing = _typed(entries, "allow_missing_classes", bool, False)
        multilabel = _multilabel(entries, classes)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{file}: {error}") from None
    if entries.get("nc", len(classes)) != len(classes):
        raise DatasetError(f"{file}: nc is {entries['nc']}, but there are {len(classes)} names")
    given = entries.get("label_mapping") is not None or entries.get("ignore_index") is not None
    return Description(
        classes,
        folders,
        mask_names,
        colors,
        channels,
        given,
        missing,
        channel_names,
        files,
        nodata,
        multilabel,
    )


def _of_scenes(file: Path, entries: dict[str, Any]) -> Description:
    """A description of scenes; their number of channels is in ``channels`` only if given."""
    try:
        classes, _ = _classes({**entries, "label_mapping": None})
        channels, channel_names = _channels(entries, None)
        scenes = scene_set(entries, _root(file, entries), classes)
        return Description(
            replace(classes, mapping=raster_mapping(entries, scenes)),
            {},
            {},
            channels=channels if entries.get("channels") is not None else 0,
            allow_missing_classes=_typed(entries, "allow_missing_classes", bool, False),
            channel_names=channel_names,
            nodata=_nodata(entries),
            scenes=scenes,
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{file}: {error}") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise DatasetError(f"{file}: not readable as YAML: {error}") from None
    if not isinstance(entries, dict):
        raise DatasetError(f"{file}: must be keys and values: path, train, val, masks_dir, names")
    return entries


def _typed(entries: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = entries.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ValueError(f"{key} must be of type {kind.__name__}, not {value!r}")
    return value


def _classes(entries: dict[str, Any]) -> tuple[ClassSet, dict[Color, int]]:
    """The classes, and the class id of each color of the palette."""
    ignore_index = entries.get("ignore_index")
    classes = ClassSet.from_names(
        entries["names"], ignore_index=255 if ignore_index is None else int(ignore_index)
    )
    mapping = {int(k): int(v) for k, v in (entries.get("label_mapping") or {}).items()}
    palette = entries.get("palette") or ()
    if not isinstance(palette, (list, tuple, dict)):
        raise ValueError("palette must be a list of [red, green, blue] or {class: [r, g, b]}")
    keys = list(palette) if isinstance(palette, dict) else list(range(len(palette)))
    values = list(palette.values()) if isinstance(palette, dict) else list(palette)
    shown, colors = list(classes.palette), dict[Color, int]()
    if not isinstance(palette, dict) and palette and len(palette) < len(classes):
        raise ValueError(f"{len(classes)} classes but {len(palette)} colors")
    for key, value in zip(keys, values, strict=True):
        color = _color(value)
        class_id = _class_of(key, classes)
        if class_id >= len(classes) and class_id != classes.ignore_index:
            continue  # a palette of more colors than classes
        if color in colors:
            raise ValueError(f"two classes have the color {list(color)} in palette")
        colors[color] = class_id
        if 0 <= class_id < len(classes):
            shown[class_id] = color
    return replace(classes, mapping=mapping, palette=tuple(shown)), colors


def _color(value: Any) -> Color:
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or not all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    ):
        raise ValueError(f"a color is three integers from 0 to 255, not {value!r}")
    return (value[0], value[1], value[2])


def _class_of(key: Any, classes: ClassSet) -> int:
    """Class id of a key of the palette: a name, an id, or "ignore"."""
    if isinstance(key, int):
        return key
    name = printable(str(key))
    if name in classes.names:
        return classes.names.index(name)
    if name == "ignore":
        return classes.ignore_index
    if name.isdecimal():
        return int(name)
    raise ValueError(
        f"palette: there is no class {name!r}; classes are {', '.join(classes.names[:20])}, and "
        "ignore for pixels that are not labeled"
    )


def _channels(entries: dict[str, Any], files: ChannelFiles | None) -> tuple[int, tuple[str, ...]]:
    """Number of channels, and their names where given."""
    channels = entries.get("channels")
    if files is not None:
        if channels is not None and channels != len(files.names):
            raise ValueError(f"channels is {channels!r}, but images names {len(files.names)} files")
        return len(files.names), files.names
    if isinstance(channels, list) and channels:
        names = tuple(printable(str(name)) for name in channels)
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"channels: names must differ and not be empty, not {channels!r}")
        return len(names), names
    channels = 3 if channels is None else channels
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(
            f"channels must be a number of at least 1 or a list of names, not {channels!r}"
        )
    return channels, ()


def _nodata(entries: dict[str, Any]) -> float | None:
    """The value that means that there is no data; NaN always does."""
    value = entries.get("nodata")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise ValueError(f"nodata must be a number, not {value!r}")
    return None if math.isnan(value) else float(value)


def _multilabel(entries: dict[str, Any], classes: ClassSet) -> bool:
    """Whether classes may overlap."""
    multilabel: bool = _typed(entries, "multilabel", bool, False)
    if not multilabel:
        if CLASS in str(entries.get("masks")):
            raise ValueError(
                f"masks with {CLASS} are for classes that overlap; set multilabel: true"
            )
        return False
    for key in ("palette", "label_mapping"):
        if entries.get(key):
            raise ValueError(f"{key} is for one class per pixel; remove it, or multilabel")
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"multilabel needs 2 to {MOST_CLASSES} classes, not {len(classes)}")
    return True


def _root(file: Path, entries: dict[str, Any]) -> Path:
    return file.parent / str(_typed(entries, "path", str, "."))


def _places(
    file: Path, entries: dict[str, Any], files: ChannelFiles | None
) -> tuple[dict[str, Path], dict[str, MaskNames]]:
    """Folders of the images and names of the masks, by split."""
    root = _root(file, entries)
    masks_dir = str(_typed(entries, "masks_dir", str, "masks"))
    suffix = str(_typed(entries, "mask_suffix", str, ""))
    pattern = str(_typed(entries, "masks", str, ""))
    if pattern:
        check_pattern(pattern.replace(CLASS, "class"))
        if suffix or entries.get("masks_dir"):
            raise ValueError("masks replaces masks_dir and mask_suffix; give either")
    folders, mask_names = dict[str, Path](), dict[str, MaskNames]()
    if files is not None:
        given = sorted(entries.keys() & set(SPLITS))
        if given:
            raise ValueError(f"images replaces {', '.join(given)}; give either")
        for split in SPLITS if files.is_divided else (WHOLE,):
            folder = files.folder(split)
            if folder.is_dir():
                masks = root / masks_dir / (split if files.is_divided else "")
                folders[split] = folder
                mask_names[split] = MaskNames(masks, suffix, pattern, root)
        if not folders:
            raise ValueError(f"images: there is no folder {files.folder(SPLITS[0])}")
        return folders, mask_names
    for split in entries.keys() & set(SPLITS):
        if not entries[split]:
            continue
        images = str(_typed(entries, split, str, ""))
        folders[split] = root / images
        mask_names[split] = MaskNames(_masks_folder(root, images, masks_dir), suffix, pattern, root)
    return folders, mask_names


def _masks_folder(root: Path, images: str, masks_dir: str) -> Path:
    """images/train -> masks/train; a folder without images/ in its path -> masks/<folder>.

    Folders outside of the data set, given by an absolute path or with .., have their masks in
    ``masks_dir`` in place of ``images``, or else in ``masks_dir`` beside them.
    """
    folder = Path(images)
    if folder.is_absolute() or ".." in folder.parts:
        folder = (root / folder).resolve()
        if folder.is_relative_to(root.resolve()):
            folder = folder.relative_to(root.resolve())
    parts = folder.parts
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        if folder.is_absolute() or at > 0:
            return root / Path(*parts[:at], masks_dir, *parts[at + 1 :])
        return root / masks_dir / Path(*parts[1:])
    if folder.is_absolute():
        return folder.parent / masks_dir / folder.name
    return root / masks_dir / folder
