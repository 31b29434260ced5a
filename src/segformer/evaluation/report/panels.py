"""Images of a report, embedded as data URIs.

Legend: h w pixels as shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.classes import ClassSet
from segformer.evaluation.examples import Example
from segformer.image.drawing import overlay

_QUALITY = 80
_WRONG = np.array((255, 0, 96), np.float32)
"""Color of pixels that differ: one that neither vegetation, sky nor skin has."""

_MOST_CLASSES = 14
"""Classes of an image that its legend shows, those with the most pixels."""


@dataclass(frozen=True)
class Panel:
    """An image in a row of images.

    Attributes:
        caption: What it is.
        uri: The image as a data URI.
        width: Pixels.
        height: Pixels.
    """

    caption: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Row:
    """An example: some panels and a legend.

    Attributes:
        name: Name of the image.
        note: Text after the name, such as a score.
        panels: The images.
        legend: Color and name of each class, that with the most pixels first.
        more: Classes that are not in the legend.
    """

    name: str
    note: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]
    more: int


def example_row(example: Example, classes: ClassSet, note: str, captions: Sequence[str]) -> Row:
    """Image, truth, predictions and where they differ.

    Args:
        example: The example, with one prediction or two.
        classes: Its classes.
        note: Text after its name.
        captions: What to call each prediction.
    """
    ignored = example.truth == classes.ignore_index
    colors = classes.colors()
    panels = [
        image_panel("image", example.image),
        image_panel("truth", overlay(example.image, example.truth, colors)),
        *(
            image_panel(caption, overlay(example.image, prediction, colors))
            for caption, prediction in zip(captions, example.predictions, strict=True)
        ),
    ]
    if len(example.predictions) == 1:
        wrong = (example.predictions[0] != example.truth) & ~ignored
        panels.append(image_panel("wrong pixels", _marked(example.image, wrong, ignored)))
    else:
        differ = example.predictions[0] != example.predictions[1]
        panels.append(
            image_panel("pixels that differ", _marked(example.image, differ, np.zeros_like(differ)))
        )
    counts = np.zeros(len(classes), np.int64)
    for class_ids in (example.truth, *example.predictions):
        known = class_ids[(class_ids >= 0) & (class_ids < len(classes))].astype(np.int64)
        counts += np.bincount(known, minlength=len(classes))
    ids = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return Row(
        name=example.name,
        note=note,
        panels=tuple(panels),
        legend=tuple((color_of(classes, i), classes.names[i]) for i in ids[:_MOST_CLASSES]),
        more=max(0, len(ids) - _MOST_CLASSES),
    )


def color_of(classes: ClassSet, class_id: int) -> str:
    """The color of a class for a style sheet, such as "#ff8800"."""
    return "#{:02x}{:02x}{:02x}".format(*classes.palette[class_id])


def image_panel(caption: str, image: NDArray[np.uint8]) -> Panel:
    """An image (h, w, 3) with a caption."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Panel(caption, uri, image.shape[1], image.shape[0])


def _marked(
    image: NDArray[np.uint8], marked: NDArray[np.bool_], ignored: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The image in light gray, some pixels in one color, ignored ones darkened."""
    gray = image.mean(2, keepdims=True)
    shown = np.repeat(96 + 0.6 * gray, 3, axis=2)
    shown[marked] = 0.25 * gray[marked] + 0.75 * _WRONG
    shown[ignored] = gray[ignored] // 3
    return np.rint(shown).clip(0, 255).astype(np.uint8)
