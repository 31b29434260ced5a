"""Polygons and run lengths as masks, and regions painted into a map of class ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """Pixels of one class.

    Attributes:
        class_id: Class.
        top: First row of ``mask`` in the image.
        left: First column.
        mask: (h, w) booleans.
        entry: What to call the region in a message.
    """

    class_id: int
    top: int
    left: int
    mask: NDArray[np.bool_]
    entry: str


def paint(
    regions: Sequence[Region],
    height: int,
    width: int,
    *,
    background: int,
    ignore_index: int,
    small_on_top: bool,
) -> NDArray[np.integer]:
    """Class ids (H, W) of regions over a background.

    Regions of `ignore_index` are painted first, so that they only cover what no other region does.

    Args:
        regions: In the order of the file.
        height: Of the image.
        width: Of the image.
        background: Class id where no region lies.
        ignore_index: Class id of pixels that are not labeled.
        small_on_top: Paint small regions over large ones; otherwise later ones over earlier ones.

    Raises:
        ValueError: Two regions of different classes cover exactly the same pixels.
    """
    highest = max(background, ignore_index, *(region.class_id for region in regions), 0)
    class_ids = np.full((height, width), background, np.uint8 if highest < 256 else np.uint16)
    areas = [int(np.count_nonzero(region.mask)) for region in regions]
    _refuse_contradiction(regions, areas, ignore_index)
    order = sorted(
        range(len(regions)),
        key=lambda i: (
            regions[i].class_id != ignore_index,
            -areas[i] if small_on_top else 0,
        ),
    )
    for i in order:
        region = regions[i]
        rows, columns = region.mask.shape
        window = class_ids[region.top : region.top + rows, region.left : region.left + columns]
        window[region.mask] = region.class_id
    return class_ids


def _refuse_contradiction(
    regions: Sequence[Region], areas: Sequence[int], ignore_index: int
) -> None:
    seen: dict[tuple[int, ...], list[Region]] = {}
    for region, area in zip(regions, areas, strict=True):
        if area == 0 or region.class_id == ignore_index:
            continue
        alike = seen.setdefault((region.top, region.left, *region.mask.shape, area), [])
        for other in alike:
            if other.class_id != region.class_id and np.array_equal(other.mask, region.mask):
                raise ValueError(
                    f"{other.entry} and {region.entry} mark the same pixels as different classes"
                )
        alike.append(region)


def polygon_region(
    polygons: Iterable[NDArray[np.floating]], height: int, width: int, class_id: int, entry: str
) -> Region:
    """The pixels whose centers lie inside one of the polygons.

    Pixel (row 0, column 0) covers 0..1 in both directions. What lies outside the image is cut off.
    A polygon that crosses itself is filled by the even-odd rule.

    Args:
        polygons: (N, 2) corners x, y in pixels.
        height: Of the image.
        width: Of the image.
        class_id: Class of the region.
        entry: What to call the region in a message.

    Raises:
        ValueError: A polygon has fewer than three corners, coordinates that are not numbers, or
            lies outside the image.
    """
    outlines = [np.asarray(corners, np.float64) for corners in polygons]
    for corners in outlines:
        if len(corners) < 3:
            raise ValueError(f"{entry}: a polygon of {len(corners)} points has no area")
        if not np.isfinite(corners).all():
            raise ValueError(f"{entry}: the polygon has coordinates that are not finite numbers")
    if not outlines:
        raise ValueError(f"{entry}: there is no polygon")
    points = np.concatenate(outlines)
    low, high = points.min(0), points.max(0)
    if high[0] <= 0 or high[1] <= 0 or low[0] >= width or low[1] >= height:
        raise ValueError(
            f"{entry}: the polygon lies outside the image of {width} x {height} pixels; it covers "
            f"x {low[0]:g} to {high[0]:g} and y {low[1]:g} to {high[1]:g}"
        )
    left, top = (int(v) for v in np.ceil(np.clip(low, 0, (width, height)) - 0.5))
    right, bottom = (int(v) for v in np.ceil(np.clip(high, 0, (width, height)) - 0.5))
    left, top = max(left, 0), max(top, 0)
    mask = np.zeros((max(bottom - top, 0), max(right - left, 0)), bool)
    if mask.size:
        for corners in outlines:
            mask |= _fill(corners - (left, top), *mask.shape)
    return Region(class_id, top, left, mask, entry)


def _fill(corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """(height, width): which pixel centers are inside, by the crossings of each column."""
    following = np.roll(corners, -1, axis=0)
    leftward = corners[:, 0] > following[:, 0]
    start = np.where(leftward[:, None], following, corners)
    end = np.where(leftward[:, None], corners, following)
    # Columns whose center lies in the half-open span of the edge, so that a corner counts once
    first = np.ceil(np.clip(start[:, 0], 0, width) - 0.5).astype(np.int64)
    last = np.ceil(np.clip(end[:, 0], 0, width) - 0.5).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(corners)), counts)
    column = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    with np.errstate(over="ignore", invalid="ignore"):
        slope = (end - start)[edge, 1] / (end - start)[edge, 0]
        crossing = start[edge, 1] + (column + 0.5 - start[edge, 0]) * slope
    row = np.ceil(np.clip(np.nan_to_num(crossing), 0, height) - 0.5).astype(np.int64)
    toggles = np.zeros((height + 1, width), np.uint8)
    places = np.maximum(row, 0) * width + column
    np.bitwise_xor.at(toggles.reshape(-1), places, np.uint8(1))
    for above, below in itertools.pairwise(toggles[:height]):  # faster than ufunc.accumulate
        np.bitwise_xor(below, above, out=below)
    return toggles[:height].view(np.bool_)


def run_length_region(
    counts: Sequence[int] | str | bytes, size: Sequence[int], class_id: int, entry: str
) -> Region:
    """The pixels of a COCO run-length encoding.

    Args:
        counts: Lengths of alternating runs, first of unmarked pixels, column by column; as
            integers, or as the compressed string of COCO.
        size: (height, width).
        class_id: Class of the region.
        entry: What to call the region in a message.

    Raises:
        ValueError: The lengths are broken or do not add up to the size.
    """
    height, width = size
    try:
        if isinstance(counts, (str, bytes)):
            lengths = _decompress(counts if isinstance(counts, bytes) else counts.encode("ascii"))
        else:
            lengths = np.asarray(counts, dtype=np.int64).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{entry}: the run lengths cannot be read: {error}") from None
    total = int(lengths.sum())
    if (lengths < 0).any() or total != height * width:
        raise ValueError(
            f"{entry}: the run lengths cover {total} pixels, but {width} x {height} pixels are "
            f"{height * width}"
        )
    marked = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return crop_region(marked.reshape(width, height).T, class_id, entry)


def _decompress(text: bytes) -> NDArray[np.int64]:
    """Run lengths of COCO's compressed string.

    Each character holds 5 bits, low ones first, and whether more follow; from the fourth number
    on, a number is the difference from the one two places before.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any():
        raise ValueError("characters that do not belong to the encoding")
    ends = np.flatnonzero(codes & 32 == 0)
    if len(codes) == 0 or ends.size == 0 or ends[-1] != len(codes) - 1:
        raise ValueError("the string is cut off")
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max() > 8:
        raise ValueError("a number is too large")
    place = np.arange(len(codes)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = codes[ends] & 16 != 0
    numbers[negative] -= np.int64(1) << (5 * sizes[negative])
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def crop_region(mask: NDArray[np.bool_], class_id: int, entry: str) -> Region:
    """A region of a mask of the whole image, cut to what is marked."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return Region(class_id, 0, 0, np.zeros((0, 0), bool), entry)
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    return Region(class_id, top, left, cut, entry)
