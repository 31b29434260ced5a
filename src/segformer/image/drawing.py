"""Drawing label maps over images, and legends.

Legend: H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segformer.image.preprocessing import ImageArray, resize

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_DARKER = (0.35 * np.arange(256)).astype(np.uint8)
"""Each level as it is on the edges between classes."""

_SAMPLED = 1 << 20
"""Values from which the range of an image that is not 8-bit is estimated."""


def overlay(
    image: ImageArray,
    label_map: NDArray[np.integer],
    colors: NDArray[np.uint8],
    *,
    opacity: float = 0.55,
) -> NDArray[np.uint8]:
    """Colors of the classes over an image, with dark edges between classes.

    Args:
        image: (H, W, C) of any type; the first three channels are shown, or one.
        label_map: (H, W) class ids. Pixels of other ids show the image, darkened.
        colors: (K, 3) color of each class.
        opacity: Opacity of the colors, 0..1.

    Returns:
        (H, W, 3) RGB.
    """
    shown = np.ascontiguousarray(displayable(image))
    unlabeled = (label_map < 0) | (label_map >= len(colors))
    mixed: NDArray[np.uint8] = colors[np.where(unlabeled, 0, label_map)]
    cv2.addWeighted(shown, 1 - opacity, mixed, opacity, 0, dst=mixed)
    mixed[unlabeled] = shown[unlabeled] // 3
    if opacity > 0:
        edges = _edges(label_map)
        mixed[edges] = _DARKER[mixed[edges]]
    return mixed


def shrink(
    image: ImageArray, label_map: NDArray[np.integer], size: tuple[int, int]
) -> tuple[ImageArray, NDArray[np.integer]]:
    """Image and label map resized to (height, width), the label map by its nearest pixels."""
    height, width = label_map.shape
    rows = (np.arange(size[0]) * (height / size[0])).astype(int).clip(max=height - 1)
    columns = (np.arange(size[1]) * (width / size[1])).astype(int).clip(max=width - 1)
    return resize(color_channels(image), size), label_map[np.ix_(rows, columns)]


def legend(
    entries: Sequence[tuple[tuple[int, int, int], str]], width: int, font_px: int
) -> Image.Image:
    """Rows of a color and a text, on white.

    Args:
        entries: Color and text of each entry.
        width: Width in pixels; the result is wider where one entry needs more.
        font_px: Height of the font in pixels.
    """
    font = ImageFont.load_default(font_px)
    row_px, margin = round(font_px * 1.6), font_px // 2
    widest = max((font.getlength(text) for _, text in entries), default=0)
    column_px = round(widest + 3 * font_px)
    columns = max(1, (width - margin) // column_px)
    rows = -(-len(entries) // columns)
    canvas = Image.new("RGB", (max(width, column_px + margin), rows * row_px + 2 * margin), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (color, text) in enumerate(entries):
        x = margin + i % columns * column_px
        y = margin + i // columns * row_px
        draw.rectangle((x, y, x + font_px, y + font_px), fill=color, outline="black")
        draw.text((x + 1.5 * font_px, y + font_px / 2), text, "black", font, anchor="lm")
    return canvas


def stack(top: Image.Image, bottom: Image.Image) -> Image.Image:
    """One image above another, on white."""
    canvas = Image.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), "white")
    canvas.paste(top, (0, 0))
    canvas.paste(bottom, (0, top.height))
    return canvas


def fit_text(text: str, font: Font, width: float) -> str:
    """The text, its middle replaced by "..." where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
        if font.getlength(shorter) <= width:
            return shorter
    return "..."


def color_channels(image: ImageArray, rgb: tuple[int, int, int] | None = None) -> ImageArray:
    """The channels of (H, W, C) that are shown: those of ``rgb``, the first three, or one."""
    if rgb is not None:
        return image[:, :, rgb]
    return image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]


def displayable(image: ImageArray) -> NDArray[np.uint8]:
    """(H, W, C) of any type -> (H, W, 3) uint8; ranges other than 0..255 are stretched."""
    channels = color_channels(image)
    if channels.dtype != np.uint8:
        step = 1 + int(np.sqrt(channels.size / _SAMPLED))
        sample = channels[::step, ::step]
        sample = sample[np.isfinite(sample)]
        low, high = np.percentile(sample, (1, 99)) if sample.size else (0, 1)
        scaled = (channels.astype(np.float32) - np.float32(low)) * (255 / max(high - low, 1e-12))
        channels = np.nan_to_num(np.clip(scaled, 0, 255)).astype(np.uint8)
    return np.broadcast_to(channels, (*channels.shape[:2], 3))


def _edges(label_map: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(H, W) pixels whose right or lower neighbor has another class."""
    edges = np.zeros(label_map.shape, bool)
    edges[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    edges[:-1] |= label_map[:-1] != label_map[1:]
    return edges
