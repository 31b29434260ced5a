"""Charts as inline SVG. Colors come from the style sheet, so that they follow light and dark mode.

Text is put in through the XML library, which escapes it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from segformer.evaluation.calibration import BINS, Calibration

_WIDTH, _HEIGHT = 360, 240
"""Size of a chart. Small, so that text stays readable on a phone, where nothing is scaled down."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 40
"""Margins of the plotted area."""

_MOST_POINTS = 400
"""Points of a line; longer ones are averaged."""

_CHARACTER = 6.4
"""Mean width of a character of small text, in pixels."""


class Chart:
    """An SVG image.

    Args:
        width: Pixels.
        height: Pixels.
        label: What the chart shows, for screen readers.
    """

    def __init__(self, width: float, height: float, label: str):
        self.root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {_number(width)} {_number(height)}",
                "width": _number(width),
                "height": _number(height),
                "role": "img",
                "aria-label": label,
                "class": "chart",
            },
        )

    def add(self, tag: str, text: str = "", title: str = "", **attributes: str | float) -> None:
        """Add an element; ``title`` is shown while the pointer is over it.

        Args:
            tag: Name of the element.
            text: Its text.
            title: Its tooltip.
            **attributes: Its attributes; ``kind`` is its class, and ``_`` in names is ``-``.
        """
        values = {
            ("class" if name == "kind" else name.replace("_", "-")): _number(value)
            for name, value in attributes.items()
        }
        element = ElementTree.SubElement(self.root, tag, values)
        if title:
            ElementTree.SubElement(element, "title").text = title
            if text:
                element[0].tail = text
        elif text:
            element.text = text

    def markup(self) -> Markup:
        """The image, for a template."""
        return Markup(ElementTree.tostring(self.root, encoding="unicode"))


@dataclass(frozen=True)
class _Axes:
    """The plotted area of a chart, and what its sides stand for."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    def draw(self, chart: Chart, x_label: str, y_label: str, *, in_percent: bool = False) -> None:
        left, bottom = self.at(self.x[0], self.y[0])
        right, top = self.at(self.x[1], self.y[1])
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            chart.add("line", kind="grid", x1=left, x2=right, y1=y, y2=y)
            shown = f"{100 * value:g}" if in_percent else _short(value)
            chart.add("text", shown, x=left - 6, y=y + 4, text_anchor="end")
        for value in ticks(*self.x, most=5):
            x, _ = self.at(value, self.y[0])
            chart.add("line", kind="grid", x1=x, x2=x, y1=top, y2=bottom)
            shown = f"{100 * value:g}" if in_percent else _short(value)
            chart.add("text", shown, x=x, y=bottom + 16, text_anchor="middle")
        middle = (left + right) / 2
        chart.add("text", x_label, kind="title", x=middle, y=_HEIGHT - 6, text_anchor="middle")
        place = f"translate(11 {_number((top + bottom) / 2)}) rotate(-90)"
        chart.add("text", y_label, kind="title", transform=place, text_anchor="middle")


def line_chart(
    xs: Sequence[float],
    ys: Sequence[float],
    x_label: str,
    y_label: str,
    *,
    in_percent: bool = False,
) -> Markup:
    """A line through points, such as a loss by step.

    Args:
        xs: Positions, ascending.
        ys: Values; those that are not finite are left out.
        x_label: Title of the horizontal axis.
        y_label: Title of the vertical axis.
        in_percent: Values are fractions and shown in percent.
    """
    points = np.array([xs, ys], float)
    points = points[:, np.isfinite(points).all(0)]
    group = -(-points.shape[1] // _MOST_POINTS)
    if group > 1:
        starts = np.arange(0, points.shape[1], group)
        sizes = np.diff([*starts, points.shape[1]])
        points = np.add.reduceat(points, starts, axis=1) / sizes
    if in_percent:
        points[1] *= 100
    count = points.shape[1]
    chart = Chart(_WIDTH, _HEIGHT, f"{y_label} by {x_label}, {count} points")
    if not count:
        chart.add("text", "no values", x=_WIDTH / 2, y=_HEIGHT / 2, text_anchor="middle")
        return chart.markup()
    axes = _Axes(_span(points[0]), _span(points[1]))
    axes.draw(chart, x_label, y_label)
    places = [axes.at(x, y) for x, y in points.T]
    path = " ".join(f"{_number(x)},{_number(y)}" for x, y in places)
    chart.add("polyline", kind="line", points=path)
    if count <= 40:
        for (x, y), (step, value) in zip(places, points.T, strict=True):
            title = f"{x_label} {step:g}: {value:.4g}"
            chart.add("circle", title=title, kind="dot", cx=x, cy=y, r=3)
    return chart.markup()


def reliability_chart(calibration: Calibration) -> Markup:
    """Accuracy by confidence, beside the diagonal of perfect calibration."""
    chart = Chart(
        _WIDTH,
        _HEIGHT + 60,
        f"Reliability diagram: accuracy by confidence in {BINS} bins; "
        f"expected calibration error {calibration.ece:.3f}",
    )
    axes = _Axes((0, 1), (0, 1))
    axes.draw(chart, "", "accuracy, %", in_percent=True)
    left, bottom = axes.at(0, 0)
    right, _ = axes.at(1, 0)
    width = (right - left) / BINS
    total, most = max(1, calibration.counts.sum()), max(1, calibration.counts.max())
    for i in np.flatnonzero(calibration.counts):
        confidence, accuracy = calibration.confidence[i], calibration.accuracy[i]
        title = (
            f"confidence {i / BINS:.0%} to {(i + 1) / BINS:.0%}: mean {confidence:.1%}, "
            f"accuracy {accuracy:.1%}, {calibration.counts[i] / total:.1%} of all predictions"
        )
        x, y = left + i * width + 1, axes.at(0, accuracy)[1]
        _, ideal = axes.at(0, confidence)
        chart.add("rect", title=title, kind="fill", x=x, y=y, width=width - 2, height=bottom - y)
        upper, lower = min(y, ideal), max(y, ideal)
        chart.add("rect", kind="gap", x=x, y=upper, width=width - 2, height=lower - upper)
        height = 36 * calibration.counts[i] / most
        y = _HEIGHT + 22 - height
        chart.add("rect", title=title, kind="muted", x=x, y=y, width=width - 2, height=height)
    (x1, y1), (x2, y2) = axes.at(0, 0), axes.at(1, 1)
    chart.add("line", kind="ideal", x1=x1, y1=y1, x2=x2, y2=y2)
    chart.add(
        "text", "number", kind="title", text_anchor="middle",
        transform=f"translate(11 {_HEIGHT + 4}) rotate(-90)",
    )  # fmt: skip
    middle = (left + right) / 2
    chart.add("text", "confidence, %", kind="title", x=middle, y=_HEIGHT + 42, text_anchor="middle")
    return chart.markup()


def confusion_chart(percents: NDArray[np.float64], names: Sequence[str], unit: str) -> Markup:
    """A confusion matrix; cells below 0.5 % are left empty.

    Up to 25 classes have their percentages written into the cells. The cells of many classes are
    small and have tooltips; of more than 6000 cells, only the largest are drawn.

    Args:
        percents: (K, K) percent of each true class; NaN in the rows of classes that never occur.
        names: K class names.
        unit: What was counted, such as "pixels".
    """
    k = len(names)
    large = k > 25
    cell = 12 if large else 34
    labels = [shorten(name) for name in names]
    label_px = 10 + max(text_width(label) for label in labels)
    # A large matrix is scrolled, so it has labels on all sides
    left, top, side = label_px + 18, label_px if large else 6, k * cell
    chart = Chart(
        left + side + (label_px if large else 8),
        top + side + label_px + 24,
        f"Confusion matrix of {k} classes, percent of the {unit} of each true class; the table of "
        "the most frequent confusions has the largest values",
    )
    chart.add("rect", kind="frame", x=left, y=top, width=side, height=side)
    shown = np.where(np.isnan(percents), 0, percents)
    least = max(0.5, np.sort(shown, axis=None)[-6000:].min())
    for i, label in enumerate(labels):
        center = (i + 0.5) * cell
        x, y = left - 6, top + center + 4
        chart.add("text", label, title=names[i], x=x, y=y, text_anchor="end")
        below = f"translate({_number(left + center + 4)} {_number(top + side + 8)}) rotate(-90)"
        chart.add("text", label, title=names[i], transform=below, text_anchor="end")
        if large:
            chart.add("text", label, title=names[i], x=left + side + 6, y=y)
            above = f"translate({_number(left + center + 4)} {_number(top - 6)}) rotate(-90)"
            chart.add("text", label, title=names[i], transform=above)
        if np.isnan(percents[i]).all():
            y = top + i * cell
            title = f"{names[i]} never occurs"
            chart.add("rect", title=title, kind="void", x=left, y=y, width=side, height=cell)
    for i, j in np.argwhere(shown >= least):
        value = shown[i, j]
        x, y = left + int(j) * cell, top + int(i) * cell
        kind = "hit" if i == j else "miss"
        title = f"{names[i]} predicted as {names[j]}: {value:.1f} %"
        chart.add(
            "rect", title=title, kind=kind, x=x, y=y, width=cell, height=cell,
            fill_opacity=round(0.08 + 0.0092 * value, 3),
        )  # fmt: skip
        if not large:
            kind = "strong" if value > 55 else "weak"
            x, y = x + cell / 2, y + cell / 2 + 4
            chart.add("text", f"{value:.0f}", kind=kind, x=x, y=y, text_anchor="middle")
    place = f"translate(12 {_number(top + side / 2)}) rotate(-90)"
    chart.add("text", "true", kind="title", transform=place, text_anchor="middle")
    x, y = left + side / 2, top + side + label_px + 18
    chart.add("text", "predicted", kind="title", x=x, y=y, text_anchor="middle")
    return chart.markup()


def interval_chart(
    names: Sequence[str],
    values: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    x_label: str,
) -> Markup:
    """Differences and their confidence intervals, one row each, around a line at zero.

    Args:
        names: Names of the rows.
        values: (n,) differences; rows of NaN are left out.
        low: (n,) lower ends.
        high: (n,) upper ends.
        x_label: Title of the axis.
    """
    rows = [int(i) for i in np.flatnonzero(~np.isnan(values))]
    labels = [shorten(names[i]) for i in rows]
    left = 14 + max((text_width(label) for label in labels), default=0)
    row, top = 20, 8
    width, bottom = left + 320, top + row * len(rows)
    chart = Chart(
        width, bottom + 42, f"{x_label}, with 95 % confidence intervals, of {len(rows)} classes"
    )
    ends = np.concatenate([low[rows], high[rows], values[rows], [0.0]])
    reach = max(0.01, float(np.nanmax(np.abs(ends)))) * 1.05

    def across(value: float) -> float:
        return left + (value + reach) / (2 * reach) * (width - left - 12)

    for value in ticks(-reach, reach, most=7):
        x = across(value)
        kind = "axis" if abs(value) < 1e-12 else "grid"
        chart.add("line", kind=kind, x1=x, x2=x, y1=top, y2=bottom)
        chart.add("text", _short(100 * value), x=x, y=bottom + 16, text_anchor="middle")
    for place, (i, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + (place + 0.5) * row
        chart.add("text", label, title=names[i], x=left - 8, y=y + 4, text_anchor="end")
        kind = "neutral" if not (low[i] > 0 or high[i] < 0) else "up" if values[i] > 0 else "down"
        title = f"{names[i]}: {100 * values[i]:+.1f} ({100 * low[i]:+.1f} to {100 * high[i]:+.1f})"
        if not np.isnan(low[i]):
            x1, x2 = across(low[i]), across(high[i])
            chart.add("line", title=title, kind=f"range {kind}", x1=x1, x2=x2, y1=y, y2=y)
        chart.add("circle", title=title, kind=f"mark {kind}", cx=across(values[i]), cy=y, r=4)
    middle = (left + width - 12) / 2
    chart.add("text", x_label, kind="title", x=middle, y=bottom + 36, text_anchor="middle")
    return chart.markup()


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two values, at equal steps of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def shorten(name: str, widest: float = 26 * _CHARACTER) -> str:
    """A name, its end replaced by an ellipsis where it is wider than 26 characters."""
    if text_width(name) <= widest:
        return name
    kept = name
    while text_width(kept) > widest - _CHARACTER:
        kept = kept[:-1]
    return kept + "\u2026"


def text_width(text: str) -> float:
    """Approximate width of small text in pixels; East Asian characters are twice as wide."""
    return _CHARACTER * sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    """Lowest and highest value, never the same."""
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or max(abs(low) * 0.1, 1e-6)
    return (0.0 if 0 <= low < high / 2 else low - margin), high + margin


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "\u2212")
    return f"{value:.3g}".replace("-", "\u2212") if value else "0"


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
