"""What a prediction is, and how it is shown and kept.

Legend: H W pixels of the image, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segformer.classes import ClassSet
from segformer.files import whole_file
from segformer.image import ImageArray, resize

_RUN_LENGTHS = 3
"""zlib's strategy Z_RLE."""


@dataclass(frozen=True)
class Prediction:
    """The classes of an image's pixels.

    Attributes:
        label_map: (H, W) class ids at the image's own size, uint8, or uint16 above 256 classes.
        classes: What the ids mean.
        image: (H, W, C) the image, upright.
        source: File it came from, or None.
        confidence: (H, W) probability of each pixel's class, if it was asked for.
    """

    label_map: NDArray[np.integer]
    classes: ClassSet
    image: ImageArray = field(repr=False)
    source: Path | None = None
    confidence: NDArray[np.float32] | None = field(default=None, repr=False)

    @cached_property
    def class_fractions(self) -> dict[str, float]:
        """Fraction of the image, 0..1, of each class that occurs, largest first."""
        counts = np.bincount(self.label_map.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {
            self.classes.names[i]: float(counts[i] / self.label_map.size)
            for i in order
            if counts[i]
        }

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(H, W) where the class of this name is.

        Raises:
            ValueError: There is no such class.
        """
        if name not in self.classes.names:
            raise ValueError(f"no class {name!r}; there are {', '.join(self.classes.names)}")
        return self.label_map == self.classes.names.index(name)

    def overlay(
        self, *, opacity: float = 0.55, legend: bool = True, max_side: int = 4096
    ) -> Image.Image:
        """Colors of the classes over the image, edges drawn, with a legend below.

        Args:
            opacity: Of the colors, 0..1.
            legend: Name the classes that occur, with their class_fractions.
            max_side: A longer image is shown smaller, so that others can open it.
        """
        image = _displayable(self.image)
        height, width = self.label_map.shape
        label_map = self.label_map
        if max(height, width) > max_side:
            ratio = max_side / max(height, width)
            size = max(1, round(height * ratio)), max(1, round(width * ratio))
            image = resize(image, size)
            rows = (np.arange(size[0]) / ratio).astype(int).clip(max=height - 1)
            columns = (np.arange(size[1]) / ratio).astype(int).clip(max=width - 1)
            label_map = label_map[np.ix_(rows, columns)]
        colors = self.classes.colors()[label_map]
        mixed = image * (1 - opacity) + colors * opacity
        if opacity > 0:
            mixed[_edges(label_map)] *= 0.35
        blended = Image.fromarray(mixed.astype(np.uint8))
        return self._with_legend(blended) if legend else blended

    def save(
        self, folder: str | Path, *, name: str | None = None, overlay: bool = True
    ) -> list[Path]:
        """Write class ids as PNG, ``NAME.png``, and ``NAME_overlay.jpg``.

        Ids are gray levels, of 16 bits where there are more than 256 classes.

        Args:
            folder: Made if it is not there.
            name: May hold folders; left out, that of the image.
            overlay: Write the overlay too.

        Returns:
            The files written.

        Raises:
            ValueError: The ids would replace the image they come from.
        """
        name = name or (self.source.stem if self.source else "prediction")
        ids_path = Path(folder) / f"{name}.png"
        if self.source is not None and ids_path.resolve() == self.source.resolve():
            raise ValueError(f"{ids_path}: the ids would replace the image; save elsewhere")
        with whole_file(ids_path) as partial:
            # Areas of one class are runs: so coded, files are smaller and made sooner
            Image.fromarray(self.label_map).save(partial, compress_type=_RUN_LENGTHS)
        written = [ids_path]
        if overlay:
            overlay_path = Path(folder) / f"{name}_overlay.jpg"
            with whole_file(overlay_path) as partial:
                self.overlay().save(partial, quality=90)
            written.append(overlay_path)
        return written

    def _with_legend(self, image: Image.Image) -> Image.Image:
        """The image above rows of color, name and fraction."""
        font_px = max(12, min(28, image.width // 36))
        font = ImageFont.load_default(font_px)
        row_px, margin = round(font_px * 1.6), font_px // 2
        entries = [
            (name, f"{name}  {fraction:.1%}") for name, fraction in self.class_fractions.items()
        ]
        widest = max(font.getlength(text) for _, text in entries)
        column_px = round(widest + 3 * font_px)
        columns = max(1, (image.width - margin) // column_px)
        rows = -(-len(entries) // columns)
        canvas = Image.new(
            "RGB",
            (max(image.width, column_px + margin), image.height + rows * row_px + 2 * margin),
            "white",
        )
        canvas.paste(image, (0, 0))
        draw = ImageDraw.Draw(canvas)
        for i, (name, text) in enumerate(entries):
            x = margin + i % columns * column_px
            y = image.height + margin + i // columns * row_px
            color = self.classes.palette[self.classes.names.index(name)]
            draw.rectangle((x, y, x + font_px, y + font_px), fill=color, outline="black")
            draw.text((x + 1.5 * font_px, y + font_px / 2), text, "black", font, anchor="lm")
        return canvas


def _displayable(image: ImageArray) -> ImageArray:
    """(H, W, C) of any type and channels -> (H, W, 3) uint8; other ranges are stretched."""
    channels = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]
    if channels.dtype != np.uint8:
        low, high = np.nanpercentile(channels, (1, 99))
        scaled = (channels.astype(np.float32) - np.float32(low)) * (255 / max(high - low, 1e-12))
        channels = np.nan_to_num(np.clip(scaled, 0, 255)).astype(np.uint8)
    shown = (
        np.broadcast_to(channels, (*channels.shape[:2], 3)) if channels.shape[2] == 1 else channels
    )
    return shown


def _edges(label_map: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(H, W) pixels whose right or lower neighbor has another class."""
    edges = np.zeros(label_map.shape, bool)
    edges[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    edges[:-1] |= label_map[:-1] != label_map[1:]
    return edges
