"""The JSON files of the Hub layout: configuration, classes and preprocessing of a model.

What transformers cannot store (the background's name of a binary model, colors, eps, the kind of
decoder, thresholds) is under the key ``segformer``, which transformers ignores and keeps.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer.checkpoints.errors import CheckpointError, printable
from segformer.classes import ClassSet
from segformer.config import (
    LARGEST_WIDTH,
    PATCH_KERNELS,
    PATCH_STRIDES,
    TRANSFORMERS_EPS,
    NormEps,
    SegFormerConfig,
)
from segformer.image import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Preprocessing

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHT_FILES = (WEIGHTS_FILE, "pytorch_model.bin", "tf_model.h5", "model.weights.h5")
"""Names of the file of weights in a folder, in the order in which they are looked for."""
PREPROCESSING_FILE = "preprocessor_config.json"
FOLDER_FILES = (WEIGHTS_FILE, CONFIG_FILE, PREPROCESSING_FILE)
"""What a folder in the Hub layout consists of."""

INVALID = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What values of the wrong type in a JSON file can raise."""

_ARCHITECTURES = {
    "segmenter": "SegformerForSemanticSegmentation",
    "classifier": "SegformerForImageClassification",
    "encoder": "SegformerModel",
}

_MULTILABEL = "multi_label_classification"
"""What transformers calls the problem type of models with a sigmoid for each class."""

_MODEL_TYPE = "segformer"
_OPENMMLAB_TYPE = "segformer-openmmlab"
"""Of a decoder that transformers does not have: it must refuse such a folder."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of its model, without the weights.

    Attributes:
        kind: "segmenter", "classifier" or "encoder".
        config: Configuration.
        classes: Classes.
        preprocessing: How an image becomes the model's input.
    """

    kind: str
    config: SegFormerConfig
    classes: ClassSet
    preprocessing: Preprocessing


def config_to_hub(description: Description, dtype: torch.dtype) -> dict[str, Any]:
    """The entries of ``config.json``.

    Args:
        description: Of the model.
        dtype: Of the stored weights.
    """
    config, classes = description.config, description.classes
    names = classes.names[1:] if config.num_classes == 1 else classes.names
    id2label = {str(i): name for i, name in enumerate(names)}
    own: dict[str, Any] = {
        "eps": asdict(config.eps),
        "decoder": config.decoder,
        "names": list(classes.names),
        "palette": [list(color) for color in classes.palette],
    }
    if config.thresholds:
        own["thresholds"] = list(config.thresholds)
    overlapping = {"problem_type": _MULTILABEL} if config.multilabel else {}
    return {
        "model_type": _MODEL_TYPE if config.decoder == "original" else _OPENMMLAB_TYPE,
        "architectures": [_ARCHITECTURES[description.kind]],
        "dtype": str(dtype).removeprefix("torch."),
        "num_channels": config.in_channels,
        "num_encoder_blocks": 4,
        "hidden_sizes": list(config.hidden_sizes),
        "depths": list(config.depths),
        "num_attention_heads": list(config.num_attention_heads),
        "sr_ratios": list(config.sr_ratios),
        "mlp_ratios": [config.mlp_ratio] * 4,
        "patch_sizes": list(PATCH_KERNELS),
        "strides": list(PATCH_STRIDES),
        "hidden_act": config.hidden_act,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": config.dropout,
        "drop_path_rate": config.drop_path,
        "initializer_range": 0.02,
        "layer_norm_eps": config.eps.block,
        "decoder_hidden_size": config.decoder_hidden_size,
        "semantic_loss_ignore_index": classes.ignore_index,
        "id2label": id2label,
        "label2id": {name: int(i) for i, name in id2label.items()},
        **overlapping,
        "segformer": own,
    }


def config_from_hub(entries: dict[str, Any], origin: object) -> tuple[SegFormerConfig, ClassSet]:
    """Read ``config.json`` as `config_to_hub` and transformers 4 and 5 write it.

    Args:
        entries: Of ``config.json``.
        origin: Path of the file, for messages.

    Raises:
        CheckpointError: They describe another kind of model, or a value is invalid.
    """
    try:
        return _config_from_hub(entries)
    except INVALID as error:
        raise CheckpointError(f"{origin}: {describe_error(error)}") from None


def kind_from_hub(entries: dict[str, Any]) -> str:
    """The kind of model that ``config.json`` describes; a segmentation model if it does not say."""
    kinds = {name: kind for kind, name in _ARCHITECTURES.items()}
    named = entries.get("architectures")
    return kinds.get(named[0], "segmenter") if isinstance(named, list) and named else "segmenter"


def _config_from_hub(entries: dict[str, Any]) -> tuple[SegFormerConfig, ClassSet]:
    if entries.get("model_type", _MODEL_TYPE) not in (_MODEL_TYPE, _OPENMMLAB_TYPE):
        raise ValueError(f"a model of type {printable(entries['model_type'])!r}, not a SegFormer")
    fixed = {"patch_sizes": PATCH_KERNELS, "strides": PATCH_STRIDES}
    for name, value in fixed.items():
        found = entries.get(name, value)
        if (tuple(found) if isinstance(found, list) else found) != value:
            raise ValueError(f"{name} is {found}; every SegFormer has {value}")
    ratios = set(entries.get("mlp_ratios", [4]))
    if len(ratios) != 1:
        raise ValueError(f"mlp_ratios {sorted(ratios)} differ between stages")
    own = entries.get("segformer", {})
    numbers = [int(key) for key in entries.get("id2label", {})]
    if max([*numbers, entries.get("num_labels", 0)]) > LARGEST_WIDTH:
        raise ValueError(f"classes numbered above {LARGEST_WIDTH}")
    if "id2label" in entries:
        names_by_id = distinct({int(k): str(v) for k, v in entries["id2label"].items()})
        classes = ClassSet.from_names(names_by_id, ignore_index=-1)
    else:  # transformers omits it for its default of two classes
        classes = ClassSet.numbered(entries.get("num_labels", 2))
    num_classes = len(classes)
    if num_classes == 1:
        classes = ClassSet(("background", *classes.names))
    names = own.get("names", classes.names)
    palette = tuple((int(r), int(g), int(b)) for r, g, b in own.get("palette", ()))
    ignore_index = entries.get("semantic_loss_ignore_index", 255)
    if not isinstance(ignore_index, int) or not all(isinstance(name, str) for name in names):
        raise ValueError("class names must be strings, and the ignored class an integer")
    if len(names) != len(classes):
        raise ValueError(f"{len(classes)} classes, but {len(names)} names of classes")
    names = tuple(distinct(dict(enumerate(names))).values())
    if 0 <= ignore_index < len(names):
        ignore_index = (
            -1
        )  # a class has this id: 255 is ignored by default, also by models of 300 classes
    classes = replace(
        classes, names=names, palette=palette or classes.palette, ignore_index=ignore_index
    )
    config = SegFormerConfig(
        hidden_sizes=tuple(entries.get("hidden_sizes", (32, 64, 160, 256))),
        depths=tuple(entries.get("depths", (2, 2, 2, 2))),
        num_attention_heads=tuple(entries.get("num_attention_heads", (1, 2, 5, 8))),
        sr_ratios=tuple(entries.get("sr_ratios", (8, 4, 2, 1))),
        mlp_ratio=int(ratios.pop()),
        decoder_hidden_size=entries.get("decoder_hidden_size", 256),
        decoder=own.get("decoder", "original"),
        num_classes=num_classes,
        in_channels=entries.get("num_channels", 3),
        drop_path=entries.get("drop_path_rate", 0.1),
        dropout=entries.get("classifier_dropout_prob", 0.1),
        eps=NormEps.from_dict(own["eps"]) if "eps" in own else TRANSFORMERS_EPS,
        hidden_act=entries.get("hidden_act", "gelu"),
        multilabel=entries.get("problem_type") == _MULTILABEL and num_classes > 1,
        thresholds=tuple(own.get("thresholds", ())),
    )
    return config, classes


def distinct(names: dict[int, str]) -> dict[int, str]:
    """Printable names, each once: published models give two classes the same name.

    The second becomes "name (2)".
    """
    seen: Counter[str] = Counter()
    distinct = {}
    for class_id, written in sorted(names.items()):
        name = printable(written)
        seen[name] += 1
        distinct[class_id] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return distinct


def preprocessing_to_hub(preprocessing: Preprocessing) -> dict[str, Any]:
    """The entries of ``preprocessor_config.json``."""
    size = preprocessing.size
    entries: dict[str, Any] = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": size is not None,
        "resample": int(RESAMPLING[preprocessing.resample]),
        "do_rescale": True,
        "rescale_factor": preprocessing.rescale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_reduce_labels": preprocessing.reduce_labels,
    }
    if isinstance(size, tuple):
        entries["size"] = {"height": size[0], "width": size[1]}
    elif size is not None:
        entries["size"] = {"shortest_edge": size}
        # transformers takes a size without height as a square by default
        entries["default_to_square"] = False
    if preprocessing.multiple > 1:
        entries["size_multiple"] = preprocessing.multiple
    if preprocessing.crop is not None:
        height, width = preprocessing.crop
        entries |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    own: dict[str, Any] = {}
    if preprocessing.nodata is not None:
        own["nodata"] = preprocessing.nodata
    if preprocessing.channel_names:
        own["channel_names"] = list(preprocessing.channel_names)
    return {**entries, "segformer": own} if own else entries


def preprocessing_from_hub(entries: dict[str, Any], origin: object) -> Preprocessing:
    """Read ``preprocessor_config.json`` as `preprocessing_to_hub` and transformers write it.

    Raises:
        CheckpointError: A value is invalid.
    """
    try:
        return _preprocessing_from_hub(entries)
    except INVALID as error:
        raise CheckpointError(f"{origin}: {describe_error(error)}") from None


def _preprocessing_from_hub(entries: dict[str, Any]) -> Preprocessing:
    size = entries.get("size", 512)
    target: tuple[int, int] | int | None
    if not entries.get("do_resize", True):
        target = None
    elif isinstance(size, int):  # as written by transformers before 4.26
        target = (size, size)
    elif "shortest_edge" in size:
        target = int(size["shortest_edge"])
    else:
        target = (int(size["height"]), int(size["width"]))
    normalize = entries.get("do_normalize", True)
    mean = tuple(float(value) for value in entries.get("image_mean", IMAGENET_MEAN))
    std = tuple(float(value) for value in entries.get("image_std", IMAGENET_STD))
    rescale = float(entries.get("rescale_factor", 1 / 255))
    names = {int(value): name for name, value in RESAMPLING.items()}
    crop = entries["crop_size"] if entries.get("do_center_crop") else None
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    own = entries.get("segformer", {})
    nodata = own.get("nodata")
    return Preprocessing(
        size=target,
        multiple=int(entries.get("size_multiple", 1)),
        mean=mean if normalize else (0.0,) * len(mean),
        std=std if normalize else (1.0,) * len(std),
        rescale=rescale if entries.get("do_rescale", True) else 1.0,
        resample=names[entries.get("resample", 2)],
        crop=None if crop is None else (int(crop["height"]), int(crop["width"])),
        reduce_labels=entries.get("do_reduce_labels", entries.get("reduce_labels", False)),
        nodata=None if nodata is None else float(nodata),
        channel_names=tuple(printable(name) for name in own.get("channel_names", ())),
    )


def describe_error(error: Exception) -> str:
    """An exception of ``INVALID`` as words."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) if isinstance(error, ValueError) else f"a value of the wrong type ({error})"


def read_json(path: Path) -> dict[str, Any]:
    """The entries of a JSON file.

    Raises:
        CheckpointError: It cannot be read, or is not a JSON object.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return entries
