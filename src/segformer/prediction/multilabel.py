"""Predictions of models whose classes may overlap: one mask for each class.

Legend: H W pixels of the image, K classes, h w logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segformer.data.multilabel import pack
from segformer.image.drawing import displayable, overlay
from segformer.model.interpolation import interpolate_rows
from segformer.prediction.prediction import Output, Prediction

NO_CLASS = 255
"""Value in a label map where no class is present; there are at most 62 classes."""

_CHUNK_VALUES = 1 << 21
"""Number of logits interpolated at a time: 8 MB of float32."""


@dataclass(frozen=True, eq=False)
class MultiLabelPrediction(Prediction):
    """The classes of an image's pixels, of which any number may be present at a pixel.

    Attributes:
        masks: (K, H, W) True where a class is present: where its probability exceeds its threshold.
        label_map: (H, W) uint8, the most probable of the classes that are present, or `NO_CLASS`.
        confidence: (K, H, W) float32 probability of each class, or None unless the option
            ``confidence`` is set.
    """

    multilabel: ClassVar[bool] = True

    masks: NDArray[np.bool_] = field(kw_only=True, repr=False)

    @cached_property
    def class_fractions(self) -> dict[str, float]:
        """Fraction of the image, 0..1, of each class that occurs, largest first.

        Classes may overlap or be absent, so the sum need not be 1.
        """
        fractions = self.masks.mean((1, 2))
        order = np.argsort(-fractions, kind="stable")
        return {self.classes.names[i]: float(fractions[i]) for i in order if fractions[i]}

    @property
    def pixel_confidence(self) -> NDArray[np.float32] | None:
        """(H, W) probability of the most probable class, or None without the confidence."""
        return None if self.confidence is None else self.confidence.max(0)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(H, W) True where the class is present.

        Args:
            name: Name of a class.

        Raises:
            ValueError: There is no such class.
        """
        return self.masks[self._class_id(name)]

    def overlay(
        self, *, opacity: float = 0.55, legend: bool = True, max_side: int = 4096
    ) -> Image.Image:
        """Colors of the classes over the image, mixed where classes overlap.

        Args:
            opacity: Opacity of the colors, 0..1.
            legend: Add a legend with the classes that occur and their class fractions.
            max_side: Larger images are shown smaller, so that image viewers can open them.

        Returns:
            RGB image.
        """
        combinations, numbers = self._combinations()
        colors = self.classes.colors()
        mixed = np.zeros((len(combinations), 3), np.uint8)
        for color, present in zip(mixed, combinations, strict=True):
            color[:] = colors[present].mean(0) if present.any() else 0
        image, numbers = self._shown(numbers, max_side)
        drawn = overlay(image, numbers, mixed, opacity=opacity)
        nothing = (combinations.sum(1) == 0)[numbers]
        drawn[nothing] = displayable(image)[nothing]
        blended = Image.fromarray(drawn)
        return self._with_legend(blended) if legend else blended

    def _combinations(self) -> tuple[NDArray[np.bool_], NDArray[np.integer]]:
        """The sets of classes that occur, (N, K), and the number of that of each pixel, (H, W)."""
        packed = pack(self.masks)
        values, numbers = np.unique(packed, return_inverse=True)
        combinations = values[:, None] >> np.arange(len(self.masks)) & 1 == 1
        return combinations, numbers.reshape(packed.shape)

    def _write(self, output: Output, path: Path) -> None:
        """Masks as a TIFF with a channel for each class: 255 where it is present, else 0."""
        if output == "overlay":
            super()._write(output, path)
        elif output == "label_map":
            self._write_channels(path, self.masks.astype(np.uint8) * 255)
        elif self.confidence is not None:
            self._write_channels(path, np.rint(255 * self.confidence).astype(np.uint8))

    def _write_channels(self, path: Path, channels: NDArray[np.uint8]) -> None:
        """Write (K, H, W), with the names of the classes in the description."""
        tifffile.imwrite(
            path,
            channels,
            photometric="minisblack",
            planarconfig="separate",
            compression="zlib",
            metadata={"axes": "CYX", "classes": list(self.classes.names)},
        )


def predict_masks(
    tta_logits: Sequence[Tensor],
    size: tuple[int, int],
    thresholds: Sequence[float],
    about: dict[str, Any],
    *,
    confidence: bool = False,
) -> MultiLabelPrediction:
    """The prediction of an image; see `logits_to_masks`.

    Args:
        tta_logits: Logits (K, h, w) of each view.
        size: (height, width) of the image in pixels.
        thresholds: (K,) probability above which each class is present.
        about: Other attributes of the prediction.
        confidence: Also keep the probabilities.
    """
    masks, label_map, probs = logits_to_masks(tta_logits, size, thresholds, confidence=confidence)
    return MultiLabelPrediction(label_map=label_map, masks=masks, confidence=probs, **about)


def logits_to_masks(
    tta_logits: Sequence[Tensor],
    size: tuple[int, int],
    thresholds: Sequence[float],
    *,
    confidence: bool = False,
) -> tuple[NDArray[np.bool_], NDArray[np.uint8], NDArray[np.float32] | None]:
    """Return the classes that are present at each pixel.

    Logits are upsampled bilinearly before the sigmoid. For several views of test-time augmentation
    (scales, flips), the probabilities are averaged.

    Args:
        tta_logits: Logits (K, h, w) of each view; h and w can differ.
        size: (height, width) of the image in pixels.
        thresholds: (K,) probability above which each class is present.
        confidence: Also return the probabilities.

    Returns:
        ``masks``, ``label_map`` and ``confidence`` of `MultiLabelPrediction`.
    """
    classes = tta_logits[0].shape[0]
    masks, label_map = np.empty((classes, *size), bool), np.empty(size, np.uint8)
    kept = np.empty((classes, *size), np.float32) if confidence else None
    limits = torch.tensor(thresholds, device=tta_logits[0].device)[:, None, None]
    for rows, probs in _probabilities(tta_logits, size):
        present = probs > limits
        best = probs.where(present, -1).max(0)
        label_map[rows] = best.indices.where(best.values >= 0, NO_CLASS).cpu().numpy()
        masks[:, rows] = present.cpu().numpy()
        if kept is not None:
            kept[:, rows] = probs.cpu().numpy()
    return masks, label_map, kept


def _probabilities(
    tta_logits: Sequence[Tensor], size: tuple[int, int]
) -> Iterator[tuple[slice, Tensor]]:
    """Mean probabilities (K, rows, W) over the views, some rows at a time."""
    height, width = size
    tokens = [logits.permute(1, 2, 0)[None] for logits in tta_logits]
    rows = max(1, _CHUNK_VALUES // (width * tta_logits[0].shape[0]))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        views = [interpolate_rows(logits, size, top, bottom)[0].sigmoid() for logits in tokens]
        yield slice(top, bottom), torch.stack(views).mean(0).permute(2, 0, 1)
