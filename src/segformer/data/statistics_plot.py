"""A plot of the statistics of a data set, drawn with Pillow.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segformer.data.check import SplitReport
from segformer.files import whole_file
from segformer.image.drawing import Font, fit_text, stack

_FONT_PX = 15
_ROW_PX = 22
_NAME_PX = 170
_BAR_PX = 260
_SHOWN = 30
"""Classes that are drawn, the most frequent ones."""

_GRAY, _LINE, _BLUE = (105, 105, 105), (215, 215, 215), (70, 115, 190)
_Color = tuple[int, int, int]


def statistics_plot(reports: Sequence[SplitReport], path: str | Path) -> None:
    """Draw class frequencies, co-occurrence and image sizes of each split.

    Args:
        reports: What `segformer.data.check.check_split` found in each split.
        path: Image file to write.
    """
    font = ImageFont.load_default(_FONT_PX)
    plot = Image.new("RGB", (1, 1), "white")
    for report in reports:
        plot = stack(plot, _draw_split(report, font))
    with whole_file(path) as partial:
        plot.save(partial)


def _draw_split(report: SplitReport, font: Font) -> Image.Image:
    order = np.argsort(-report.pixels, kind="stable")
    order = order[report.pixels[order] > 0][:_SHOWN]
    cell = max(14, min(34, 560 // max(len(order), 1)))
    left, matrix_left = 20, 20 + _NAME_PX + 2 * (_BAR_PX + 75) + 40
    matrix_px = max(cell * len(order), 390)
    top = 62
    sizes_top = top + _ROW_PX * len(order) + 24
    height = max(sizes_top + 300, top + matrix_px + _NAME_PX + 10)
    canvas = Image.new("RGB", (matrix_left + _NAME_PX + matrix_px + 20, height), "white")
    draw = ImageDraw.Draw(canvas)
    dataset = report.dataset
    present = int(np.count_nonzero(report.pixels))
    title = f"{dataset.root.name}, {dataset.split}: {len(dataset)} images, "
    title += f"{present} of {len(dataset.classes)} classes occur"
    title += f" (the {len(order)} most frequent are shown)" if present > len(order) else ""
    draw.text((left, 10), title, "black", font)
    _draw_frequencies(draw, report, order.tolist(), (left, top), font)
    _draw_cooccurrence(canvas, report, order.tolist(), (matrix_left, top), cell, font)
    _draw_sizes(draw, report, (left, sizes_top), font)
    return canvas


def _draw_frequencies(
    draw: ImageDraw.ImageDraw,
    report: SplitReport,
    order: list[int],
    at: tuple[int, int],
    font: Font,
) -> None:
    """Bars of the fraction of the labeled pixels and of the images."""
    left, top = at
    classes = report.dataset.classes
    readable = max(sum(report.sizes.values()), 1)
    columns = (
        ("labeled pixels", report.frequencies),
        ("images with the class", report.images / readable),
    )
    for number, (title, fractions) in enumerate(columns):
        x = left + _NAME_PX + number * (_BAR_PX + 75)
        draw.text((x, top - 24), title, _GRAY, font)
        highest = max((float(fractions[i]) for i in order), default=1) or 1
        for row, i in enumerate(order):
            y, fraction = top + row * _ROW_PX, float(fractions[i])
            length = max(1, round(_BAR_PX * fraction / highest))
            color = classes.palette[i]
            draw.rectangle((x, y + 2, x + length, y + _ROW_PX - 4), fill=color, outline=_GRAY)
            text = f"{fraction:.1%}" if fraction >= 0.001 else f"{fraction:.1g}"
            draw.text((x + length + 5, y + _ROW_PX / 2 - 1), text, "black", font, anchor="lm")
    for row, i in enumerate(order):
        name = fit_text(classes.names[i], font, _NAME_PX - 14)
        middle = top + row * _ROW_PX + _ROW_PX / 2 - 1
        draw.text((left + _NAME_PX - 8, middle), name, "black", font, anchor="rm")


def _draw_cooccurrence(
    canvas: Image.Image,
    report: SplitReport,
    order: list[int],
    at: tuple[int, int],
    cell: int,
    font: Font,
) -> None:
    """Of the images with the class of a row, the fraction that has the class of a column too."""
    left, top = at
    draw = ImageDraw.Draw(canvas)
    names = report.dataset.classes.names
    draw.text(
        (left + _NAME_PX, top - 24),
        "% of the row's images that have the column's class",
        _GRAY,
        font,
    )
    for row, i in enumerate(order):
        y = top + row * cell
        name = fit_text(names[i], font, _NAME_PX - 14)
        draw.text((left + _NAME_PX - 8, y + cell / 2), name, "black", font, anchor="rm")
        for column, j in enumerate(order):
            fraction = report.cooccurrence[i, j] / max(int(report.images[i]), 1)
            x = left + _NAME_PX + column * cell
            color: _Color = tuple(round(255 + (c - 255) * fraction) for c in _BLUE)
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=color, outline=_LINE)
            if cell >= 30:
                text, shade = f"{100 * fraction:.0f}", "white" if fraction > 0.6 else "black"
                draw.text((x + cell / 2, y + cell / 2), text, shade, font, anchor="mm")
    for column, j in enumerate(order):
        name = fit_text(names[j], font, _NAME_PX - 14)
        upright = Image.new("RGB", (_NAME_PX, _FONT_PX + 6), "white")
        ImageDraw.Draw(upright).text(
            (_NAME_PX - 4, (_FONT_PX + 6) / 2), name, "black", font, anchor="rm"
        )
        turned = upright.transpose(Image.Transpose.ROTATE_90)
        x = left + _NAME_PX + column * cell + (cell - turned.width) // 2
        canvas.paste(turned, (max(x, 0), top + cell * len(order) + 4))


def _draw_sizes(
    draw: ImageDraw.ImageDraw, report: SplitReport, at: tuple[int, int], font: Font
) -> None:
    """Width against height, a disc for each size, and the channels in words."""
    left, top = at
    side = 220
    draw.text((left, top), "image sizes, height over width, pixels", _GRAY, font)
    box = (left + 60, top + 28, left + 60 + side, top + 28 + side)
    draw.rectangle(box, outline=_LINE)
    limit = max((max(size) for size in report.sizes), default=1)
    most = max(report.sizes.values(), default=1)
    for (height, width), count in report.sizes.items():
        radius = 2 + 8 * (count / most) ** 0.5
        x = box[0] + (box[2] - box[0]) * width / limit * 0.94
        y = box[3] - (box[3] - box[1]) * height / limit * 0.94
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_BLUE, width=2)
    draw.text((box[0] - 6, box[3]), "0", _GRAY, font, anchor="rm")
    draw.text((box[0] - 6, box[1] + 12), str(limit), _GRAY, font, anchor="rm")
    draw.text((box[2], box[3] + 4), str(limit), _GRAY, font, anchor="ra")
    lines = [
        f"{width} x {height}: {count}" for (height, width), count in report.sizes.most_common(5)
    ]
    lines.insert(0, "width x height: number of images")
    if len(report.sizes) > 5:
        lines.append(f"and {len(report.sizes) - 5} other sizes")
    if report.sums is not None:
        mean, std = report.mean_and_std
        lines.append("")
        lines.append(f"{', '.join(sorted(report.dtypes))}, {len(mean)} channels, mean and std:")
        lines += [f"  {m:.4g}   {s:.4g}" for m, s in zip(mean, std, strict=True)][:6]
        lines += [f"  and {len(mean) - 6} more channels"] if len(mean) > 6 else []
    total = report.labeled + report.ignored
    lines.append(f"not labeled: {report.ignored / max(total, 1):.1%} of the pixels")
    for number, line in enumerate(lines[:13]):
        draw.text((box[2] + 40, top + 28 + number * 19), line, "black", font)
