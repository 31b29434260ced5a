"""Names of the tensors, as each codebase writes them: one table per dialect, read both ways.

A table has a row per module: its name here, and its name or names there. Where there are several
(separate keys and values), the tensors there are those here cut along the first axis. ``{s}`` is
the stage and ``{b}`` the block, both from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = "encoder.stages.{s}.blocks.{b}."
_HUB_BLOCK = "segformer.encoder.block.{s}.{b}."


@dataclass(frozen=True)
class Dialect:
    """One codebase's names.

    Attributes:
        name: As the command line calls it.
        rows: Module here -> modules there.
    """

    name: str
    rows: Mapping[str, tuple[str, ...]]

    def from_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename, and cut what is stored apart there.

        Raises:
            ValueError: A tensor has no name there.
        """
        renamed = {}
        for key, tensor in tensors.items():
            module, _, suffix = key.rpartition(".")
            theirs = self._translate(module, forwards=True)
            if theirs is None:
                raise ValueError(f"{key}: the {self.name} dialect has no name for this tensor")
            parts = tensor.chunk(len(theirs)) if len(theirs) > 1 else (tensor,)
            for name, part in zip(theirs, parts, strict=True):
                renamed[f"{name}.{suffix}"] = part.contiguous()
        return renamed

    def to_ours(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Rename, and join what is stored apart there.

        Returns:
            The tensors by their names here, and the names there that are in no row. A tensor of
            which a part is missing is left out.
        """
        renamed: dict[str, Tensor] = {}
        unknown = []
        for key in tensors:
            module, _, suffix = key.rpartition(".")
            ours = self._translate(module, forwards=False)
            if ours is None:
                unknown.append(key)
                continue
            parts = self._translate(ours[0], forwards=True) or ()
            keys = [f"{part}.{suffix}" for part in parts]
            if all(part in tensors for part in keys):
                joined = [tensors[part] for part in keys]
                renamed[f"{ours[0]}.{suffix}"] = torch.cat(joined) if len(keys) > 1 else joined[0]
        return renamed, unknown

    def _translate(self, module: str, *, forwards: bool) -> tuple[str, ...] | None:
        for ours, theirs in self.rows.items():
            for pattern in (ours,) if forwards else theirs:
                match = re.fullmatch(_regex(pattern), module)
                if match:
                    filled = theirs if forwards else (ours,)
                    return tuple(name.format(**match.groupdict()) for name in filled)
        return None


def _regex(pattern: str) -> str:
    """A row's name as a regular expression; re caches its compilation."""
    escaped = re.escape(pattern)
    return escaped.replace(r"\{s\}", r"(?P<s>\d+)").replace(r"\{b\}", r"(?P<b>\d+)")


HUB = Dialect(
    "hf",
    {
        "encoder.stages.{s}.merging.projection": ("segformer.encoder.patch_embeddings.{s}.proj",),
        "encoder.stages.{s}.merging.norm": ("segformer.encoder.patch_embeddings.{s}.layer_norm",),
        _BLOCK + "attention_norm": (_HUB_BLOCK + "layer_norm_1",),
        _BLOCK + "attention.query": (_HUB_BLOCK + "attention.self.query",),
        _BLOCK + "attention.key_value": (
            _HUB_BLOCK + "attention.self.key",
            _HUB_BLOCK + "attention.self.value",
        ),
        _BLOCK + "attention.output": (_HUB_BLOCK + "attention.output.dense",),
        _BLOCK + "attention.reduction": (_HUB_BLOCK + "attention.self.sr",),
        _BLOCK + "attention.reduction_norm": (_HUB_BLOCK + "attention.self.layer_norm",),
        _BLOCK + "ffn_norm": (_HUB_BLOCK + "layer_norm_2",),
        _BLOCK + "ffn.expand": (_HUB_BLOCK + "mlp.dense1",),
        _BLOCK + "ffn.depthwise": (_HUB_BLOCK + "mlp.dwconv.dwconv",),
        _BLOCK + "ffn.contract": (_HUB_BLOCK + "mlp.dense2",),
        "encoder.stages.{s}.norm": ("segformer.encoder.layer_norm.{s}",),
        "decoder.projections.{s}": ("decode_head.linear_c.{s}.proj",),
        "decoder.fuse": ("decode_head.linear_fuse",),
        "decoder.norm": ("decode_head.batch_norm",),
        "decoder.classifier": ("decode_head.classifier",),
    },
)
"""The Hub layout: what transformers 4 calls its modules, and what 4 and 5 both write."""
