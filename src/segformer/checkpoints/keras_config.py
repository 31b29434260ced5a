"""How KerasHub describes a model in JSON, as the entries of the Hub layout.

A preset has the backbone in ``config.json``, the whole model in ``task.json`` and its input in
``preprocessor.json`` or ``image_converter.json``; a ``.keras`` archive has all in ``config.json``.
Each object is ``{"class_name": ..., "config": {...}}``.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segformer.checkpoints.errors import CheckpointError, printable
from segformer.checkpoints.layout import INVALID, describe_error, read_json
from segformer.config import KERASHUB_EPS, LARGEST_WIDTH
from segformer.image import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING

WEIGHTS_FILE = "model.weights.h5"
TASK_WEIGHTS_FILE = "task.weights.h5"
TASK_FILE = "task.json"
INPUT_FILES = ("preprocessor.json", "image_converter.json")
"""The first of them describes a model's input."""
PRESET_FILES = (TASK_WEIGHTS_FILE, TASK_FILE, *INPUT_FILES)
"""Other files of a preset than ``config.json`` and the weights."""

_SEGMENTERS = ("SegFormerImageSegmenter",)
_CLASSIFIERS = ("MiTImageClassifier", "ImageClassifier")
_RESAMPLING = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos3": "lanczos",
}


def is_keras(entries: dict[str, Any]) -> bool:
    """Whether the entries of a ``config.json`` are an object of Keras."""
    return isinstance(entries.get("class_name"), str) and "config" in entries


def hub_entries(
    entries: dict[str, Any], folder: Path | None, origin: object
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Translate a description into the entries of ``config.json`` and ``preprocessor_config.json``.

    Args:
        entries: Of the model or its backbone.
        folder: The preset; None for an archive.
        origin: Path of the description, for messages.

    Raises:
        CheckpointError: It is not a SegFormer, or a value is invalid.
    """
    converter: Any = None
    if folder is not None:
        if (folder / TASK_FILE).is_file():
            entries = read_json(folder / TASK_FILE)
        found = [folder / name for name in INPUT_FILES if (folder / name).is_file()]
        converter = read_json(found[0]) if found else None
    try:
        return _hub_entries(entries, converter)
    except INVALID as error:
        raise CheckpointError(f"{origin}: {describe_error(error)}") from None


def _hub_entries(entries: dict[str, Any], converter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    task: dict[str, Any] = {}
    model, name = entries["config"], entries["class_name"]
    segmenter, classifier = name in _SEGMENTERS, name in _CLASSIFIERS
    if segmenter or classifier:
        task = model
        model, name = task["backbone"]["config"], task["backbone"]["class_name"]
    decoder: dict[str, Any] = {}
    if name == "SegFormerBackbone":
        decoder = model
        model, name = decoder["image_encoder"]["config"], decoder["image_encoder"]["class_name"]
    if name != "MiTBackbone" or (classifier and decoder):
        raise ValueError(f"a {printable(name)} of Keras, not a SegFormer")
    if classifier and task.get("pooling", "avg") != "avg":
        raise ValueError(f"pooling is {printable(task['pooling'])!r}; a SegFormer takes the mean")
    height, width, channels = model.get("image_shape", (None, None, 3))
    if not isinstance(channels, int) or not 1 <= channels <= LARGEST_WIDTH:
        raise ValueError(f"an image_shape of {printable(channels)} channels")
    config = {
        "num_channels": channels,
        "hidden_sizes": model["hidden_dims"],
        "depths": model["layerwise_depths"],
        "num_attention_heads": model["layerwise_num_heads"],
        "sr_ratios": model["layerwise_sr_ratios"],
        "patch_sizes": list(model["layerwise_patch_sizes"]),
        "strides": list(model["layerwise_strides"]),
        "drop_path_rate": model.get("max_drop_path_rate", 0.1),
        "decoder_hidden_size": decoder.get("projection_filters", 256),
        "hidden_act": "gelu_pytorch_tanh",
        "segformer": {"eps": asdict(KERASHUB_EPS)},
    }
    if "num_classes" in task:
        config["num_labels"] = task["num_classes"]
    converter = converter or task.get("preprocessor")
    if converter is not None:
        converter = converter["config"]
        converter = converter.get("image_converter", converter)
        converter = None if converter is None else converter.get("config", converter)
    preprocessing = _input_entries(converter or {}, channels)
    size = [height, width] if height and width else converter and converter.get("image_size")
    preprocessing |= _size_entries(size or [512, 512], classifier)
    return config, preprocessing


def _input_entries(converter: dict[str, Any], channels: int) -> dict[str, Any]:
    """Normalization: KerasHub computes ``x * scale + offset``, here ``(x * rescale - mean) / std``.

    Older presets state the mean, the variance and one scale.
    """
    if converter.get("pad_to_aspect_ratio"):
        raise ValueError("pad_to_aspect_ratio is not supported; images are resized without borders")
    mean = IMAGENET_MEAN if channels == 3 else (0.5,) * channels
    std = IMAGENET_STD if channels == 3 else (0.25,) * channels
    scale, offset = converter.get("scale"), converter.get("offset")
    if "variance" in converter:
        mean, rescale = converter["mean"], float(converter["scale"])
        std = tuple(math.sqrt(value) for value in converter["variance"])
    elif converter:  # None: the values go into the model as they are
        scales, offsets = _of_channels(scale, 1, channels), _of_channels(offset, 0, channels)
        rescale = 1.0 if scale is None else 1 / 255
        std = tuple(rescale / value for value in scales)
        mean = tuple(-value * deviation for value, deviation in zip(offsets, std, strict=True))
    else:
        rescale = 1 / 255
    resample = _RESAMPLING.get(converter.get("interpolation", "bilinear"))
    if resample is None:
        raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}")
    return {
        "image_mean": list(mean),
        "image_std": list(std),
        "rescale_factor": rescale,
        "resample": int(RESAMPLING[resample]),
    }


def _size_entries(size: list[int], classifier: bool) -> dict[str, Any]:
    """Size of the input. KerasHub crops images to its ratio; a segmenter here keeps all of them."""
    height, width = size
    if classifier:
        crop = {"height": height, "width": width}
        return {
            "size": {"shortest_edge": max(height, width)},
            "do_center_crop": True,
            "crop_size": crop,
        }
    return {"size": {"shortest_edge": min(height, width)}, "size_multiple": 32}


def _of_channels(value: Any, default: float, channels: int) -> tuple[float, ...]:
    if isinstance(value, list):
        return tuple(float(entry) for entry in value)
    return (float(default if value is None else value),) * channels
