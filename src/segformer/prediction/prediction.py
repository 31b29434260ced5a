"""The result of a prediction, how it is shown and how it is saved.

Legend: H W pixels of the image, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segformer.classes import ClassSet
from segformer.files import check_replaceable, whole_file
from segformer.image import ImageArray, ImageFiles, resize

_RUN_LENGTHS = 3
"""zlib's strategy Z_RLE."""

Output: TypeAlias = Literal["label_map", "overlay", "confidence"]
"""A file of a prediction."""

_DARKER = (0.35 * np.arange(256)).astype(np.uint8)
"""Each level as it is on the edges between classes."""

_SAMPLED = 1 << 20
"""Values from which the range of an image that is not 8-bit is estimated."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The classes of an image's pixels. Two predictions are equal only if they are one object.

    Attributes:
        label_map: (H, W) class ids at the image's own size, uint8, or uint16 above 256 classes.
        classes: What the ids mean.
        image: (H, W, C) the image, upright.
        source: File of the image, files of its channels, or None.
        confidence: (H, W) float32 probability of each pixel's class, or None unless the option
            ``confidence`` is set.
        rgb_channels: Channels that `overlay` shows as red, green and blue. Default: the first
            three, or the first as gray.
    """

    label_map: NDArray[np.integer]
    classes: ClassSet
    image: ImageArray = field(repr=False)
    source: ImageFiles | None = None
    confidence: NDArray[np.float32] | None = field(default=None, repr=False)
    rgb_channels: tuple[int, int, int] | None = None

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
        """(H, W) True where a pixel is of the class.

        Args:
            name: Name of a class.

        Raises:
            ValueError: There is no such class.
        """
        if name not in self.classes.names:
            raise ValueError(f"no class {name!r}; there are {', '.join(self.classes.names)}")
        return self.label_map == self.classes.names.index(name)

    def overlay(
        self, *, opacity: float = 0.55, legend: bool = True, max_side: int = 4096
    ) -> Image.Image:
        """Colors of the classes over the image, with dark edges and a legend below.

        Args:
            opacity: Opacity of the colors, 0..1.
            legend: Add a legend with the classes that occur and their class fractions.
            max_side: Larger images are shown smaller, so that image viewers can open them.

        Returns:
            RGB image.
        """
        height, width = self.label_map.shape
        image, label_map = _color_channels(self.image, self.rgb_channels), self.label_map
        if max(height, width) > max_side:
            ratio = max_side / max(height, width)
            size = max(1, round(height * ratio)), max(1, round(width * ratio))
            image = resize(image, size)
            rows = (np.arange(size[0]) / ratio).astype(int).clip(max=height - 1)
            columns = (np.arange(size[1]) / ratio).astype(int).clip(max=width - 1)
            label_map = label_map[np.ix_(rows, columns)]
        mixed = self.classes.colors()[label_map]
        shown = np.ascontiguousarray(_displayable(image))
        cv2.addWeighted(shown, 1 - opacity, mixed, opacity, 0, dst=mixed)
        if opacity > 0:
            edges = _edges(label_map)
            mixed[edges] = _DARKER[mixed[edges]]
        blended = Image.fromarray(mixed)
        return self._with_legend(blended) if legend else blended

    def save(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        overlay: bool = True,
        overwrite: bool = True,
    ) -> list[Path]:
        """Write the label map as ``NAME.png``, and ``NAME_overlay.jpg``.

        Class ids are gray levels, with 16 bits above 256 classes. With confidence there is also
        ``NAME_confidence.png``: 8-bit gray levels, 255 for a probability of 1.

        Args:
            folder: Created if it does not exist.
            name: Name without suffix; may contain folders. Default: that of the image, or of its
                first channel.
            overlay: Write the overlay too.
            overwrite: Replace existing files. The image itself is never replaced.

        Returns:
            The files written, the label map first.

        Raises:
            ValueError: A file would replace the image, or exists and ``overwrite`` is False
                (`segformer.files.OutputExists`); nothing is written.
        """
        sources = (self.source,) if isinstance(self.source, Path) else self.source or ()
        name = name or (sources[0].stem if sources else "prediction")
        confidence = self.confidence is not None
        paths = output_paths(Path(folder), name, overlay=overlay, confidence=confidence)
        for path in paths.values():
            if any(path.resolve() == source.resolve() for source in sources):
                raise ValueError(f"{path}: would replace the image; save to another folder or name")
        check_replaceable(paths.values(), overwrite=overwrite)
        self.write(paths)
        return list(paths.values())

    def write(self, paths: Mapping[Output, Path]) -> None:
        """Write files that `output_paths` names, or some of them."""
        for output, path in paths.items():
            with whole_file(path) as partial:
                if output == "label_map":
                    # Runs of one class: with this strategy files are smaller and written faster
                    Image.fromarray(self.label_map).save(partial, compress_type=_RUN_LENGTHS)
                elif output == "overlay":
                    self.overlay().save(partial, quality=90)
                elif self.confidence is not None:
                    Image.fromarray(np.rint(255 * self.confidence).astype(np.uint8)).save(partial)

    def _with_legend(self, image: Image.Image) -> Image.Image:
        """The image, and below it rows of color, name and class fraction."""
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


def output_paths(folder: Path, name: str, *, overlay: bool, confidence: bool) -> dict[Output, Path]:
    """The files of a prediction, the label map first."""
    paths: dict[Output, Path] = {"label_map": folder / f"{name}.png"}
    if overlay:
        paths["overlay"] = folder / f"{name}_overlay.jpg"
    if confidence:
        paths["confidence"] = folder / f"{name}_confidence.png"
    return paths


def _color_channels(image: ImageArray, rgb: tuple[int, int, int] | None) -> ImageArray:
    """The channels of (H, W, C) that are shown: those of ``rgb``, the first three, or one."""
    if rgb is not None:
        return image[:, :, rgb]
    return image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]


def _displayable(channels: ImageArray) -> ImageArray:
    """(H, W, 1 or 3) of any type -> (H, W, 3) uint8; ranges other than 0..255 are stretched."""
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
