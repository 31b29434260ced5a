"""Keras' files of weights: HDF5 of KerasHub and of transformers 4, and ``.keras`` archives.

Names become those that `segformer.checkpoints.formats` knows, and values get PyTorch's layout. The
kernel of a linear is (in, out) in Keras and (out, in) here, that of a convolution (h, w, in, out)
and (out, in, h, w), that of KerasHub's depth-wise convolutions (h, w, C, 1) and (C, 1, h, w).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from segformer.checkpoints.errors import CheckpointError, printable
from segformer.checkpoints.hdf5 import locate
from segformer.checkpoints.tensors import ZIP_MAGIC, Stored, TensorFile, read_bytes

ARCHIVED_WEIGHTS = "model.weights.h5"
"""Name of the weights in a ``.keras`` archive."""
_ARCHIVED_CONFIG = "config.json"
_LARGEST_CONFIG = 1 << 24
"""Bytes; that of a B5 takes about 4 kB."""
_LOCAL_HEADER = 30
"""Bytes of the header of a file in an archive, before its name."""

_LINEAR, _CONVOLUTION, _DEPTHWISE = (1, 0), (3, 2, 0, 1), (2, 3, 0, 1)
"""Axes in Keras of PyTorch's axes."""

_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_NUMBERED_LEAVES = ("weight", "bias", "running_mean", "running_var")
"""Keras 3 numbers the variables of a layer in this order."""

_TRANSFORMERS = re.compile(r"(segformer|decode_head|classifier)/(?:.+/)?\1/(?:(.+)/)?(\w+):0")
"""Group, name of the model, name of the tensor, which begins with that of the group."""

_KERASHUB = re.compile(
    r"(?P<root>.*?)"
    r"(?P<layer>overlapping_patching_and_embedding|hierarchical_transformer_encoder"
    r"|layer_normalization|dense|sequential|conv2d)(?:_(?P<number>\d{1,6}))?"
    r"(?:/(?P<inner>(?:attn|mlp|layers)/\w+|proj|norm\d?))?"
    r"/vars/(?P<leaf>[0-3])"
)
"""Keras 3 names layers by their class and numbers those of a class within a model."""


class KerasFile(TensorFile):
    """An HDF5 file of weights, by itself or in a ``.keras`` archive.

    Attributes:
        metadata: ``keras``: the description of the model in an archive.
    """

    def __init__(self, path: Path):
        with path.open("rb") as file:
            archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        place, metadata = _archived(path) if archive else ((0, None), {})
        located = locate(path, *place)
        names = _names(path, located)
        self.places = {names.get(found, found): entry for found, entry in located.items()}
        if len(self.places) != len(located):
            raise CheckpointError(f"{path}: two of its tensors have the same name")
        stored = {
            name: replace(entry, shape=tuple(entry.shape[axis] for axis in _axes(name, entry)))
            for name, entry in self.places.items()
        }
        super().__init__(path, stored, metadata)

    def take(self, name: str) -> Tensor:
        """Read a tensor's bytes and put its axes into PyTorch's order."""
        entry = self.places[name]
        return read_bytes(self.path, name, entry).permute(_axes(name, entry)).contiguous()


def is_keras_archive(path: Path) -> bool:
    """Whether an archive is a ``.keras`` file, not one of ``torch.save``."""
    try:
        with zipfile.ZipFile(path) as archive:
            return ARCHIVED_WEIGHTS in archive.namelist()
    except Exception:  # zipfile raises many types for a damaged directory
        return False


def _archived(path: Path) -> tuple[tuple[int, int], dict[str, Any]]:
    """First byte and size of the weights in an archive, and the description of the model."""
    try:
        with zipfile.ZipFile(path) as archive:
            weights = archive.getinfo(ARCHIVED_WEIGHTS)
            described = archive.getinfo(_ARCHIVED_CONFIG)
            if described.file_size > _LARGEST_CONFIG:
                raise CheckpointError(f"{path}: {_ARCHIVED_CONFIG} in it is too large")
            config = json.loads(archive.read(described))
        if weights.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path}: {ARCHIVED_WEIGHTS} in it is compressed, which Keras does not do; unpack "
                "the archive and give the folder"
            )
        with path.open("rb") as file:
            file.seek(weights.header_offset)
            header = file.read(_LOCAL_HEADER)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # zipfile and json raise many types for damaged files
        reason = printable(error)
        raise CheckpointError(f"{path}: a damaged archive: {reason}; download it again") from None
    name, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    start = weights.header_offset + _LOCAL_HEADER + name + extra
    if weights.file_size > path.stat().st_size - start:
        raise CheckpointError(f"{path}: truncated; download it again")
    return (start, weights.file_size), {"keras": config}


def _names(path: Path, located: Mapping[str, Stored]) -> dict[str, str]:
    """Names that the formats know, by the paths of the datasets; others are left out."""
    names = {
        found: ".".join(part for part in (group, inner, _LEAVES[leaf]) if part).replace("/", ".")
        for found in located
        if (match := _TRANSFORMERS.fullmatch(found))
        for group, inner, leaf in [match.groups()]
        if leaf in _LEAVES
    }
    return names or _kerashub_names(path, located)


def _kerashub_names(path: Path, located: Mapping[str, Stored]) -> dict[str, str]:
    found = {name: match for name in located if (match := _KERASHUB.fullmatch(name))}
    encoder = "overlapping_patching_and_embedding"
    # The encoder's layers lie beside its patch mergings, and the decoder's beside its fusion
    roots = {match["root"] for match in found.values() if match["layer"] == encoder}
    heads = {match["root"] for match in found.values() if match["layer"] == "sequential"}
    if len(roots) > 1 or len(heads) > 1:
        raise CheckpointError(f"{path}: holds several models")

    def widths(layer: str, inner: str) -> dict[int, int]:
        """Last side of a weight, by the numbers of the layers."""
        return {
            int(match["number"] or 0): (located[name].shape or (0,))[-1]
            for name, match in found.items()
            if (match["layer"], match["inner"], match["leaf"]) == (layer, inner, "0")
        }

    mergings = widths(encoder, "norm")
    stages = [mergings[number] for number in sorted(mergings)]
    if len(set(stages)) != len(stages):
        raise CheckpointError(
            f"{path}: stages of the same width, {stages}, which the names in the file do not tell "
            "apart"
        )
    blocks = _stage_and_block(widths("hierarchical_transformer_encoder", "norm1"), stages)
    names = {}
    for name, match in found.items():
        layer, inner, number = match["layer"], match["inner"], int(match["number"] or 0)
        translated: str | None = None
        if layer == "overlapping_patching_and_embedding" and inner in ("proj", "norm"):
            translated = f"image_encoder.patch_and_embed_{number}.{inner}"
        elif layer == "hierarchical_transformer_encoder" and inner and number in blocks:
            stage, block = blocks[number]
            inner = inner.replace("/", ".")
            translated = f"image_encoder.hierarchical_encoder_{stage}_{block}.{inner}"
        elif layer == "layer_normalization" and match["root"] in roots and not inner:
            translated = f"image_encoder.layer_norms.{number}"
        elif layer == "sequential" and inner in ("layers/conv2d", "layers/batch_normalization"):
            translated = f"linear_fuse.{inner.removeprefix('layers/')}"
        elif layer == "dense" and match["root"] in heads and not inner:
            # Numbered in any order: the stage is the one whose width it takes
            kernel = located.get(f"{name[:-1]}0")
            if kernel is not None and kernel.shape and kernel.shape[0] in stages:
                translated = f"mlp_blocks.{stages.index(kernel.shape[0])}"
        elif layer in ("dense", "conv2d") and match["number"] is None and not inner:
            translated = "output_dense" if layer == "dense" else "output_segmentation_head"
        if translated is not None:
            names[name] = f"{translated}.{_NUMBERED_LEAVES[int(match['leaf'])]}"
    return names


def _stage_and_block(
    widths: Mapping[int, int], stages: Iterable[int]
) -> dict[int, tuple[int, int]]:
    """Stage and place in it of each block: blocks are numbered through, stages differ in width."""
    placed: dict[int, tuple[int, int]] = {}
    for stage, width in enumerate(stages):
        members = sorted(number for number, found in widths.items() if found == width)
        placed |= {number: (stage, block) for block, number in enumerate(members)}
    return placed


def _axes(name: str, entry: Stored) -> tuple[int, ...]:
    """Axes in Keras of PyTorch's axes."""
    rank = len(entry.shape)
    if not name.endswith(".weight") or rank not in (2, 4):
        return tuple(range(rank))
    if rank == 2:
        return _LINEAR
    return _DEPTHWISE if name.endswith(".mlp.dwconv.weight") else _CONVOLUTION
