"""Mapillary Vistas v1.2 and v2.0."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from segformer.classes import ClassSet
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    Layout,
    LayoutSplit,
    class_table,
    first_folder,
    has_images,
    missing_split,
    pair_folders,
    read_json,
    require_samples,
)

_FOLDERS = {"train": "training", "val": "validation"}


def _labels(root: Path, version: str, split: str) -> Path | None:
    """Folder of the masks; releases before v2.0 have no folder for the version."""
    folder = root / _FOLDERS[split]
    plain = ("labels",) if version == "v1.2" else ()
    return first_folder(folder, f"{version}/labels", *plain)


def _splits(root: Path, version: str) -> list[str]:
    return [
        split
        for split, folder in _FOLDERS.items()
        if (root / folder / "images").is_dir() and _labels(root, version, split)
    ]


def _recognize(root: Path, version: str) -> str | None:
    for split in _splits(root, version):
        labels = _labels(root, version, split)
        if labels is not None and has_images(labels):
            where = labels.relative_to(root).as_posix()
            return f"{where} is beside {_FOLDERS[split]}/images"
    return None


def _classes(root: Path, version: str) -> ClassSet:
    """Names and colors of the release's own configuration, or the built-in ones."""
    names = (f"config_{version}.json", *(("config.json",) if version == "v1.2" else ()))
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None:
        return class_table(f"mapillary_{version}")
    try:
        labels = read_json(file)["labels"]
        kept = [i for i, label in enumerate(labels) if label["name"] != "void--unlabeled"]
        mapping = dict.fromkeys(set(range(len(labels))) - set(kept), 255)
        mapping |= {value: i for i, value in enumerate(kept) if value != i}
        readable = tuple(labels[i].get("readable") or labels[i]["name"] for i in kept)
        if len(set(readable)) < len(readable):
            readable = tuple(labels[i]["name"] for i in kept)
        colors = ([int(v) for v in labels[i]["color"]] for i in kept)
        palette = tuple((red, green, blue) for red, green, blue, *_ in colors)
        return replace(
            class_table(f"mapillary_{version}"), names=readable, palette=palette, mapping=mapping
        )
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{file}: cannot be read as the list of classes: {error!r}") from None


def _read(root: Path, split: str, version: str) -> LayoutSplit:
    found = _splits(root, version)
    if split not in found:
        raise missing_split(root, split, found)
    images, labels = root / _FOLDERS[split] / "images", _labels(root, version, split)
    assert labels is not None
    samples, strays = pair_folders(images, labels)
    return LayoutSplit(
        require_samples(samples, images, split), _classes(root, version), tuple(strays)
    )


def _layout(version: str) -> Layout:
    return Layout(
        f"mapillary-{version}",
        f"Mapillary Vistas {version}",
        partial(_recognize, version=version),
        partial(_splits, version=version),
        partial(_read, version=version),
    )


MAPILLARY = (_layout("v1.2"), _layout("v2.0"))
