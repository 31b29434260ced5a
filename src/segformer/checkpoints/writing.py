"""Writing checkpoints: the Hub layout, and any other format."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from segformer.checkpoints import hub, layout
from segformer.checkpoints.formats import FORMATS, HUB, OURS
from segformer.checkpoints.layout import Description
from segformer.checkpoints.opening import Checkpoint, open_checkpoint
from segformer.checkpoints.tensors import WEIGHT_SUFFIXES
from segformer.files import check_replaceable, whole_file, write_json

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)


def convert(
    source: str | Path,
    destination: str | Path,
    format: str,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    **options: Unpack[hub.HubOptions],
) -> Checkpoint:
    """Write a model's weights in another checkpoint format, bit for bit.

    Args:
        source: As for `open_checkpoint`.
        destination: A file (``.pth``, ``.pt``, ``.bin`` or ``.safetensors``); for "hf" and "smp"
            also a folder, which then gets the configuration that those codebases read.
        format: "hf", "nvlabs", "mmseg", "smp", or "segformer" (the names in this package).
        dtype: Of the stored weights. Default: as they are.
        overwrite: Replace files at the destination. The source itself is never replaced.
        **options: For the Hub; see `segformer.checkpoints.hub.download`.

    Returns:
        The source, opened.

    Raises:
        CheckpointError: The source cannot be read.
        OutputExists: A file at the destination would be replaced.
        ValueError: The destination is the source, or that codebase has no such model.
    """
    known = {entry.name: entry for entry in FORMATS if entry.written}
    if format not in known:
        raise ValueError(f"no format {format!r}; the formats are {', '.join(known)}")
    target, destination = known[format], Path(destination)
    checkpoint = open_checkpoint(source, **options)
    config, kind = checkpoint.config, checkpoint.kind
    if kind == "segmenter" and config.decoder not in target.decoders:
        raise ValueError(
            f"{source}: {target.title} has no decoder of this kind ({config.decoder}); it has "
            f"{', '.join(target.decoders)}. SegFormer.save_pretrained stores it for this package"
        )
    as_file = destination.suffix.lower() in WEIGHT_SUFFIXES
    if as_file and destination.is_dir():
        raise ValueError(f"{destination}: is a folder; give the name of a file")
    if not as_file and target is not HUB and (target.name != "smp" or kind != "segmenter"):
        raise ValueError(
            f"{destination}: {target.title} stores a {kind} in a file; give a name that ends in "
            ".pth"
        )
    outputs = [destination] if as_file else [destination / name for name in layout.FOLDER_FILES]
    _check_destination(checkpoint, destination, outputs)
    described = target is OURS or (target is HUB and not as_file)  # readers learn of it
    if config.hidden_act != target.hidden_act and not described:
        logger.warning(
            f"{destination}: {target.title} computes another activation ({target.hidden_act}, not "
            f"{config.hidden_act}), so its results will differ a little; this package reads the "
            "activation from the file's metadata"
        )
    check_replaceable(outputs, overwrite=overwrite)
    checkpoint.check(checkpoint.parts)
    tensors = target.from_ours(dict(checkpoint.read()))
    if kind == "encoder" or (kind == "classifier" and target not in (HUB, OURS)):
        tensors = {n.removeprefix(target.encoder): tensor for n, tensor in tensors.items()}
    write = write_file if as_file else write_folder if target is HUB else write_smp_folder
    write(destination, tensors, checkpoint.description, dtype)
    return checkpoint


def _check_destination(checkpoint: Checkpoint, destination: Path, outputs: list[Path]) -> None:
    """Refuse to write over the files of the model, also through links, or into its folder."""
    read, inside = list(checkpoint.files), False
    if checkpoint.folder is not None:
        read += [checkpoint.folder / name for name in layout.FOLDER_FILES]
        if Path(checkpoint.origin).is_dir():
            inside = destination.resolve().is_relative_to(checkpoint.folder.resolve())
    existing = [path for path in read if path.exists()]
    written = [path for path in outputs if path.exists()]
    if inside or any(output.samefile(path) for output in written for path in existing):
        raise ValueError(
            f"{destination}: is the model to be converted, or lies in its folder; choose another "
            "destination"
        )


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
    kept = next(t.dtype for t in stored.values() if t.is_floating_point())  # not of a counter
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
            # Through a handle: given a path, torch.save stores the temporary name in the file
            with partial_file.open("wb") as file:
                torch.save({"meta": meta, "state_dict": stored}, file)


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
