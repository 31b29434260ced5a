"""A contact sheet: images with their masks over them, file names, and a legend.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segformer.classes import ClassSet
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.division import classes_in
from segformer.data.pairing import Sample
from segformer.data.parallel import map_ordered
from segformer.data.transforms import Augmentation, ReducedSample
from segformer.files import whole_file
from segformer.image import ImageArray, Preprocessing, WrongChannels, find_rgb, read_image
from segformer.image.drawing import (
    Font,
    color_channels,
    displayable,
    fit_text,
    legend,
    overlay,
    shrink,
    stack,
)

_CELL_PX = 320
"""Width of a cell of the sheet."""

_FONT_PX = 14
_GAP_PX = 8
_CAPTION_LINES = 3


@dataclass(frozen=True)
class Cell:
    """One image of a sheet.

    Attributes:
        name: File name, shown below.
        image: (H, W, 3) uint8 with the mask over it, or None where the image cannot be read.
        shape: (H, W) of the image as it is stored.
        class_ids: Classes that occur.
        ignored: Fraction of the pixels that is not labeled.
        complaint: What is wrong with it, shown below the name.
    """

    name: str
    image: NDArray[np.uint8] | None
    shape: tuple[int, int]
    class_ids: frozenset[int] = frozenset()
    ignored: float = 0
    complaint: str = ""


def choose_samples(
    dataset: Dataset,
    count: int,
    *,
    class_name: str | None = None,
    seed: int = 0,
    on_sample: Callable[[], None] | None = None,
) -> list[Sample]:
    """Random samples with masks, in the order of their names.

    Args:
        dataset: A split.
        count: How many at most.
        class_name: Only samples in which this class occurs. Masks are read until there are enough.
        seed: Of the random choice.
        on_sample: Called after each mask that is read.

    Raises:
        DatasetError: There is no such class, or it occurs in no mask.
    """
    samples = [sample for sample in dataset if sample.mask is not None]
    random.Random(seed).shuffle(samples)
    chosen = samples[:count]
    if class_name is not None:
        names = dataset.classes.names
        if class_name not in names:
            raise DatasetError(
                f"{dataset.root}: there is no class {class_name!r}; classes are {', '.join(names)}"
            )
        wanted, chosen = names.index(class_name), []
        found = map_ordered(lambda sample: (sample, classes_in(dataset, sample)), samples)
        for sample, ids in found:
            if wanted in ids:
                chosen.append(sample)
            if on_sample is not None:
                on_sample()
            if len(chosen) == count:
                break
    if not chosen:
        where = f"split {dataset.split!r}"
        what = f"the class {class_name!r} occurs in no mask" if class_name else "no masks"
        raise DatasetError(f"{dataset.root}: {what} of {where}")
    return sorted(chosen, key=lambda sample: sample.name)


def mask_cells(
    dataset: Dataset, samples: Iterable[Sample], complaints: dict[str, str] | None = None
) -> Iterator[Cell]:
    """Cells of images as they are stored.

    Args:
        dataset: The split.
        samples: Which of its samples.
        complaints: What is wrong with samples, by name. What is found while drawing is added.
    """
    dataset.require_single_labels("drawing masks")
    known = complaints or {}

    def draw(sample: Sample) -> Cell:
        complaint = known.get(sample.name, "")
        try:
            image, class_ids = dataset.read(sample)
        except (ValueError, OSError, MemoryError) as error:
            return _without_mask(dataset, sample, complaint or str(error))
        return _cell(dataset, sample, image, class_ids, complaint)

    return map_ordered(draw, samples)


def augmented_cells(
    dataset: Dataset, samples: Sequence[Sample], augmentation: Augmentation, seed: int = 0
) -> Iterator[Cell]:
    """Cells of crops as training sees them, before they are normalized.

    Args:
        dataset: The split.
        samples: Which of its samples.
        augmentation: The augmentation.
        seed: Of the augmentation.
    """
    dataset.require_single_labels("drawing masks")

    def draw(numbered: tuple[int, Sample]) -> Cell:
        number, sample = numbered
        rng = np.random.default_rng((seed, number))
        try:
            image, mask = dataset.read(sample)
            channels = image.shape[2]
            as_stored = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels, rescale=1.0)

            def another() -> ReducedSample:
                return *dataset.read(dataset.samples[int(rng.integers(len(dataset)))]), 1

            crop, class_ids = augmentation(image, mask, rng, as_stored, another)
        except (ValueError, OSError, MemoryError) as error:
            return _without_mask(dataset, sample, str(error))
        shown: ImageArray = crop.astype(np.uint8) if image.dtype == np.uint8 else crop
        return _cell(dataset, sample, shown, class_ids)

    return map_ordered(draw, enumerate(samples))


def write_sheet(cells: Iterable[Cell], classes: ClassSet, path: str | Path, title: str) -> int:
    """Write a sheet; returns the number of its cells.

    Args:
        cells: The images.
        classes: Names and colors for the legend, which has the classes that occur.
        path: Image file to write.
        title: First line of the sheet.
    """
    drawn = list(cells)
    columns = max(1, min(6, round(len(drawn) ** 0.5 * 1.2)))
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    font = ImageFont.load_default(_FONT_PX)
    width = columns * (_CELL_PX + _GAP_PX) + _GAP_PX
    heading = Image.new("RGB", (width, 2 * _FONT_PX + _GAP_PX), "white")
    ImageDraw.Draw(heading).text(
        (_GAP_PX, heading.height / 2),
        fit_text(title, font, width - 2 * _GAP_PX),
        "black",
        font,
        anchor="lm",
    )
    sheet = heading
    for row in rows:
        sheet = stack(sheet, _draw_row(row, width, font))
    present = sorted(frozenset[int]().union(*(cell.class_ids for cell in drawn)))
    entries = [(classes.palette[i], classes.names[i]) for i in present]
    if any(cell.ignored > 0 for cell in drawn):
        entries.append(((0, 0, 0), "not labeled (dark)"))
    if entries:
        sheet = stack(sheet, legend(entries, width, _FONT_PX + 2))
    with whole_file(path) as partial:
        sheet.save(partial, quality=90)
    return len(drawn)


def _draw_row(row: Sequence[Cell], width: int, font: Font) -> Image.Image:
    captions = [_caption(cell, font) for cell in row]
    image_px = max(_shown_height(cell) for cell in row)
    line_px = round(1.25 * _FONT_PX)
    text_px = max(map(len, captions)) * line_px
    canvas = Image.new("RGB", (width, image_px + text_px + _GAP_PX), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (cell, lines) in enumerate(zip(row, captions, strict=True)):
        left = _GAP_PX + i * (_CELL_PX + _GAP_PX)
        if cell.image is None:
            draw.rectangle((left, 0, left + _CELL_PX - 1, image_px - 1), fill=(225, 225, 225))
        else:
            canvas.paste(Image.fromarray(cell.image), (left, image_px - cell.image.shape[0]))
        for number, line in enumerate(lines):
            color = "black" if number == 0 else (190, 0, 0) if cell.complaint else (110, 110, 110)
            draw.text((left, image_px + 3 + number * line_px), line, color, font)
    return canvas


def _caption(cell: Cell, font: Font) -> list[str]:
    """The file name, and what is wrong or the size and what is not labeled."""
    second = cell.complaint
    if not second:
        second = f"{cell.shape[1]} x {cell.shape[0]}"
        second += f", {cell.ignored:.0%} not labeled" if cell.ignored >= 0.005 else ""
    lines = [fit_text(cell.name, font, _CELL_PX)]
    for word in second.split():
        joined = f"{lines[-1]} {word}"
        if len(lines) > 1 and font.getlength(joined) <= _CELL_PX:
            lines[-1] = joined
        elif len(lines) <= _CAPTION_LINES:
            lines.append(fit_text(word, font, _CELL_PX))
        else:
            lines[-1] = fit_text(lines[-1] + " ...", font, _CELL_PX)
            break
    return lines


def _shown_height(cell: Cell) -> int:
    return cell.image.shape[0] if cell.image is not None else _CELL_PX // 2


def _cell(
    dataset: Dataset,
    sample: Sample,
    image: ImageArray,
    class_ids: NDArray[np.integer],
    complaint: str = "",
) -> Cell:
    (height, width), classes = class_ids.shape, dataset.classes
    image = color_channels(image, find_rgb(dataset.channel_names))
    shown, ids = shrink(image, class_ids, _shown_size(height, width))
    labeled = class_ids[class_ids != classes.ignore_index].astype(np.int64)
    return Cell(
        sample.name,
        overlay(shown, ids, classes.colors(), opacity=0.5),
        (height, width),
        frozenset(np.flatnonzero(np.bincount(labeled)).tolist()),
        1 - labeled.size / class_ids.size,
        complaint,
    )


def _without_mask(dataset: Dataset, sample: Sample, complaint: str) -> Cell:
    """The image alone, where its mask cannot be read; or neither."""
    for file in filter(None, (sample.mask_file, *sample.image_files)):
        complaint = complaint.replace(f"{file.parent}/", "")
    try:
        try:
            image = read_image(sample.image, dataset.channels, as_8_bit=False)
        except WrongChannels as error:
            image = read_image(sample.image, error.found, as_8_bit=False)
    except (ValueError, OSError, MemoryError):
        return Cell(sample.name, None, (0, 0), complaint=complaint)
    if image.shape[2] == dataset.channels:
        image = color_channels(image, find_rgb(dataset.channel_names))
    shape = image.shape[:2]
    size = _shown_size(*shape)
    shown, _ = shrink(image, np.zeros(shape, np.uint8), size)
    return Cell(sample.name, displayable(shown), shape, complaint=complaint)


def _shown_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of an image in its cell."""
    ratio = min(_CELL_PX / width, 1.5 * _CELL_PX / height)
    return max(1, round(height * ratio)), max(1, round(width * ratio))
