"""COCO JSON, with the folders of COCO itself or as Roboflow and CVAT export it.

Regions with ``iscrowd`` are painted as their class, like others: in COCO they are groups of one
class, and CVAT sets it for every mask.
"""

from __future__ import annotations

import json
import pickle
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.annotation import BrokenAnnotation
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import (
    WHOLE,
    Layout,
    LayoutSplit,
    base_name,
    contrast_palette,
    file_head,
    missing_split,
    named_classes,
    read_json,
    require_samples,
    sort_splits,
    split_of,
    subfolders,
    with_background,
)
from segformer.data.layouts.json_values import as_dict, as_int, as_list, as_name, as_text
from segformer.data.layouts.regions import Region, paint, polygon_region, run_length_region
from segformer.data.pairing import Sample

_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "image_info_", "stuff_")
_KEYS = (b'"images"', b'"annotations"', b'"categories"')


@dataclass(frozen=True)
class CocoIndex:
    """The annotations of one JSON file, packed image by image until they are needed.

    Attributes:
        file: The JSON file.
        packed: Pickled entries (id, category, segmentation) of all images in turn.
        starts: Where the entries of each image begin in ``packed``, and the end of the last.
        sizes: (N, 2) height and width as the file states them, or zeros.
        ids: Category id -> class id.
        ignore_index: Of the classes.
    """

    file: Path
    packed: bytes = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    sizes: NDArray[np.int64] = field(repr=False)
    ids: dict[int, int]
    ignore_index: int


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """The annotations of one image."""

    index: CocoIndex
    row: int

    @property
    def file(self) -> Path:
        """The JSON file."""
        return self.index.file

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W), small objects over large ones."""
        index = self.index
        try:
            stated = tuple(index.sizes[self.row].tolist())
            if 0 not in stated and stated != (height, width):
                raise ValueError(
                    f"{index.file}: the image is stated as {stated[1]} x {stated[0]} pixels, but "
                    f"has {width} x {height}"
                )
            packed = index.packed[index.starts[self.row] : index.starts[self.row + 1]]
            regions = [_region(index, entry, height, width) for entry in pickle.loads(packed)]
            return paint(
                regions,
                height,
                width,
                background=0,
                ignore_index=index.ignore_index,
                small_on_top=True,
            )
        except ValueError as error:
            raise DatasetError(str(error)) from None


def _region(index: CocoIndex, packed: tuple[Any, ...], height: int, width: int) -> Region:
    identity, category, segmentation = packed
    entry = f"{index.file}: annotation {identity}"
    if not isinstance(category, int) or category not in index.ids:
        raise ValueError(f"{entry}: category {category!r} is not among the categories of the file")
    class_id = index.ids[category]
    if isinstance(segmentation, dict):
        size = [as_int(v, f"{entry}: size") for v in as_list(segmentation.get("size"), entry)]
        if size != [height, width]:
            raise ValueError(
                f"{entry}: the run lengths are for (height, width) {size}, but the image has "
                f"{[height, width]}"
            )
        counts = segmentation.get("counts")
        if not isinstance(counts, (str, list)):
            raise ValueError(f"{entry}: counts: expected run lengths, not {counts!r}")
        return run_length_region(counts, size, class_id, entry)
    if not segmentation:
        raise ValueError(f"{entry}: there is no segmentation; boxes alone cannot be trained on")
    polygons = []
    for flat in as_list(segmentation, f"{entry}: segmentation"):
        if not isinstance(flat, array):
            raise ValueError(f"{entry}: expected polygons [x1, y1, x2, y2, ...]")
        if len(flat) % 2:
            raise ValueError(f"{entry}: {len(flat)} coordinates; x and y must alternate")
        polygons.append(np.asarray(flat, np.float64).reshape(-1, 2))
    return polygon_region(polygons, height, width, class_id, entry)


def _is_coco(file: Path) -> bool:
    if file.name.startswith(_OTHER_TASKS):
        return False
    head = file_head(file)
    return (
        head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")
        and any(key in head for key in _KEYS)
        and b'"shapes"' not in head
    )


def _files(root: Path) -> dict[str, list[Path]]:
    """Split -> JSON files, in the root, in annotations/ and in the folders of the splits."""
    found: dict[str, list[Path]] = {}
    for folder in (root, *subfolders(root)):
        for file in sorted(folder.glob("*.json")):
            if _is_coco(file):
                split = split_of(file.stem)
                if split == WHOLE and folder != root:
                    split = split_of(folder.name)
                found.setdefault(split, []).append(file)
    return found


def _recognize(root: Path) -> str | None:
    for files in _files(root).values():
        return f"{files[0].relative_to(root)} has images, annotations and categories"
    return None


def _splits(root: Path) -> list[str]:
    return sort_splits(_files(root))


def _categories(file: Path, document: Any = None) -> dict[int, str]:
    """Category id -> name, without Roboflow's category 0 that only groups the others."""
    given = _quick_categories(file) if document is None else document.get("categories")
    if given is None:
        given = as_dict(read_json(file), str(file)).get("categories")
    named: dict[int, str] = {}
    parents: list[Any] = []
    rows = as_list(given, f"{file}: categories")
    for number, given_row in enumerate(rows, 1):
        entry = f"{file}: category {number}"
        row = as_dict(given_row, entry)
        identity, name = as_int(row.get("id"), f"{entry}: id"), as_name(row.get("name"), entry)
        if identity in named:
            raise ValueError(f"{file}: the category id {identity} occurs twice")
        named[identity] = name
        if identity:
            parents.append(row.get("supercategory"))
    first: dict[str, Any] = next((row for row in rows if row.get("id") == 0), {})
    if first.get("supercategory") == "none" and first.get("name") in parents:
        del named[0]
    if len(set(named.values())) < len(named):
        repeated = sorted(n for n in named.values() if list(named.values()).count(n) > 1)
        raise ValueError(f"{file}: two categories are called {repeated[0]!r}")
    if not named:
        raise ValueError(f"{file}: there are no categories")
    return named


def _quick_categories(file: Path) -> Any:
    """The categories of a large file without parsing all of it; None where that fails."""
    try:
        text = file.read_bytes()
        at = text.rfind(b'"categories"')
        match = re.match(rb'"categories"\s*:\s*', text[at : at + 64]) if at >= 0 else None
        if match is None or text.find(b'"categories"') != at:
            return None
        value, _ = json.JSONDecoder().raw_decode(
            text[at + match.end() : at + (1 << 24)].decode("utf-8", "ignore")
        )
        return value
    except (OSError, ValueError, RecursionError):
        return None


def _classes(root: Path, categories: dict[Path, dict[int, str]]) -> ClassSet:
    """The classes of all files together, in this order and by name, the background first."""
    names: list[str] = []
    for given in categories.values():
        names += [given[i] for i in sorted(given) if given[i] not in names]
    named = with_background(names)
    try:
        return named_classes(named, contrast_palette(len(named)))
    except ValueError as error:
        raise DatasetError(f"{root}: categories: {error}") from None


def _read(root: Path, split: str) -> LayoutSplit:
    files = _files(root)
    if split not in files:
        raise missing_split(root, split, sort_splits(files))
    samples: list[Sample] = []
    problems: list[str] = []
    try:
        documents = {file: as_dict(read_json(file), str(file)) for file in files[split]}
        categories = {
            file: _categories(file, documents.get(file))
            for name in sort_splits(files)
            for file in files[name]
            if file in documents or _readable(file)
        }
        classes = _classes(root, categories)
        for file, document in documents.items():
            found, unused = _index(root, split, file, document, categories[file], classes)
            samples += found
            problems += unused
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(str(error)) from None
    return LayoutSplit(
        require_samples(_refuse_repeated(samples), root, split), classes, problems=tuple(problems)
    )


def _readable(file: Path) -> bool:
    """Whether the categories of a file of another split can be read; it reports its own errors."""
    try:
        _categories(file)
    except ValueError:
        return False
    return True


def _index(
    root: Path,
    split: str,
    file: Path,
    document: dict[str, Any],
    categories: dict[int, str],
    classes: ClassSet,
) -> tuple[list[Sample], list[str]]:
    """Samples of one file, and sentences about entries that belong to no image."""
    images = as_list(document.get("images"), f"{file}: images")
    annotations = as_list(document.get("annotations"), f"{file}: annotations")
    of_image: dict[Any, list[tuple[Any, ...]]] = {}
    problems = []
    for number, annotation in enumerate(annotations, 1):
        if not isinstance(annotation, dict):
            problems.append(f"{file}: annotation {number}: expected an object")
            continue
        image_id = annotation.get("image_id")
        try:
            of_image.setdefault(image_id, []).append(_pack(annotation, number))
        except TypeError:
            problems.append(f"{file}: annotation {number}: image_id is no number or text")
    position = {name: i for i, name in enumerate(classes.names)}
    ids = {i: position.get(name, 0) for i, name in categories.items()}
    find = _ImageFolders(root, split, file)
    packed, starts, sizes = bytearray(), [0], []
    rows: list[tuple[Path, str]] = []
    for number, given in enumerate(images, 1):
        try:
            image = as_dict(given, f"{file}: image {number}")
            name = as_text(image.get("file_name"), f"{file}: image {number}: file_name")
            entries = of_image.pop(image.get("id"), [])
        except (ValueError, TypeError) as error:
            problems.append(str(error))
            continue
        packed += pickle.dumps(entries)
        starts.append(len(packed))
        sizes.append([_size(image.get("height")), _size(image.get("width"))])
        rows.append((find(name), f"{file}: image {image.get('id')!r} ({name})"))
    if of_image:
        count = sum(len(entries) for entries in of_image.values())
        first = next(iter(of_image.values()))[0][0]
        problems.append(
            f"{file}: {count} annotations are of images that the file does not list, the first "
            f"is annotation {first}"
        )
    index = CocoIndex(
        file,
        bytes(packed),
        np.array(starts, np.int64),
        np.array(sizes, np.int64).reshape(-1, 2),
        ids,
        classes.ignore_index,
    )
    samples = []
    for row, (path, _) in enumerate(rows):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        samples.append(Sample(name, path, CocoAnnotation(index, row)))
    return samples, problems


def _size(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < 1 << 31 else 0


def _pack(annotation: dict[str, Any], number: int) -> tuple[Any, ...]:
    """What painting needs of an annotation, coordinates as 4-byte numbers."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        packed: list[Any] = []
        for polygon in segmentation:
            try:
                packed.append(array("f", polygon))
            except (TypeError, ValueError, OverflowError):
                packed.append(polygon)  # reported when the image is read
        segmentation = packed
    identity = annotation.get("id", f"number {number}")
    return identity, annotation.get("category_id"), segmentation


class _ImageFolders:
    """Finds the images of a JSON file, which states only their names."""

    def __init__(self, root: Path, split: str, file: Path):
        year = re.search(r"(train|val|test)\d{4}", file.stem)
        names = dict.fromkeys([year[0] if year else split, split])
        if split == "val":
            names |= dict.fromkeys(["valid", "validation"])
        self.folders = [
            file.parent,
            *(root / "images" / name for name in names),
            *(root / name / "images" for name in names),
            *(root / name for name in names),
            root / "images" / "default",
            root / "images",
            root,
        ]
        self.folders = [folder for folder in self.folders if folder.is_dir()]

    def __call__(self, name: str) -> Path:
        relative = name.replace("\\", "/")
        tried = [relative, base_name(name)] if "/" in relative else [relative]
        if not name.isascii():  # systems write accents as one character or as two
            tried += [normalize(form, given) for given in tried for form in ("NFC", "NFD")]
        for candidate in tried:
            for number, folder in enumerate(self.folders):
                try:
                    if (folder / candidate).is_file():
                        # Most images lie in one folder, which is tried first from now on
                        self.folders.insert(0, self.folders.pop(number))
                        return folder / candidate
                except (OSError, ValueError):  # a name too long, or with a null character
                    break
        return self.folders[0] / base_name(name)


def _refuse_repeated(samples: list[Sample]) -> list[Sample]:
    """Images that are listed twice become samples that say so."""
    of_image: dict[tuple[Path, ...], list[Sample]] = {}
    for sample in samples:
        of_image.setdefault(sample.image_files, []).append(sample)
    result = []
    for (path,), alike in of_image.items():
        sample = alike[0]
        if len(alike) > 1 and isinstance(sample.mask, CocoAnnotation):
            file = sample.mask.file
            message = f"{file}: the image {path.name} is listed {len(alike)} times; keep one entry"
            sample = Sample(sample.name, path, BrokenAnnotation(file, message))
        result.append(sample)
    return result


COCO = Layout("coco", "COCO JSON", _recognize, _splits, _read)
