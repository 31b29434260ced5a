"""An exported graph against the predictions of this package, on real images.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segformer.export.config import ExportConfig
from segformer.export.graph_runner import Run
from segformer.image import ImageArray, Preprocessing, read_image, resize
from segformer.model.encoder import MixTransformer
from segformer.model.segformer import SegFormer
from segformer.model.tracing import AnyModel
from segformer.prediction.runtimes.exported_info import check_line
from segformer.prediction.runtimes.pytorch import TorchRuntime
from segformer.prediction.upsample import logits_to_label_map

OWN_IMAGE = Path(__file__).parent.parent / "assets" / "astronaut.jpg"
"""A photograph, of which the graph is checked if no other is given."""

_ODD_SIZE = (333, 259)
"""Height and width that are no multiples of anything: every stage rounds."""

_LIMITS = {False: (1e-3, 0.9999), True: (2e-2, 0.995)}
"""By ``half``: the largest difference of logits, for half relative to the largest logit; and the
fraction of pixels with the same class."""


class ExportMismatch(ValueError):
    """An exported graph does not compute what the model does; nothing is written."""


@dataclass(frozen=True)
class Check:
    """What one comparison found.

    Attributes:
        image: Name of the image.
        shape: Shape of the input.
        largest_difference: Of logits, feature maps or probabilities; None for label maps.
        largest_value: Largest absolute value of what was expected.
        same_class: Fraction of pixels (or images, for a classifier) with the same class; None for
            encoders.
    """

    image: str
    shape: tuple[int, ...]
    largest_difference: float | None
    largest_value: float
    same_class: float | None

    def __str__(self) -> str:
        return check_line(asdict(self))


def check(
    run: Run,
    model: AnyModel,
    preprocessing: Preprocessing,
    config: ExportConfig,
    images: Sequence[Path] = (),
) -> list[Check]:
    """Compare a graph with the model on images, each at the model's size and at an odd size.

    Args:
        run: Runs the graph: input -> outputs.
        model: The model.
        preprocessing: How images become its input.
        config: What is inside the graph.
        images: Files; those of other channels than the model's are refused. Default: a
            photograph that ships with the package.

    Returns:
        What was found.

    Raises:
        ExportMismatch: An output differs by more than the limits, or is not finite.
        ValueError: An image cannot be read.
    """
    found = []
    channels = model.config.in_channels
    for path in images or [OWN_IMAGE]:
        image = (
            read_image(path, channels, as_8_bit=preprocessing.expects_8_bit)
            if images
            else _own_image(channels)
        )
        own = preprocessing.crop or preprocessing.target_size(*image.shape[:2])
        sizes = [config.size] if config.size is not None else [own, _ODD_SIZE]
        for size in sizes:
            seen = resize(image, size, preprocessing.resample)
            batch = [seen] if config.size is not None else [seen, seen[:, ::-1]]
            found.append(_compare(run, model, preprocessing, config, np.stack(batch), path.name))
    return found


def _compare(
    run: Run,
    model: AnyModel,
    preprocessing: Preprocessing,
    config: ExportConfig,
    images: ImageArray,
    name: str,
) -> Check:
    """One comparison, of images (B, H, W, C)."""
    normalized = np.stack([_normalize(image, preprocessing) for image in images])
    pixels = np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))
    expected = _expected(model, pixels)
    outputs = run(images if config.input == "image" else pixels)
    size = images.shape[1:3]
    difference: float | None = None
    same: float | None = None
    if config.output == "label-map":
        labels = np.stack([logits_to_label_map([one], size)[0] for one in expected[0]])
        same = float((outputs[0] == labels).mean())
    elif config.output == "probabilities":
        views = [logits_to_label_map([one], size, confidence=True) for one in expected[0]]
        chosen = np.stack([label_map for label_map, _ in views])
        same = float((outputs[0].argmax(1) == chosen).mean())
        best = np.stack([confidence for _, confidence in views if confidence is not None])
        difference = _largest(outputs[0].max(1), best)
    else:
        difference = max(map(_largest, outputs, (one.numpy() for one in expected)))
        if isinstance(model, SegFormer):
            labels, found = (
                np.stack([logits_to_label_map([one], size)[0] for one in logits])
                for logits in (expected[0], torch.from_numpy(outputs[0]))
            )
            same = float((labels == found).mean())
        elif len(expected) == 1:
            same = float((outputs[0].argmax(1) == expected[0].numpy().argmax(1)).mean())
    largest = max(float(one.abs().max()) for one in expected)
    result = Check(name, tuple(images.shape), difference, largest, same)
    _judge(result, config)
    return result


def _judge(result: Check, config: ExportConfig) -> None:
    """Raise ExportMismatch if a comparison is outside the limits."""
    limit, least = _LIMITS[config.half]
    if config.half and config.output == "logits":
        limit *= max(1.0, result.largest_value)
    where = f"{result.image}, {' x '.join(map(str, result.shape))}"
    if result.largest_difference is not None and not result.largest_difference <= limit:
        reason = (
            "values do not fit into float16; export without --half"
            if config.half and not np.isfinite(result.largest_difference)
            else "nothing was written"
        )
        raise ExportMismatch(
            f"the exported graph differs from the model by {result.largest_difference:.2g} "
            f"({where}); at most {limit:.2g} is accepted: {reason}"
        )
    if result.same_class is not None and not result.same_class >= least:
        raise ExportMismatch(
            f"the exported graph gives {result.same_class:.4%} of the pixels the same class as the "
            f"model ({where}); at least {least:.2%} are needed: nothing was written"
        )


def _expected(model: AnyModel, pixels: NDArray[np.float32]) -> list[torch.Tensor]:
    """What the model gives for normalized pixels, as `Predictor` runs it."""
    if not isinstance(model, MixTransformer):
        return [TorchRuntime(model, "cpu")(pixels)]
    with torch.inference_mode():
        return list(model(torch.from_numpy(pixels)))


def _largest(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference; infinity if a value is not finite or a shape differs."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(np.asarray(found, np.float64) - expected).max())


def _own_image(channels: int) -> ImageArray:
    """The photograph; of other numbers of channels, with its three colors repeated."""
    image = read_image(OWN_IMAGE, 3)
    return image[:, :, np.arange(channels) % 3]


def _normalize(image: ImageArray, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """As the preprocessing does; 8-bit images of models of other values by their own range."""
    if preprocessing.expects_8_bit or image.dtype != np.uint8:
        return preprocessing.normalize(image)
    return (image.astype(np.float32) - np.float32(128)) / np.float32(64)
