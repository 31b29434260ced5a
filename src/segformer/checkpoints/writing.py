"""Writing checkpoints: the Hub layout, and any other format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from segformer.checkpoints import hub, layout
from segformer.checkpoints.formats import FORMATS, HUB
from segformer.checkpoints.layout import Description
from segformer.checkpoints.opening import Checkpoint, open_checkpoint
from segformer.checkpoints.tensors import WEIGHT_SUFFIXES
from segformer.files import whole_file, write_json

if TYPE_CHECKING:
    from typing_extensions import Unpack


def convert(
    source: str | Path,
    destination: str | Path,
    format: str,
    *,
    dtype: torch.dtype | None = None,
    **options: Unpack[hub.HubOptions],
) -> Checkpoint:
    """Write a model's weights in another checkpoint format, bit for bit.

    Args:
        source: As for `open_checkpoint`.
        destination: A file (``.pth``, ``.pt``, ``.bin`` or ``.safetensors``); for "hf" and "smp"
            also a folder, which then gets the configuration that those codebases read.
        format: "hf", "nvlabs", "mmseg" or "smp".
        dtype: Of the stored weights. Default: as they are.
        **options: For the Hub; see `segformer.checkpoints.hub.download`.

    Returns:
        The source, opened.

    Raises:
        CheckpointError: The source cannot be read.
        ValueError: That codebase has no such model.
    """
    known = {entry.name: entry for entry in FORMATS}
    if format not in known:
        raise ValueError(f"no format {format!r}; the formats are {', '.join(known)}")
    target, destination = known[format], Path(destination)
    checkpoint = open_checkpoint(source, **options)
    checkpoint.check(checkpoint.parts)
    config = checkpoint.config
    if checkpoint.kind == "segmenter" and config.decoder != target.decoder:
        raise ValueError(
            f"{source}: {target.title} has no decoder of this kind ({config.decoder}); its own is "
            f"{target.decoder}. SegFormer.save_pretrained writes it for this package"
        )
    tensors = target.from_ours(dict(checkpoint.read()))
    if checkpoint.kind == "encoder" or (checkpoint.kind == "classifier" and target is not HUB):
        tensors = {n.removeprefix(target.encoder): tensor for n, tensor in tensors.items()}
    if destination.suffix.lower() in WEIGHT_SUFFIXES:
        if destination.is_dir():
            raise ValueError(f"{destination}: a folder is there; name a file")
        write_file(destination, tensors, checkpoint.description, dtype)
    elif target is HUB:
        write_folder(destination, tensors, checkpoint.description, dtype)
    elif target.name == "smp" and checkpoint.kind == "segmenter":
        write_smp_folder(destination, tensors, checkpoint.description, dtype)
    else:
        raise ValueError(f"{destination}: {target.title} keeps its models in files; end it in .pth")
    return checkpoint


def write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    description: Description,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the Hub layout: the weights first, each file whole or not at all.

    Args:
        folder: Created if missing; its files of these names are replaced.
        tensors: By their names on the Hub.
        description: Of the model.
        dtype: Of the stored weights. Default: as they are.

    Raises:
        ValueError: A value does not fit into ``dtype``.
    """
    stored = _stored(tensors, dtype)
    with _written(folder / layout.WEIGHTS_FILE) as partial_file:
        safetensors.torch.save_file(stored, partial_file, metadata={"format": "pt"})
    kept = next(iter(stored.values())).dtype
    write_json(folder / layout.CONFIG_FILE, layout.config_to_hub(description, kept))
    preprocessing = layout.preprocessing_to_hub(description.preprocessing)
    write_json(folder / layout.PREPROCESSING_FILE, preprocessing)


def write_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    description: Description,
    dtype: torch.dtype | None = None,
) -> None:
    """Write one file of weights; what other codebases cannot store goes into its metadata."""
    stored, own = _stored(tensors, dtype), _as_metadata(description)
    with _written(path) as partial_file:
        if path.suffix.lower() == ".safetensors":
            metadata = {"format": "pt", "segformer": json.dumps(own)}
            safetensors.torch.save_file(stored, partial_file, metadata=metadata)
        else:
            names, palette = description.classes.names, description.classes.palette
            meta = {
                "CLASSES": list(names),
                "PALETTE": [list(color) for color in palette],
                "segformer": own,
            }
            torch.save({"meta": meta, "state_dict": stored}, partial_file)


def write_smp_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    description: Description,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder as SMP's ``save_pretrained`` does: weights and the arguments of its class."""
    config = description.config
    if config.variant is None:
        raise ValueError(f"{folder}: segmentation_models.pytorch has no encoder of these sizes")
    with _written(folder / layout.WEIGHTS_FILE) as partial_file:
        metadata = {"format": "pt", "segformer": json.dumps(_as_metadata(description))}
        safetensors.torch.save_file(_stored(tensors, dtype), partial_file, metadata=metadata)
    arguments = {
        "_model_class": "Segformer",
        "encoder_name": f"mit_{config.variant}",
        "encoder_depth": 5,
        "encoder_weights": None,
        "decoder_segmentation_channels": config.decoder_hidden_size,
        "in_channels": config.in_channels,
        "classes": config.num_classes,
        "activation": None,
        "aux_params": None,
        "upsampling": 4,
    }
    write_json(folder / layout.CONFIG_FILE, arguments)
    preprocessing = layout.preprocessing_to_hub(description.preprocessing)
    write_json(folder / layout.PREPROCESSING_FILE, preprocessing)


def _as_metadata(description: Description) -> dict[str, object]:
    return {
        "config": layout.config_to_hub(description, torch.float32),
        "preprocessing": layout.preprocessing_to_hub(description.preprocessing),
    }


def _stored(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies, since a view of a larger tensor, as keys and values are, cannot be stored."""
    stored = {}
    for name, tensor in tensors.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        copied = tensor.detach().to("cpu", target, copy=True).contiguous()
        if target != tensor.dtype and tensor.isfinite().all() and not copied.isfinite().all():
            raise ValueError(f"{name}: holds values too large for {target}; store it as it is")
        stored[name] = copied
    return stored


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """`whole_file`, with the writers' own errors of a full disk turned into OSError."""
    try:
        with whole_file(path) as partial_file:
            yield partial_file
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from None
