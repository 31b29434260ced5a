"""The keys of ``dataset.yaml`` that describe scenes and their labels; see docs/datasets.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer.classes import ClassSet, printable
from segformer.data.errors import DatasetError

SCENE_KEYS = frozenset(
    "scenes tile_size tile_overlap class_column background all_touched bands resolution "
    "val_fraction block_size block_gap split_seed".split()
)
"""Keys of ``dataset.yaml`` that need ``scenes``."""

REPLACED_KEYS = frozenset("train val test masks_dir masks mask_suffix images multilabel".split())
"""Keys that cannot stand beside ``scenes``."""

RASTER_SUFFIXES = frozenset((".tif", ".tiff", ".vrt", ".img", ".jp2", ".png"))
"""Suffixes of labels that are rasters; all others are polygons."""

_ENTRY_KEYS = frozenset(("image", "labels", "area", "layer", "split"))
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SceneEntry:
    """One scene.

    Attributes:
        image: File of the scene.
        labels: Polygons or a raster of class ids. A scene of the split "test" may be without.
        area: Polygons of the area that is labeled. Default: the whole scene.
        layer: Layer of the labels, where their file has several.
        split: "train", "val" or "test". Default: as `SceneSet.val_fraction` divides.
    """

    image: Path
    labels: Path | None = None
    area: Path | None = None
    layer: str | None = None
    split: str | None = None

    @property
    def has_polygons(self) -> bool:
        """Whether the labels are polygons, not a raster."""
        return self.labels is not None and self.labels.suffix.lower() not in RASTER_SUFFIXES


@dataclass(frozen=True)
class SceneSet:
    """Scenes, and how they are cut and divided.

    Attributes:
        scenes: The scenes.
        tile_size: Side of the tiles, pixels.
        tile_overlap: Of neighboring training tiles at least, pixels.
        class_column: Column of the class of a polygon. Default: all polygons have the one class
            that is not ``background``.
        value_ids: Class id of each value of ``class_column``; None is an empty value.
        background: Class id of pixels of the labeled area that no polygon covers. Default: they
            are not labeled.
        all_touched: A polygon covers all pixels that it touches, not only those whose centers it
            contains.
        bands: Numbers of the bands, from 1, in the order of the channels. Default: all.
        resolution: Size of a pixel, in the units of the scenes' coordinates; scenes of another
            resolution are resampled.
        val_fraction: Fraction of the blocks for validation, of scenes without a split.
        block_size: Side of the blocks, pixels.
        block_gap: Distance between training tiles and blocks for validation, pixels.
        split_seed: Of the choice of blocks.
    """

    scenes: tuple[SceneEntry, ...]
    tile_size: int = 512
    tile_overlap: int = 0
    class_column: str | None = None
    value_ids: Mapping[str | int | None, int] = field(default_factory=dict)
    background: int | None = None
    all_touched: bool = False
    bands: tuple[int, ...] | None = None
    resolution: float | None = None
    val_fraction: float = 0.2
    block_size: int = 2048
    block_gap: int = 128
    split_seed: int = 0

    @property
    def only_class(self) -> int:
        """Class id of all polygons, where there are two classes and no ``class_column``."""
        return 1 - self.background if self.background in (0, 1) else 1

    @property
    def splits(self) -> list[str]:
        """Names of the splits, "train" first."""
        named = {scene.split for scene in self.scenes}
        if None in named:
            named |= {"train", "val"} if self.val_fraction else {"train"}
        return [split for split in _SPLITS if split in named]


def scene_set(entries: Mapping[str, Any], root: Path, classes: ClassSet) -> SceneSet:
    """Read the keys of a ``dataset.yaml`` with ``scenes``.

    Args:
        entries: The whole file.
        root: Folder that paths start from.
        classes: Its classes.

    Raises:
        DatasetError: An entry is wrong, or a file does not exist.
    """
    excluded = sorted(
        key for key in REPLACED_KEYS if entries.get(key) is not None and entries[key] is not False
    )
    if excluded:
        raise DatasetError(f"scenes replaces {', '.join(excluded)}; give either")
    scenes = _scenes(entries["scenes"], root)
    tile_size = _integer(entries, "tile_size", 512, least=32)
    default_fraction = 0.0 if any(scene.split in ("train", "val") for scene in scenes) else 0.2
    found = SceneSet(
        scenes,
        tile_size=tile_size,
        tile_overlap=_integer(entries, "tile_overlap", 0, least=0),
        class_column=_word(entries, "class_column"),
        value_ids=_value_ids(entries.get("label_mapping") or {}, classes),
        background=_background(entries, classes),
        all_touched=_flag(entries, "all_touched"),
        bands=_bands(entries.get("bands")),
        resolution=_number(entries, "resolution", None),
        val_fraction=_number(entries, "val_fraction", default_fraction) or 0.0,
        block_size=_integer(entries, "block_size", 4 * tile_size, least=1),
        block_gap=_integer(entries, "block_gap", tile_size // 4, least=1),
        split_seed=_integer(entries, "split_seed", 0, least=0),
    )
    _check(found, classes)
    return found


def raster_mapping(entries: Mapping[str, Any], scenes: SceneSet) -> dict[int, int]:
    """Class id of each value of ``label_mapping`` that a label raster can hold: the numbers."""
    keys = [int(key) for key in entries.get("label_mapping") or () if _is_integer(key)]
    return {key: scenes.value_ids[key] for key in keys}


def _check(scenes: SceneSet, classes: ClassSet) -> None:
    """Raise a DatasetError where keys do not fit together."""
    if not 0 <= scenes.val_fraction < 1:
        raise DatasetError(f"val_fraction must be from 0 to below 1, not {scenes.val_fraction}")
    if scenes.resolution is not None and scenes.resolution <= 0:
        raise DatasetError(f"resolution must be above 0, not {scenes.resolution}")
    if scenes.tile_overlap >= scenes.tile_size:
        raise DatasetError(
            f"tile_overlap is {scenes.tile_overlap}, but tiles have {scenes.tile_size} pixels"
        )
    if scenes.block_size < scenes.tile_size + 2 * scenes.block_gap:
        raise DatasetError(
            f"block_size is {scenes.block_size}, but a tile of {scenes.tile_size} pixels and a gap "
            f"of {scenes.block_gap} on both sides need "
            f"{scenes.tile_size + 2 * scenes.block_gap}; choose larger blocks, smaller tiles or a "
            "smaller block_gap"
        )
    has_polygons = any(scene.has_polygons for scene in scenes.scenes)
    if has_polygons and scenes.class_column is None:
        if scenes.background is None:
            raise DatasetError(
                "without class_column all polygons are of one class; write class_column: COLUMN, "
                "or background: NAME, the class of pixels that no polygon covers"
            )
        if len(classes) != 2 or scenes.background not in (0, 1):
            raise DatasetError(
                f"without class_column all polygons are of one class, but there are "
                f"{len(classes)} classes; write class_column: COLUMN"
            )


def _scenes(value: Any, root: Path) -> tuple[SceneEntry, ...]:
    if not isinstance(value, list) or not value:
        raise DatasetError("scenes must be a list: [{image: a.tif, labels: a.gpkg}, ...]")
    found: list[SceneEntry] = []
    for number, entry in enumerate(value, 1):
        where = f"scenes: entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise DatasetError(f"{where} must be {{image: a.tif, labels: a.gpkg}}, not {entry!r}")
        unknown = sorted(printable(str(key)) for key in set(entry) - _ENTRY_KEYS)
        if unknown:
            raise DatasetError(f"{where}: unknown keys: {', '.join(unknown)}")
        for key in _ENTRY_KEYS:
            if entry.get(key) is not None and not isinstance(entry[key], str):
                raise DatasetError(f"{where}: {key} must be a word, not {entry[key]!r}")
        split = entry.get("split")
        if split is not None and split not in _SPLITS:
            raise DatasetError(f"{where}: split must be train, val or test, not {split!r}")
        if entry.get("labels") is None and split != "test":
            raise DatasetError(f"{where}: labels are missing; only split: test can be without")
        for image in _images(entry["image"], root, where):
            labels, area = (
                _of_image(entry.get(key), root, image, where) for key in ("labels", "area")
            )
            found.append(SceneEntry(image, labels, area, entry.get("layer"), split))
    repeated = [image for image, count in Counter(e.image for e in found).items() if count > 1]
    if repeated:
        raise DatasetError(f"scenes: {repeated[0]} is given twice")
    return tuple(found)


def _of_image(path: str | None, root: Path, image: Path, where: str) -> Path | None:
    """The file that a path with {stem} means for an image."""
    if path is None:
        return None
    file = root / path.replace("{stem}", image.stem)
    if not file.exists():
        raise DatasetError(f"{where}: {file}: no such file")
    return file


def _images(pattern: str, root: Path, where: str) -> list[Path]:
    """The files of a path that may have * in it."""
    if "*" not in pattern:
        if not (root / pattern).exists():
            raise DatasetError(f"{where}: {root / pattern}: no such file")
        return [root / pattern]
    base = Path(Path(pattern).anchor) if Path(pattern).is_absolute() else root
    found = sorted(base.glob(str(Path(pattern).relative_to(Path(pattern).anchor))))
    if not found:
        raise DatasetError(f"{where}: no file is called {base / pattern}")
    return found


def _value_ids(mapping: Any, classes: ClassSet) -> dict[str | int | None, int]:
    """Class id of each value of a class column: names, ids, and what ``label_mapping`` says."""
    if not isinstance(mapping, dict):
        raise DatasetError("label_mapping must be {value: class}")
    found: dict[str | int | None, int] = {name: i for i, name in enumerate(classes.names)}
    found |= {i: i for i in range(len(classes))}
    found[classes.ignore_index] = classes.ignore_index
    for key, value in mapping.items():
        known = key if key is None else int(key) if _is_integer(key) else str(key)
        found[known] = _class_id("label_mapping", value, classes)
    return found


def _is_integer(key: Any) -> bool:
    """Whether a key of ``label_mapping`` is a number, also one that is written in quotes."""
    return isinstance(key, int) or (isinstance(key, str) and key.lstrip("-").isdecimal())


def _class_id(key: str, value: Any, classes: ClassSet) -> int:
    """The class id of a name, an id or the word ignore."""
    if isinstance(value, str) and value in classes.names:
        return classes.names.index(value)
    if value in ("ignore", classes.ignore_index):
        return classes.ignore_index
    if isinstance(value, int) and 0 <= value < len(classes):
        return int(value)
    raise DatasetError(
        f"{key}: there is no class {value!r}; classes are {', '.join(classes.names[:20])}"
    )


def _background(entries: Mapping[str, Any], classes: ClassSet) -> int | None:
    value = entries.get("background")
    return None if value is None else _class_id("background", value, classes)


def _bands(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(band, int) and band >= 1 for band in value)
    ):
        raise DatasetError(f"bands must be a list of numbers from 1, not {value!r}")
    return tuple(value)


def _integer(entries: Mapping[str, Any], key: str, default: int, *, least: int) -> int:
    value = entries.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DatasetError(f"{key} must be a whole number of at least {least}, not {value!r}")
    return value


def _number(entries: Mapping[str, Any], key: str, default: float | None) -> float | None:
    value = entries.get(key)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise DatasetError(f"{key} must be a number, not {value!r}")
    return float(value)


def _word(entries: Mapping[str, Any], key: str) -> str | None:
    value = entries.get(key)
    if value is not None and not isinstance(value, str):
        raise DatasetError(f"{key} must be a word, not {value!r}")
    return value


def _flag(entries: Mapping[str, Any], key: str) -> bool:
    value = entries.get(key)
    if value is not None and not isinstance(value, bool):
        raise DatasetError(f"{key} must be true or false, not {value!r}")
    return bool(value)
