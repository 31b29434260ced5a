"""LabelMe: a JSON file of shapes beside each image."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.classes import printable
from segformer.data.annotation import BrokenAnnotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    WHOLE,
    Layout,
    LayoutSplit,
    base_name,
    contrast_palette,
    file_head,
    image_files,
    missing_split,
    named_classes,
    read_json,
    require_samples,
    some_files,
    sort_splits,
    split_of,
    walk_files,
    with_background,
)
from segformer.data.layouts.json_values import as_dict, as_int, as_list, as_name, as_points, as_text
from segformer.data.layouts.regions import Region, crop_region, paint, polygon_region
from segformer.data.pairing import Sample
from segformer.image import IMAGE_SUFFIXES, read_mask

_BACKGROUND = ("_background_", "background")
_IGNORE = "__ignore__"
_CIRCLE_CORNERS = 128
_EXAMINED = 5
"""JSON files that a folder is recognized by."""


@dataclass(frozen=True)
class LabelMeClasses:
    """Class id of each label, and the value of ignored pixels."""

    ids: dict[str, int]
    ignore_index: int


@dataclass(frozen=True, slots=True)
class LabelMeShapes:
    """The shapes of one image."""

    file: Path
    classes: LabelMeClasses

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W), later shapes over earlier ones, as LabelMe's own tools paint them."""
        try:
            document = as_dict(read_json(self.file), str(self.file))
            for key, actual in (("imageHeight", height), ("imageWidth", width)):
                if (
                    document.get(key) is not None
                    and as_int(document[key], f"{self.file}: {key}") != actual
                ):
                    raise ValueError(
                        f"{self.file}: {key} is {document[key]}, but the image has {actual}"
                    )
            shapes = as_list(document.get("shapes"), f"{self.file}: shapes")
            regions = [
                self._region(shape, f"{self.file}: shape {number}", height, width)
                for number, shape in enumerate(shapes, 1)
            ]
            return paint(
                regions,
                height,
                width,
                background=0,
                ignore_index=self.classes.ignore_index,
                small_on_top=False,
            )
        except DatasetError:
            raise
        except ValueError as error:
            raise DatasetError(str(error)) from None

    def _region(self, shape: Any, entry: str, height: int, width: int) -> Region:
        shape = as_dict(shape, entry)
        label = as_name(shape.get("label"), f"{entry}: label")
        class_id = self.classes.ids[label]
        entry = f"{entry} ({label})"
        points = as_points(shape.get("points"), f"{entry}: points")
        kind = shape.get("shape_type") or "polygon"
        if kind == "mask":
            return _mask_region(shape, points, class_id, entry, height, width)
        if kind == "rectangle" and len(points) == 4:  # as X-AnyLabeling writes it
            kind = "polygon"
        if kind in ("rectangle", "circle") and len(points) != 2:
            raise ValueError(f"{entry}: a {kind} needs two points, not {len(points)}")
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points
            points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        elif kind == "circle":
            angles = np.linspace(0, 2 * np.pi, _CIRCLE_CORNERS, endpoint=False)
            radius = float(np.hypot(*(points[1] - points[0])))
            points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        elif kind not in ("polygon", "oriented_rectangle", "rotation"):
            raise ValueError(f"{entry}: a shape of type {kind!r} has no area; draw a polygon")
        return polygon_region([points], height, width, class_id, entry)


def _mask_region(
    shape: dict[str, Any],
    points: NDArray[np.float64],
    class_id: int,
    entry: str,
    height: int,
    width: int,
) -> Region:
    """A shape that embeds a small mask, placed by its upper left corner."""
    try:
        encoded = base64.b64decode(as_text(shape.get("mask"), f"{entry}: mask"), validate=True)
    except binascii.Error:
        raise ValueError(f"{entry}: the embedded mask is not base64") from None
    try:
        values = read_mask(encoded)
    except ValueError as error:
        raise ValueError(f"{entry}: the embedded mask cannot be read: {error}") from None
    left, top = (round(float(v)) for v in np.clip(np.nan_to_num(points.min(0)), -1e9, 1e9))
    whole = np.zeros((height, width), bool)
    rows = slice(max(top, 0), min(top + values.shape[0], height))
    columns = slice(max(left, 0), min(left + values.shape[1], width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ValueError(f"{entry}: the mask lies outside the image of {width} x {height} pixels")
    whole[rows, columns] = (
        values[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] > 0
    )
    return crop_region(whole, class_id, entry)


def _is_labelme(file: Path) -> bool:
    head = file_head(file)
    return b'"shapes"' in head and head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")


def _json_files(root: Path) -> list[Path]:
    return list(walk_files(root, (".json",)))


def _recognize(root: Path) -> str | None:
    for file in [f for f in some_files(root) if f.suffix.lower() == ".json"][:_EXAMINED]:
        if _is_labelme(file):
            return f"{file.relative_to(root)} holds the shapes of one image"
    return None


def _split_of(file: Path, root: Path) -> str:
    inside = file.relative_to(root).parts
    return split_of(inside[0]) if len(inside) > 1 else WHOLE


def _splits(root: Path) -> list[str]:
    return sort_splits(_split_of(file, root) for file in _json_files(root) if _is_labelme(file))


def _labels_in(document: Any) -> set[str]:
    """Labels of a document; what is wrong in it is found when its image is read."""
    shapes = document.get("shapes") if isinstance(document, dict) else None
    labels = [
        shape.get("label")
        for shape in (shapes if isinstance(shapes, list) else ())
        if isinstance(shape, dict)
    ]
    return {shown for label in labels if isinstance(label, str) and (shown := printable(label))}


def _listed_labels(root: Path) -> list[str]:
    """Labels of the file that LabelMe itself is started with, where it is there."""
    for name in ("labels.txt", "classes.txt", "class_names.txt"):
        if (root / name).is_file():
            try:
                lines = (root / name).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, ValueError) as error:
                raise DatasetError(f"{root / name}: cannot be read as text: {error}") from None
            return [name for line in lines if (name := printable(line))]
    return []


def _find_image(file: Path, document: Any, beside: dict[str, list[str]]) -> Path:
    """The image of a JSON file: by imagePath, which may be of another computer, or by its name."""
    stated = document.get("imagePath") if isinstance(document, dict) else None
    folder = file.parent
    candidates = []
    if isinstance(stated, str) and stated:
        relative = folder / stated.replace("\\", "/")
        name = base_name(stated)
        candidates = [folder / name, relative, folder.parent / "images" / name]
    candidates += [folder / name for name in beside.get(file.stem, [])]
    try:
        return next((path for path in candidates if path.is_file()), (candidates or [file])[0])
    except (OSError, ValueError):  # a name too long, or with a null character
        return file.with_suffix(".jpg")


def _read(root: Path, split: str) -> LayoutSplit:
    samples, annotated, problems = [], set(), []
    labels = _listed_labels(root)
    found: list[tuple[Path, Path, str]] = []
    seen: set[str] = set()
    beside: dict[Path, dict[str, list[str]]] = {}
    for file in _json_files(root):
        if not _is_labelme(file):
            continue
        broken, document = "", None
        try:
            document = read_json(file)
            seen |= _labels_in(document)
        except DatasetError as error:
            broken = str(error)
        if _split_of(file, root) == split:
            if file.parent not in beside:
                names: dict[str, list[str]] = {}
                for image in file.parent.iterdir():
                    if image.suffix.lower() in IMAGE_SUFFIXES:
                        names.setdefault(image.stem, []).append(image.name)
                beside[file.parent] = names
            found.append((file, _find_image(file, document, beside[file.parent]), broken))
    if not found:
        raise missing_split(root, split, _splits(root))
    names_ = [label for label in labels if label not in (*_BACKGROUND, _IGNORE)]
    names_ += sorted(seen - set(labels) - {*_BACKGROUND, _IGNORE})
    try:
        classes = named_classes(with_background(names_), contrast_palette(len(names_) + 1))
    except ValueError as error:
        raise DatasetError(f"{root}: labels: {error}") from None
    ids = {name: i for i, name in enumerate(classes.names)}
    ids |= {_BACKGROUND[0]: 0, _IGNORE: classes.ignore_index}
    table = LabelMeClasses(ids, classes.ignore_index)
    files_of: dict[Path, list[tuple[Path, str]]] = {}
    for file, image, broken in found:
        files_of.setdefault(image, []).append((file, broken))
    for image, alike in files_of.items():
        file, broken = alike[0]
        if len(alike) > 1:
            listed = ", ".join(other.name for other, _ in alike)
            broken = f"{file}: {len(alike)} files annotate {image.name}: {listed}"
        mask = BrokenAnnotation(file, broken) if broken else LabelMeShapes(file, table)
        name = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
        samples.append(Sample(name.as_posix(), image, mask))
        annotated.add(image)
    rest = [i for i in image_files(root) if _split_of(i, root) == split and i not in annotated]
    if rest:
        problems.append(
            f"{root}: {len(rest)} images have no JSON file and are not used: {rest[0].name}, ..."
        )
    return LayoutSplit(require_samples(samples, root, split), classes, problems=tuple(problems))


LABELME = Layout("labelme", "LabelMe JSON", _recognize, _splits, _read)
