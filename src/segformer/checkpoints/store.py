"""Models on disk: the Hub layout, a folder of ``config.json``, weights and preprocessing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from segformer.checkpoints.dialects import HUB
from segformer.files import whole_file, write_json
from segformer.image import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Preprocessing
from segformer.labels import LabelSet
from segformer.model.config import (
    PATCH_KERNELS,
    PATCH_STRIDES,
    TRANSFORMERS_EPS,
    NormEps,
    SegFormerConfig,
)
from segformer.model.decoder import MLPDecoder
from segformer.model.segformer import SegFormer

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = "human-parsing-b0"
"""Name of the model that ships inside the package."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSING_FILE = "preprocessor_config.json"


_NONSENSE = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a JSON file of the wrong types can raise."""


class CheckpointError(ValueError):
    """A model that cannot be loaded; the message says which file or tensor, and what to do."""


def load(source: str | Path) -> SegFormer:
    """Load a segmentation model from a folder in the Hub layout.

    Args:
        source: Folder with ``config.json`` and ``model.safetensors`` (or
            ``pytorch_model.bin``), or the name of the model that ships inside.

    Returns:
        The model in float32, in evaluation mode, with its labels and preprocessing.

    Raises:
        CheckpointError: Something is missing, broken, or does not fit.
    """
    folder = find(source)
    entries = _read_json(folder / CONFIG_FILE)
    tensors = _read_tensors(folder)
    try:
        config, labels = _config_from_hub(entries)
    except _NONSENSE as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {_describe(error)}") from None
    preprocessing = Preprocessing.for_bands(config.in_channels)
    if (folder / PREPROCESSING_FILE).is_file():
        try:
            preprocessing = _preprocessing_from_hub(_read_json(folder / PREPROCESSING_FILE))
        except _NONSENSE as error:
            raise CheckpointError(f"{folder / PREPROCESSING_FILE}: {_describe(error)}") from None
    model = SegFormer(config, labels, preprocessing)
    try:
        renamed, unknown = HUB.to_ours(tensors)
    except RuntimeError as error:  # keys and values that cannot be joined
        raise CheckpointError(f"{folder}: keys and values do not fit: {error}") from None
    _check_fit(model, renamed, unknown, folder)
    model.load_state_dict({name: tensor.float() for name, tensor in renamed.items()}, strict=False)
    return model.eval()


def save(model: SegFormer, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model in the Hub layout; transformers loads it as it is.

    Each file appears whole or not at all, the weights first.

    Args:
        model: Not folded.
        folder: Made if it is not there; files in it of the same names are replaced.
        dtype: Of the stored weights; left out, as they are.

    Raises:
        ValueError: The model is folded.
    """
    if not isinstance(model.decoder, MLPDecoder):
        raise ValueError("a folded model cannot be saved; save the one it was folded from")
    folder = Path(folder)
    # Copies, since a view of a larger tensor, as keys and values are, cannot be stored
    tensors = {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in HUB.from_ours(model.state_dict()).items()
    }
    with whole_file(folder / WEIGHTS_FILE) as partial:
        safetensors.torch.save_file(tensors, partial, metadata={"format": "pt"})
    stored = next(iter(tensors.values())).dtype
    write_json(folder / CONFIG_FILE, _config_to_hub(model, stored))
    write_json(folder / PREPROCESSING_FILE, _preprocessing_to_hub(model.preprocessing))


def find(source: str | Path) -> Path:
    """The folder of a model: the path itself, or that of the model inside the package."""
    path = Path(source)
    if not path.exists() and str(source) == SHIPPED:
        path = ASSETS / SHIPPED
    if (path / CONFIG_FILE).is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            f"{source}: no such model folder; the model that ships inside is called {SHIPPED!r}"
        )
    if path.is_file():
        raise CheckpointError(f"{path}: give the folder that holds {CONFIG_FILE}, not a file")
    inside = [name for name in ("best", "last") if (path / name / CONFIG_FILE).is_file()]
    hint = f"; did you mean {path / inside[0]}?" if inside else ""
    raise CheckpointError(f"{path}: there is no {CONFIG_FILE} in this folder{hint}")


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return str(error) if isinstance(error, ValueError) else f"a value of the wrong type ({error})"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: must be a JSON object")
    return entries


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Safetensors if there, else a pickle of tensors alone: no file runs code."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: truncated or not safetensors: {error}") from None
    path = folder / "pytorch_model.bin"
    if not path.is_file():
        raise CheckpointError(f"{folder}: there is no {WEIGHTS_FILE} in this folder")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no narrower type for a broken file
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a file of tensors alone: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path}: holds a {type(tensors).__name__}, not tensors by name")
    return {name: t for name, t in tensors.items() if isinstance(t, Tensor)}


def _check_fit(
    model: SegFormer, tensors: dict[str, Tensor], unknown: list[str], folder: Path
) -> None:
    """Every tensor there, none too many, all of the right shape and finite."""
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    problems = [
        f"{name}: expected {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems += [f"{name}: missing" for name in expected if name not in tensors]
    extra = [n for n in tensors if n not in expected and not n.endswith("num_batches_tracked")]
    problems += [f"{name}: not part of a model of this configuration" for name in unknown + extra]
    if not problems:
        problems = [
            f"{name}: holds values that are not finite"
            for name, tensor in tensors.items()
            if tensor.is_floating_point() and not tensor.isfinite().all()
        ]
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"{folder}: the weights do not fit {CONFIG_FILE} (another variant, another number of "
            f"classes or of bands?):\n  {shown}{more}"
        )


def _config_to_hub(model: SegFormer, dtype: torch.dtype) -> dict[str, Any]:
    config, labels = model.config, model.labels
    names = labels.names[1:] if config.num_classes == 1 else labels.names
    id2label = {str(i): name for i, name in enumerate(names)}
    return {
        "model_type": "segformer",
        "architectures": ["SegformerForSemanticSegmentation"],
        "dtype": str(dtype).removeprefix("torch."),
        "num_channels": config.in_channels,
        "num_encoder_blocks": 4,
        "hidden_sizes": list(config.channels),
        "depths": list(config.depths),
        "num_attention_heads": list(config.heads),
        "sr_ratios": list(config.reductions),
        "mlp_ratios": [config.mlp_ratio] * 4,
        "patch_sizes": list(PATCH_KERNELS),
        "strides": list(PATCH_STRIDES),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": config.dropout,
        "drop_path_rate": config.drop_path,
        "initializer_range": 0.02,
        "layer_norm_eps": config.eps.block,
        "decoder_hidden_size": config.decoder_width,
        "semantic_loss_ignore_index": labels.ignore_index,
        "id2label": id2label,
        "label2id": {name: int(i) for i, name in id2label.items()},
        "segformer": {
            "eps": asdict(config.eps),
            "names": list(labels.names),
            "palette": [list(colour) for colour in labels.palette],
        },
    }


def _config_from_hub(entries: dict[str, Any]) -> tuple[SegFormerConfig, LabelSet]:
    if entries.get("model_type", "segformer") != "segformer":
        raise ValueError(f"a model of type {entries['model_type']!r}, not a SegFormer")
    fixed = {"patch_sizes": PATCH_KERNELS, "strides": PATCH_STRIDES, "hidden_act": "gelu"}
    for name, value in fixed.items():
        found = entries.get(name, value)
        if (tuple(found) if isinstance(found, list) else found) != value:
            raise ValueError(f"{name} is {found}; every SegFormer has {value}")
    ratios = set(entries.get("mlp_ratios", [4]))
    if len(ratios) != 1:
        raise ValueError(f"mlp_ratios {sorted(ratios)} differ between stages")
    own = entries.get("segformer", {})
    if "id2label" in entries:
        names_by_id = _distinct({int(k): str(v) for k, v in entries["id2label"].items()})
        labels = LabelSet.from_names(names_by_id, ignore_index=-1)
    else:  # transformers writes none for its default of two classes
        labels = LabelSet.numbered(entries.get("num_labels", 2))
    num_classes = len(labels)
    if num_classes == 1:
        labels = LabelSet(("background", *labels.names))
    names = tuple(own.get("names", labels.names))
    palette = tuple((int(r), int(g), int(b)) for r, g, b in own.get("palette", ()))
    ignore_index = entries.get("semantic_loss_ignore_index", 255)
    if 0 <= ignore_index < len(names):
        ignore_index = -1  # a class of that number: the field's default ids run out at 255
    labels = replace(
        labels, names=names, palette=palette or labels.palette, ignore_index=ignore_index
    )
    config = SegFormerConfig(
        channels=tuple(entries.get("hidden_sizes", (32, 64, 160, 256))),
        depths=tuple(entries.get("depths", (2, 2, 2, 2))),
        heads=tuple(entries.get("num_attention_heads", (1, 2, 5, 8))),
        reductions=tuple(entries.get("sr_ratios", (8, 4, 2, 1))),
        mlp_ratio=int(ratios.pop()),
        decoder_width=entries.get("decoder_hidden_size", 256),
        num_classes=num_classes,
        in_channels=entries.get("num_channels", 3),
        drop_path=entries.get("drop_path_rate", 0.1),
        dropout=entries.get("classifier_dropout_prob", 0.1),
        eps=NormEps(**own["eps"]) if "eps" in own else TRANSFORMERS_EPS,
    )
    return config, labels


def _distinct(names: dict[int, str]) -> dict[int, str]:
    """Published models give some name to two classes; the second becomes "name (2)"."""
    seen: Counter[str] = Counter()
    distinct = {}
    for class_id, name in sorted(names.items()):
        seen[name] += 1
        distinct[class_id] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return distinct


def _preprocessing_to_hub(preprocessing: Preprocessing) -> dict[str, Any]:
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
        # transformers takes a size without height as a square unless told so
        entries["default_to_square"] = False
    if preprocessing.multiple > 1:
        entries["size_multiple"] = preprocessing.multiple
    return entries


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
    normalise = entries.get("do_normalize", True)
    mean = tuple(float(value) for value in entries.get("image_mean", IMAGENET_MEAN))
    std = tuple(float(value) for value in entries.get("image_std", IMAGENET_STD))
    rescale = float(entries.get("rescale_factor", 1 / 255))
    names = {int(value): name for name, value in RESAMPLING.items()}
    return Preprocessing(
        size=target,
        multiple=int(entries.get("size_multiple", 1)),
        mean=mean if normalise else (0.0,) * len(mean),
        std=std if normalise else (1.0,) * len(std),
        rescale=rescale if entries.get("do_rescale", True) else 1.0,
        resample=names[entries.get("resample", 2)],
        reduce_labels=entries.get("do_reduce_labels", entries.get("reduce_labels", False)),
    )
