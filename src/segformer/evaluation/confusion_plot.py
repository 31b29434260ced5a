"""Draw a confusion matrix as an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segformer.evaluation.metrics import ConfusionMatrix
from segformer.files import whole_file

_MARGIN = 16
_TEXT = (40, 40, 40)
_GRID, _FINE_GRID = (210, 210, 210), (232, 232, 232)
_NO_DATA = (235, 235, 235)
"""Color of the rows of classes that never occur."""

_COLORS = np.array(
    [
        (255, 255, 255),
        (209, 226, 243),
        (154, 200, 225),
        (82, 157, 204),
        (28, 108, 177),
        (8, 48, 107),
    ]
)
"""Color scale from 0 to 100 percent, in equal steps."""

_LONGEST_NAME = 26
"""Characters of a class name that are drawn."""


def confusion_plot(matrix: ConfusionMatrix, path: str | Path, unit: str = "pixels") -> None:
    """Draw a confusion matrix, each row in percent of the true class.

    Percentages are written into the cells up to 25 classes, class names beside them up to 200.

    Args:
        matrix: Counts of pixels or images.
        path: Image file to write.
        unit: What was counted, for the title.
    """
    k = len(matrix.classes)
    rows = matrix.counts.sum(1, keepdims=True)
    percent = 100 * matrix.counts / np.maximum(rows, 1)
    cell = 40 if k <= 25 else 20 if k <= 60 else 12 if k <= 200 else max(1, 2000 // k)
    names = [_shorten(name) for name in matrix.classes.names] if k <= 200 else []
    font, title_font = _font(min(14, max(9, cell - 2))), _font(16)

    names_width = max((_width(font, name) for name in names), default=0)
    left = _MARGIN + 24 + names_width + 8  # "true", names
    top = _MARGIN + 36
    title = f"Confusion matrix: percent of the {unit} of each true class"
    width = max(left + k * cell + 90, _MARGIN + _width(title_font, title) + _MARGIN)
    height = top + max(k * cell, 80) + 8 + names_width + 32 + _MARGIN
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, _TEXT, title_font)

    colors = _to_colors(percent)
    colors[rows[:, 0] == 0] = _NO_DATA
    cells = Image.fromarray(colors).resize((k * cell, k * cell), Image.Resampling.NEAREST)
    image.paste(cells, (left, top))
    if cell >= 12:
        grid = _GRID if k <= 25 else _FINE_GRID
        for i in range(k + 1):
            draw.line([(left, top + i * cell), (left + k * cell, top + i * cell)], grid)
            draw.line([(left + i * cell, top), (left + i * cell, top + k * cell)], grid)
    else:
        draw.rectangle((left - 1, top - 1, left + k * cell, top + k * cell), outline=_GRID)
    if k <= 25:
        for i, j in np.argwhere(percent >= 0.5):
            at = (left + (j + 0.5) * cell, top + (i + 0.5) * cell)
            color = "white" if percent[i, j] > 55 else _TEXT
            draw.text(at, f"{percent[i, j]:.0f}", color, font, anchor="mm")

    for i, name in enumerate(names):
        center = (i + 0.5) * cell
        draw.text((left - 8, top + center), name, _TEXT, font, anchor="rm")
        label = _vertical(name, font)
        image.paste(label, (round(left + center - label.width / 2), top + k * cell + 8))
    label = _vertical("true", title_font)
    image.paste(label, (_MARGIN, round(top + k * cell / 2 - label.height / 2)))
    below = top + k * cell + 8 + names_width + 8
    draw.text((left + k * cell / 2, below), "predicted", _TEXT, title_font, anchor="ma")
    _draw_scale(image, left + k * cell + 24, top, min(max(k * cell, 80), 300))
    with whole_file(path) as partial:
        image.save(partial)


def _draw_scale(image: Image.Image, left: int, top: int, height: int) -> None:
    """The color scale, 0 to 100 percent from the bottom up."""
    draw, font = ImageDraw.Draw(image), _font(12)
    colors = _to_colors(np.linspace(100, 0, height)[:, None])
    image.paste(Image.fromarray(colors).resize((14, height)), (left, top))
    draw.rectangle((left - 1, top - 1, left + 14, top + height), outline=_GRID)
    for value in (0, 50, 100):
        at = (left + 20, top + height * (1 - value / 100))
        draw.text(at, f"{value}%", _TEXT, font, anchor="lm")


def _to_colors(percent: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(...) from 0 to 100 -> (..., 3) colors of the scale."""
    stops = np.linspace(0, 100, len(_COLORS))
    channels = [np.interp(percent, stops, _COLORS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _vertical(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """Text that reads from the bottom up."""
    box = font.getbbox(text)
    label = Image.new("RGB", (round(box[2]) + 1, round(box[3]) + 2), "white")
    ImageDraw.Draw(label).text((0, 0), text, _TEXT, font)
    return label.rotate(90, expand=True)


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return round(font.getlength(text)) + 2


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
