"""The result of a prediction, how it is shown and how it is saved.

Legend: H W pixels of the image, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.classes import ClassSet
from segformer.files import check_replaceable, whole_file
from segformer.image import ImageArray, ImageFiles, source_files
from segformer.image.drawing import color_channels, overlay, shrink, stack
from segformer.image.drawing import legend as draw_legend

_RUN_LENGTHS = 3
"""zlib's strategy Z_RLE."""

_NOTEBOOK_SIDE = 640
"""Longest side in pixels of what a notebook shows."""

Output: TypeAlias = Literal["label_map", "overlay", "confidence"]
"""A file of a prediction."""


@dataclass(frozen=True, eq=False)
class SampledConfidence:
    """Confidence on a regular grid of pixels.

    Attributes:
        rows: (n,) rows of the image.
        columns: (m,) columns of the image.
        values: (n, m) float32 probability of the class of each of these pixels.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float32]

    def at(self, pixels: NDArray[np.integer]) -> NDArray[np.integer]:
        """Values of an array (H, W), such as a label map, at the pixels of the grid, (n, m)."""
        return pixels[np.ix_(self.rows, self.columns)]


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
        sampled_confidence: The probability of some of the pixels' classes, or None unless
            `Predictor.stream` is asked for it.
    """

    label_map: NDArray[np.integer]
    classes: ClassSet
    image: ImageArray = field(repr=False)
    source: ImageFiles | None = None
    confidence: NDArray[np.float32] | None = field(default=None, repr=False)
    rgb_channels: tuple[int, int, int] | None = None
    sampled_confidence: SampledConfidence | None = field(default=None, repr=False)

    multilabel: ClassVar[bool] = False

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

    @property
    def pixel_confidence(self) -> NDArray[np.float32] | None:
        """(H, W) probability of the class of each pixel, or None without the confidence."""
        return self.confidence

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(H, W) True where a pixel is of the class.

        Args:
            name: Name of a class.

        Raises:
            ValueError: There is no such class.
        """
        return self.label_map == self._class_id(name)

    def _class_id(self, name: str) -> int:
        if name not in self.classes.names:
            raise ValueError(f"no class {name!r}; there are {', '.join(self.classes.names)}")
        return self.classes.names.index(name)

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
        image, label_map = self._shown(self.label_map, max_side)
        blended = Image.fromarray(overlay(image, label_map, self.classes.colors(), opacity=opacity))
        return self._with_legend(blended) if legend else blended

    def _shown(
        self, ids: NDArray[np.integer], max_side: int
    ) -> tuple[ImageArray, NDArray[np.integer]]:
        """The channels of the image that are shown and ``ids`` (H, W), no side above a limit."""
        image = color_channels(self.image, self.rgb_channels)
        height, width = ids.shape
        if max(height, width) <= max_side:
            return image, ids
        ratio = max_side / max(height, width)
        return shrink(image, ids, (max(1, round(height * ratio)), max(1, round(width * ratio))))

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
        ``NAME_confidence.png``: 8-bit gray levels, 255 for a probability of 1. Where classes may
        overlap, ``NAME.tif`` and ``NAME_confidence.tif`` have a channel for each class instead.

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
        sources = () if self.source is None else source_files(self.source)
        name = name or (sources[0].stem if sources else "prediction")
        confidence = self.confidence is not None
        paths = output_paths(
            Path(folder),
            name,
            overlay=overlay,
            confidence=confidence,
            multilabel=self.multilabel,
        )
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
                self._write(output, partial)

    def _repr_jpeg_(self) -> bytes:
        """How a notebook shows a prediction: the overlay, small."""
        shown = io.BytesIO()
        self.overlay(max_side=_NOTEBOOK_SIDE).save(shown, "JPEG", quality=85)
        return shown.getvalue()

    def _write(self, output: Output, path: Path) -> None:
        if output == "label_map":
            # Runs of one class: with this strategy files are smaller and written faster
            Image.fromarray(self.label_map).save(path, compress_type=_RUN_LENGTHS)
        elif output == "overlay":
            self.overlay().save(path, quality=90)
        elif self.confidence is not None:
            Image.fromarray(np.rint(255 * self.confidence).astype(np.uint8)).save(path)

    def _with_legend(self, image: Image.Image) -> Image.Image:
        """The image, and below it rows of color, name and class fraction."""
        entries = [
            (self.classes.palette[self.classes.names.index(name)], f"{name}  {fraction:.1%}")
            for name, fraction in self.class_fractions.items()
        ]
        font_px = max(12, min(28, image.width // 36))
        return stack(image, draw_legend(entries, image.width, font_px))


def output_paths(
    folder: Path, name: str, *, overlay: bool, confidence: bool, multilabel: bool = False
) -> dict[Output, Path]:
    """The files of a prediction, the label map first; of overlapping classes, their masks."""
    suffix = ".tif" if multilabel else ".png"
    paths: dict[Output, Path] = {"label_map": folder / f"{name}{suffix}"}
    if overlay:
        paths["overlay"] = folder / f"{name}_overlay.jpg"
    if confidence:
        paths["confidence"] = folder / f"{name}_confidence{suffix}"
    return paths
