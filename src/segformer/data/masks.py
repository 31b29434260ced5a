"""From the files of masks to class ids: values, colors, lossy files, and what 0 and 255 mean.

Legend: H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.errors import Color, ColoredMask, DatasetError, UnknownValues
from segformer.image import LOSSY_SUFFIXES, read_image, read_mask, read_mask_or_colors

WHITE = frozenset((255, 65535))
"""The largest values of 8 and 16 bits: the foreground of masks in black and white."""

_SHOWN = 8
"""Values or colors that a message lists."""


def read_values(path: Path) -> NDArray[np.integer]:
    """Read what a mask holds.

    Returns:
        (H, W) integers, or (H, W, 3) colors; of a JPEG the gray levels.

    Raises:
        UnreadableImage: The file cannot be read.
    """
    if path.suffix.lower() in LOSSY_SUFFIXES:
        return read_image(path, 1)[:, :, 0]
    return read_mask_or_colors(path)


def to_class_ids(
    values: NDArray[np.integer], path: Path, classes: ClassSet, colors: Mapping[Color, int]
) -> NDArray[np.integer]:
    """Turn what `read_values` read into class ids.

    JPEG masks have their values changed by compression. With two classes they are split at half
    of the range: dark pixels are what the value 0 means, bright ones what 255 means, by default
    the classes 0 and 1.

    Args:
        values: (H, W) or (H, W, 3).
        path: File of the mask.
        classes: Classes, ignore index and mapping of mask values.
        colors: Class id of each color, for RGB masks.

    Returns:
        (H, W) class ids, each a class or ``ignore_index``.

    Raises:
        DatasetError: Values or colors have no class, or the mask is a JPEG of more than two
            classes.
    """
    if path.suffix.lower() in LOSSY_SUFFIXES:
        if len(classes) != 2:
            raise DatasetError(
                f"{path}: JPEG changes the values of a mask, so {len(classes)} classes cannot be "
                "distinguished; save masks as PNG (JPEG masks can be used for two classes)"
            )
        dark_id, bright_id = classes.mapping.get(0, 0), classes.mapping.get(255, 1)
        return np.where(values >= 128, np.int32(bright_id), np.int32(dark_id))
    if values.ndim == 3:
        is_gray = not (values != values[:, :, :1]).any()
        if is_gray and (not colors or (values.any() and not _all_known(values, colors))):
            values = values[:, :, 0]  # class ids stored as RGB
        else:
            return ids_of_colors(path, values, colors)
    class_ids = classes.to_class_ids(values)
    unknown = classes.unknown_values(class_ids)
    if unknown:
        known = frozenset(np.unique(values).tolist()) - set(unknown)
        raise UnknownValues(_describe_values(path, unknown, classes), unknown, known)
    return class_ids


def values_of(masks: Iterable[Path], *, stop_at_others: bool = False) -> frozenset[int]:
    """All values that occur in masks; JPEG masks, colors and unreadable files count for nothing.

    Args:
        masks: Files.
        stop_at_others: Stop at the first mask with a value that is neither 0 nor white.
    """
    lossless = [mask for mask in masks if mask.suffix.lower() not in LOSSY_SUFFIXES]
    stamps = []
    for mask in lossless:
        try:
            status = mask.stat()
        except OSError:
            continue
        stamps.append((mask, status.st_mtime_ns, status.st_size))
    return _values_of(tuple(stamps), stop_at_others)


@lru_cache(maxsize=16)
def _values_of(files: tuple[tuple[Path, int, int], ...], stop_at_others: bool) -> frozenset[int]:
    """Cached, because each split of a data set needs the values of the training masks."""
    found: set[int] = set()
    step = 64
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(files), step):
            for values in pool.map(_values_in, (file for file, *_ in files[first : first + step])):
                found |= values
            if stop_at_others and not found <= WHITE | {0}:
                break
    return frozenset(found)


def _values_in(mask: Path) -> set[int]:
    try:
        values = read_mask(mask)
    except ValueError:
        return set()  # checking the data set reports it
    if values.dtype == np.uint8:
        return set(np.flatnonzero(np.bincount(values.ravel())).tolist())
    return set(np.unique(values).tolist())


def _all_known(values: NDArray[np.integer], colors: Mapping[Color, int]) -> bool:
    return bool(colors) and set(_count_colors(values)) <= set(colors)


def ids_of_colors(
    path: Path, values: NDArray[np.integer], colors: Mapping[Color, int]
) -> NDArray[np.integer]:
    """Class ids (H, W) of colors (H, W, 3).

    Raises:
        ColoredMask: Colors have no class.
    """
    codes = _codes(values)
    class_ids = np.zeros(codes.shape, np.int32)
    known = np.zeros(codes.shape, bool)
    for color, class_id in colors.items():
        here = codes == _code(color)
        class_ids[here] = class_id
        known |= here
    if known.all():
        return class_ids
    unknown = {c: n for c, n in _count_colors(values).items() if c not in colors}
    listed = sorted(unknown.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{list(color)} ({count} pixels)" for color, count in listed[:_SHOWN])
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    which = "colors that are not in the palette" if colors else "colors instead of class ids"
    raise ColoredMask(
        f"{path}: {which}: {shown}{more}; give the color of each class as palette in dataset.yaml",
        unknown,
    )


def _codes(values: NDArray[np.integer]) -> NDArray[np.integer]:
    """Each color as one number."""
    wide = np.int32 if values.dtype == np.uint8 else np.int64
    codes: NDArray[np.integer] = values[:, :, 0].astype(wide)
    codes = (codes << 8) + values[:, :, 1]
    return (codes << 8) + values[:, :, 2]


def _code(color: Color) -> int:
    return (color[0] << 16) + (color[1] << 8) + color[2]


def _count_colors(values: NDArray[np.integer]) -> dict[Color, int]:
    codes, counts = np.unique(_codes(values), return_counts=True)
    return {
        (int(code) >> 16, int(code) >> 8 & 255, int(code) & 255): int(count)
        for code, count in zip(codes, counts, strict=True)
    }


def _describe_values(path: Path, unknown: Mapping[int, int], classes: ClassSet) -> str:
    shown = sorted(unknown.items())[:_SHOWN]
    values = ", ".join(f"{value} ({count} pixels)" for value, count in shown)
    more = f" and {len(unknown) - _SHOWN} more values" if len(unknown) > _SHOWN else ""
    return (
        f"{path}: values outside the classes: {values}{more}; classes are "
        f"0..{len(classes) - 1} and {classes.ignore_index} for ignored pixels. "
        "Name the classes, or map the values with label_mapping in dataset.yaml"
    )
