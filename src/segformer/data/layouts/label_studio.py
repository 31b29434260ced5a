"""Label Studio: one JSON file of tasks, with brush masks in its own run-length encoding."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet, printable
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
    with_background,
)
from segformer.data.layouts.json_values import (
    as_dict,
    as_int,
    as_list,
    as_number,
    as_points,
)
from segformer.data.layouts.regions import Region, crop_region, paint, polygon_region
from segformer.data.pairing import Sample

_KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
_SHAPES = ("brush", "polygon", "rectangle", "ellipse")
_ELLIPSE_CORNERS = 128


def decode_brush(data: bytes, height: int, width: int, entry: str) -> NDArray[np.bool_]:
    """The pixels of a brush mask.

    The bits are a header (number of values in 32 bits, bits of a value minus one in 5, four
    lengths minus one in 4 each) and blocks: one bit that says whether one value is repeated, two
    bits that choose one of the four lengths, a count minus one of that length, and the value or
    values. They are the red, green, blue and alpha of the pixels, row by row; alpha is the mask.

    Args:
        data: Bytes of the field ``rle``.
        height: Of the image.
        width: Of the image.
        entry: What to call the region in a message.

    Returns:
        (H, W), True where the brush has painted.

    Raises:
        ValueError: The data is cut off, or is of another size.
    """
    bits = _Bits(data)
    try:
        total, value_size = bits.read(32), bits.read(5) + 1
        sizes = [bits.read(4) + 1 for _ in range(4)]
        if total != 4 * height * width:
            raise ValueError(
                f"{entry}: the brush mask has {total / 4:g} pixels, but {width} x {height} pixels "
                f"are {height * width}"
            )
        values = np.zeros(total, np.uint32)
        done = 0
        while done < total:
            repeated = bits.read(1)
            end = done + bits.read(sizes[bits.read(2)]) + 1
            if end > total:
                raise ValueError(f"{entry}: the brush mask is longer than its image")
            values[done:end] = (
                bits.read(value_size) if repeated else bits.read_many(value_size, end - done)
            )
            done = end
    except EOFError:
        raise ValueError(f"{entry}: the brush mask is cut off") from None
    return values.reshape(height, width, 4)[:, :, 3] >= 1 << (value_size - 1)


class _Bits:
    """Numbers out of bytes, high bits first."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def read(self, size: int) -> int:
        end = self.at + size
        if end > 8 * len(self.data):
            raise EOFError
        window = int.from_bytes(self.data[self.at >> 3 : (end + 7) >> 3], "big")
        self.at = end
        return window >> (-end & 7) & ((1 << size) - 1)

    def read_many(self, size: int, count: int) -> NDArray[np.uint32]:
        end = self.at + size * count
        if end > 8 * len(self.data):
            raise EOFError
        first = self.at >> 3
        packed = np.frombuffer(self.data, np.uint8)[first : (end + 7) >> 3]
        bits = np.unpackbits(packed)[self.at & 7 :][: size * count].reshape(count, size)
        self.at = end
        powers = np.left_shift(np.uint32(1), np.arange(size - 1, -1, -1, dtype=np.uint32))
        return bits.astype(np.uint32) @ powers


@dataclass(frozen=True, slots=True)
class LabelStudioTask:
    """The regions of one task, packed until they are needed."""

    file: Path
    entry: str
    packed: bytes
    classes: ClassSet

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W), later regions over earlier ones."""
        try:
            regions = [
                self._region(region, number, height, width)
                for number, region in enumerate(pickle.loads(self.packed), 1)
            ]
            return paint(
                regions,
                height,
                width,
                background=0,
                ignore_index=self.classes.ignore_index,
                small_on_top=False,
            )
        except ValueError as error:
            raise DatasetError(str(error)) from None

    def _region(self, region: Any, number: int, height: int, width: int) -> Region:
        entry = f"{self.file}: {self.entry}, region {number}"
        value = as_dict(region.get("value", region), f"{entry}: value")
        label = _label(region)
        if label is None:
            raise ValueError(f"{entry}: it has no label")
        entry = f"{entry} ({label})"
        class_id = 0 if label.lower() == "background" else self.classes.names.index(label)
        if region.get("image_rotation"):
            raise ValueError(
                f"{entry}: the image was rotated by {region['image_rotation']} degrees while "
                "labeling, which is not supported"
            )
        for key, actual in (("original_height", height), ("original_width", width)):
            if region.get(key) is not None and as_int(region[key], f"{entry}: {key}") != actual:
                raise ValueError(f"{entry}: {key} is {region[key]}, but the image has {actual}")
        if "rle" in value:
            data = value["rle"]
            if not isinstance(data, bytes):
                raise ValueError(f"{entry}: rle: expected a list of bytes")
            return crop_region(decode_brush(data, height, width, entry), class_id, entry)
        points = _outline(value, entry) * (width / 100, height / 100)
        return polygon_region([points], height, width, class_id, entry)


def _outline(value: dict[str, Any], entry: str) -> NDArray[np.float64]:
    """(N, 2) corners in percent of the image."""
    if "points" in value:
        return as_points(value["points"], f"{entry}: points")
    if as_number(value.get("rotation") or 0, f"{entry}: rotation"):
        raise ValueError(f"{entry}: rotated shapes are not supported; draw a polygon")
    x, y = (as_number(value.get(key), f"{entry}: {key}") for key in ("x", "y"))
    if "radiusX" in value:
        across, down = (as_number(value.get(k), f"{entry}: {k}") for k in ("radiusX", "radiusY"))
        angles = np.linspace(0, 2 * np.pi, _ELLIPSE_CORNERS, endpoint=False)
        return np.stack([x + across * np.cos(angles), y + down * np.sin(angles)], axis=1)
    across, down = (as_number(value.get(k), f"{entry}: {k}") for k in ("width", "height"))
    return np.array([(x, y), (x + across, y), (x + across, y + down), (x, y + down)])


def _label(region: dict[str, Any]) -> str | None:
    value = region.get("value", region)
    for key in (*_KINDS, "labels"):
        labels = value.get(key) if isinstance(value, dict) else None
        if isinstance(labels, list) and labels and isinstance(labels[0], str):
            return printable(labels[0]) or None
    return None


def _is_region(item: Any) -> bool:
    """Whether a result is a shape; others are choices, texts and relations."""
    if not isinstance(item, dict):
        return False
    if item.get("type") in (*_KINDS, *_SHAPES, "labels"):
        return True
    return any(key in item for key in _KINDS)


def _candidates(root: Path) -> list[Path]:
    """JSON files of tasks: a list whose objects have data or regions."""
    found = []
    for file in sorted(root.glob("*.json")):
        head = file_head(file).lstrip(b"\xef\xbb\xbf \r\n\t")
        if head.startswith(b"[") and (
            b'"annotations"' in head
            or b'"completions"' in head
            or any(kind.encode() in head for kind in _KINDS)
        ):
            found.append(file)
    return found


def _recognize(root: Path) -> str | None:
    found = _candidates(root)
    return f"{found[0].name} is a list of labeled tasks" if found else None


def _splits(root: Path) -> list[str]:
    return [WHOLE] if _candidates(root) else []


def _regions(task: dict[str, Any], entry: str) -> list[dict[str, Any]] | None:
    """The regions of a task; None where it has not been labeled.

    Raises:
        ValueError: Two people have labeled it differently.
    """
    if "annotations" not in task and "completions" not in task:  # the short form, JSON-MIN
        items = [item for value in task.values() if isinstance(value, list) for item in value]
        regions = [item for item in items if _is_region(item)]
        return regions or None
    given = as_list(task.get("annotations", task.get("completions")), f"{entry}: annotations")
    results = []
    for annotation in given:
        if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
            items = as_list(annotation.get("result") or [], f"{entry}: result")
            results.append([item for item in items if _is_region(item)])
    if not results:
        return None
    essential = [[(_label(r), r.get("value", r)) for r in result] for result in results]
    if any(other != essential[0] for other in essential[1:]):
        raise ValueError(f"{entry}: {len(results)} annotations that disagree; keep one of them")
    return results[0]


def _pack(regions: list[dict[str, Any]]) -> bytes:
    """Regions as bytes, run lengths as the bytes that they are."""
    for region in regions:
        value = region.get("value", region)
        if isinstance(value, dict) and isinstance(value.get("rle"), list):
            try:
                value["rle"] = bytes(value["rle"])
            except (ValueError, TypeError):
                value["rle"] = None  # reported when the image is read
    return pickle.dumps(regions)


def _image_name(task: Any, entry: str) -> str:
    """The name of a task's image, out of an URL, a path on any system or an upload."""
    data = as_dict(task, entry).get("data")
    given = [data[key] for key in sorted(data)] if isinstance(data, dict) else []
    for value in (task.get("image"), task.get("file_upload"), *given):
        if isinstance(value, str) and re.search(r"\.\w{2,5}($|\?)|\?d=", value):
            try:
                query = parse_qs(urlsplit(value).query)
            except ValueError:
                query = {}
            path = query["d"][0] if "d" in query else re.sub(r"\?.*", "", value)
            return base_name(unquote(path))
    raise ValueError(f"{entry}: it names no image")


def _images_by_name(root: Path) -> dict[str, list[Path]]:
    images: dict[str, list[Path]] = {}
    for file in image_files(root):
        images.setdefault(normalize("NFC", file.name), []).append(file)
    return images


def _find_image(task: Any, images: dict[str, list[Path]], root: Path, entry: str) -> Path:
    """The image of a task; uploads have hexadecimal digits and a hyphen before their name.

    Raises:
        ValueError: The task names none, or several files have the name.
    """
    name = normalize("NFC", _image_name(task, entry))  # accents are one character or two
    found = images.get(name) or images.get(re.sub(r"^[0-9a-f]{6,}-", "", name)) or []
    if len(found) > 1:
        raise ValueError(f"{entry}: several files are called {name}: {found[0]}, {found[1]}")
    return found[0] if found else root / name


def _read(root: Path, split: str) -> LayoutSplit:
    files = _candidates(root)
    if split != WHOLE or not files:
        raise missing_split(root, split, _splits(root))
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise DatasetError(f"{root}: several files of tasks: {listed}; keep one of them")
    (file,) = files
    try:
        tasks = as_list(read_json(file), str(file))
    except ValueError as error:
        raise DatasetError(str(error)) from None
    images = _images_by_name(root)
    found: dict[Path, list[_Task]] = {}
    problems, unlabeled = [], 0
    for number, task in enumerate(tasks, 1):
        entry = f"task {task.get('id', number) if isinstance(task, dict) else number}"
        try:
            image = _find_image(task, images, root, f"{file}: {entry}")
        except ValueError as error:
            problems.append(str(error))
            continue
        labeled = _Task(entry)
        try:
            regions = _regions(task, f"{file}: {entry}")
            unlabeled += regions is None
            if regions is None:
                continue
            labeled.regions = regions
        except ValueError as error:
            labeled.problem = str(error)
        found.setdefault(image, []).append(labeled)
    if unlabeled:
        problems.append(f"{file}: {unlabeled} tasks have not been labeled and are not used")
    classes = _classes(file, [task for alike in found.values() for task in alike])
    samples = []
    for image, alike in found.items():
        mask: LabelStudioTask | BrokenAnnotation
        if len(alike) > 1:
            listed = ", ".join(task.entry for task in alike)
            mask = BrokenAnnotation(
                file, f"{file}: several tasks are about the image {image.name}: {listed}"
            )
        elif alike[0].problem:
            mask = BrokenAnnotation(file, alike[0].problem)
        else:
            mask = LabelStudioTask(file, alike[0].entry, _pack(alike[0].regions), classes)
        samples.append(Sample(image.relative_to(root).as_posix(), image, mask))
    return LayoutSplit(require_samples(samples, file, split), classes, problems=tuple(problems))


@dataclass
class _Task:
    """A labeled task, or what is wrong with it."""

    entry: str
    regions: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""


def _classes(file: Path, tasks: list[_Task]) -> ClassSet:
    labels = {
        label for task in tasks for region in task.regions if (label := _label(region)) is not None
    }
    names = with_background(sorted(labels))
    try:
        return named_classes(names, contrast_palette(len(names)))
    except ValueError as error:
        raise DatasetError(f"{file}: labels: {error}") from None


LABEL_STUDIO = Layout("label-studio", "Label Studio JSON", _recognize, _splits, _read)
