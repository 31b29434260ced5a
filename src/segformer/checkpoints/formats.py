"""Names of the tensors, as each codebase writes them: one table per format, read both ways.

A table has a row per module: its name here and its name there. Where one side stores apart what
the other stores as one (keys and values, say), the row has several names, and the tensors of both
sides, stacked along the first axis, are the same. In the names, from 0: ``{s}`` is the stage and
``{b}`` the block; ``{n}`` is the stage counted from 1, ``{r}`` the stage counted from the last.

The tables were made from the upstream sources: `modeling_segformer.py` of transformers,
`mix_transformer.py` and `segformer_head.py` of NVlabs/SegFormer, `mit.py` and
`segformer_head.py` of mmsegmentation 1.x, `mix_transformer.py` and `decoders/segformer` of
segmentation_models.pytorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segformer.config import (
    OPENMMLAB_EPS,
    ORIGINAL_EPS,
    TRANSFORMERS_EPS,
    NormEps,
)

_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_SPLIT_NAME = re.compile(rf"(.*?[._]|)({'|'.join(_LEAVES)})")
"""A tensor's name as its module, with the separator, and the leaf."""


@dataclass(frozen=True)
class Row:
    """One module's names, or those of a few that some format stores together.

    Attributes:
        ours: Names here; one that ends in ``key_value`` counts for two of the others.
        theirs: Names there, of equal counts. A name that ends in ``_`` takes no dot.
        pointwise: A linear here is a 1x1 convolution there.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    pointwise: bool = False


@dataclass(frozen=True)
class Match:
    """Tensors that are the same ones, by their names here and there."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    pointwise: bool


@dataclass(frozen=True)
class Format:
    """One codebase's names.

    Attributes:
        name: As the command line calls it.
        title: As people call it.
        encoder: What its full models put before the names of the encoder; files of an encoder
            alone lack it.
        eps: Of its LayerNorms, where no configuration says otherwise.
        rows: The table. A second row for the same modules is read but never written.
        decoder: Which decoder its models have; see `SegFormerConfig`.
        unused: Patterns of tensors that its files hold and its inference does not use.
    """

    name: str
    title: str
    encoder: str
    eps: NormEps
    rows: tuple[Row, ...]
    decoder: str = "original"
    unused: tuple[str, ...] = ()

    def from_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename, cut and join tensors as they are stored there.

        Raises:
            ValueError: A tensor has no name there.
        """
        renamed: dict[str, Tensor] = {}
        for match in self._matches(tensors, here=True):
            if any(name not in tensors for name in match.ours):
                continue
            stack = [tensors[name] for name in match.ours]
            if match.pointwise and stack[0].ndim == 2:
                stack = [tensor[:, :, None, None] for tensor in stack]
            renamed.update(zip(match.theirs, _recut(stack, [1] * len(match.theirs)), strict=True))
        unknown = self._unknown(tensors, here=True)
        if unknown:
            raise ValueError(f"{unknown[0]}: the {self.name} format has no name for this tensor")
        return renamed

    def to_ours(
        self, names: Collection[str], read: Callable[[str], Tensor], part: str = ""
    ) -> Iterator[tuple[str, Tensor]]:
        """Read, rename, cut and join tensors as they are stored here, a few at a time.

        A tensor of which a piece is missing is left out, and so is a name that is in no row.

        Args:
            names: What there is, by the names there.
            read: Fetches a tensor by its name there; called once for each.
            part: What the names here must begin with, such as ``encoder.``.

        Raises:
            ValueError: Pieces that do not fit together.
        """
        for match in self._matches(names, here=False):
            if not match.ours[0].startswith(part) or any(n not in names for n in match.theirs):
                continue
            stack = [read(name) for name in match.theirs]
            if match.pointwise and stack[0].ndim == 4 and stack[0].shape[2:] == (1, 1):
                stack = [tensor.flatten(1) for tensor in stack]
            counts = [2 if "key_value." in name else 1 for name in match.ours]
            try:
                yield from zip(match.ours, _recut(stack, counts), strict=True)
            except (RuntimeError, ValueError):
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in stack)
                raise ValueError(
                    f"{', '.join(match.theirs)}: shapes {shapes} do not fit together"
                ) from None

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Names there that are in no row and that its inference would use."""
        unused = re.compile("|".join(self.unused) or r"(?!)")
        return [n for n in self._unknown(names, here=False) if not unused.match(n)]

    def knows(self, name: str) -> bool:
        """Whether a name there is in a row."""
        return self._find(name, here=False) is not None

    def _matches(self, names: Iterable[str], *, here: bool) -> Iterator[Match]:
        seen = set()
        for name in names:
            match = self._find(name, here=here)
            if match is not None and match.ours not in seen:
                seen.add(match.ours)
                yield match

    def _unknown(self, names: Iterable[str], *, here: bool) -> list[str]:
        return [name for name in names if self._find(name, here=here) is None]

    def _find(self, name: str, *, here: bool) -> Match | None:
        split = _SPLIT_NAME.fullmatch(name)
        if split is None:
            return None
        module, leaf = split.groups()
        for pattern, row in self._index[here].get(_shape_of(module), ()):
            found = pattern.fullmatch(module)
            if found:
                numbers = _stage_numbers(found.groupdict())
                ours, theirs = (
                    tuple(_with_separator(name).format(**numbers) + leaf for name in side)
                    for side in (row.ours, row.theirs)
                )
                return Match(ours, theirs, row.pointwise and leaf == "weight")
        return None

    @cached_property
    def _index(self) -> tuple[dict[str, list[tuple[re.Pattern[str], Row]]], ...]:
        """Rows by the shape of a name, theirs and ours: a model has a thousand names."""
        indices: tuple[dict[str, list[tuple[re.Pattern[str], Row]]], ...] = ({}, {})
        for row in self.rows:
            for index, names in zip(indices, (row.theirs, row.ours), strict=True):
                for name in map(_with_separator, names):
                    shape = _shape_of(re.sub(r"\{\w\}", "0", name))
                    index.setdefault(shape, []).append((_pattern(name), row))
        return indices


def _with_separator(name: str) -> str:
    return name if name.endswith("_") else name + "."


def _shape_of(module: str) -> str:
    """A name with its numbers blanked out."""
    return re.sub(r"\d+", "#", module)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(name)))


def _stage_numbers(found: Mapping[str, str]) -> dict[str, int]:
    """Every way of counting the stage, from the one that a name used."""
    numbers = {key: int(value) for key, value in found.items()}
    if "n" in numbers:
        numbers["s"] = numbers["n"] - 1
    elif "r" in numbers:
        numbers["s"] = 3 - numbers["r"]
    if "s" in numbers:
        numbers |= {"n": numbers["s"] + 1, "r": 3 - numbers["s"]}
    return numbers


def _recut(stack: list[Tensor], counts: list[int]) -> list[Tensor]:
    """Tensors stacked along the first axis, cut again into parts of these counts."""
    if len(stack) == len(counts):
        return stack
    joined = _joined(stack)
    if len(counts) == 1:
        return [joined]
    unit, rest = divmod(joined.shape[0], sum(counts))
    if rest:
        raise ValueError("the first axis cannot be cut evenly")
    sizes = [unit * count for count in counts]
    return [part.clone() for part in torch.split(joined, sizes)]


def _joined(stack: list[Tensor]) -> Tensor:
    """Tensors one behind the other along the first axis."""
    if len(stack) == 1:
        return stack[0]
    if not stack[0].is_meta:
        return torch.cat(stack)
    # Of shapes alone, torch.cat would import PyTorch's compiler, which takes a second
    rest = stack[0].shape[1:]
    if any(tensor.shape[1:] != rest for tensor in stack):
        raise ValueError(f"{[tuple(tensor.shape) for tensor in stack]} cannot be joined")
    return stack[0].new_empty(sum(map(len, stack)), *rest)


def recognize(names: Iterable[str]) -> tuple[Format, dict[str, str], list[str]] | None:
    """The format of a file's tensors, from their names alone.

    It is the one whose table knows the most of them, once what wrappers put before the names
    (``module.``, ``model.``, ...) and the absent prefix of an encoder alone are allowed for. Of
    several copies of the same tensors, such as a model and its moving average, the plain one is
    taken.

    Args:
        names: Of the tensors in a file.

    Returns:
        The format; its name -> the name in the file, for the tensors of the model; and the names
        that lie outside the model's wrapper. None if no format knows an encoder here.
    """
    names = list(names)
    best: tuple[tuple[int, bool, int], Format, dict[str, str]] | None = None
    for format in FORMATS:
        mark = format.rows[0].theirs[0].format(s=0, n=1).removeprefix(format.encoder) + ".weight"
        leads = {n[: -len(mark)] for n in names if n.endswith(mark)}
        for lead in sorted(lead for lead in leads if not lead or lead.endswith(".")):
            whole = lead.endswith(format.encoder)
            wrapper = lead.removesuffix(format.encoder) if whole else lead
            found = {}
            for name in names:
                if not name.startswith(wrapper):
                    continue
                inner = name[len(wrapper) :]
                if not whole and format.knows(format.encoder + inner):
                    inner = format.encoder + inner
                found[inner] = name
            known = sum(map(format.knows, found))
            rank = (known, re.search("ema|teacher|average", wrapper) is None, -len(wrapper))
            if best is None or rank > best[0]:
                best = rank, format, found
    if best is None:
        return None
    _, format, found = best
    inside = set(found.values())
    return format, found, [name for name in names if name not in inside]


_OUR_BLOCK = "encoder.stages.{s}.blocks.{b}."


def _rows(
    stage: str, block: str, table: Mapping[str, str | tuple[str, ...]], *extra: Row
) -> tuple[Row, ...]:
    """A table as rows. ``@`` begins a name in a block, ``/`` one in a stage, on either side."""

    def full(name: str, in_block: str, in_stage: str) -> str:
        if name[0] == "@":
            return in_block + name[1:]
        return in_stage + name[1:] if name[0] == "/" else name

    rows = []
    for ours, theirs in table.items():
        names = (theirs,) if isinstance(theirs, str) else theirs
        rows.append(
            Row(
                (full(ours, _OUR_BLOCK, "encoder.stages.{s}."),),
                tuple(full(name, block, stage) for name in names),
            )
        )
    return (*rows, *extra)


_DECODER = {
    "decoder.fuse": "decode_head.linear_fuse",
    "decoder.norm": "decode_head.batch_norm",
    "decoder.classifier": "decode_head.classifier",
    # The decoder that only OpenMMLab has, as this package stores it
    "decoder.stage_norms.{s}": "decode_head.stage_norms.{s}",
    "head": "classifier",
}

HUB = Format(
    "hf",
    "Hub (transformers)",
    "segformer.",
    TRANSFORMERS_EPS,
    _rows(
        "segformer.encoder.",
        "segformer.encoder.block.{s}.{b}.",
        {
            "/merging.projection": "/patch_embeddings.{s}.proj",
            "/merging.norm": "/patch_embeddings.{s}.layer_norm",
            "@attention_norm": "@layer_norm_1",
            "@attention.query": "@attention.self.query",
            "@attention.key_value": ("@attention.self.key", "@attention.self.value"),
            "@attention.output": "@attention.output.dense",
            "@attention.reduction": "@attention.self.sr",
            "@attention.reduction_norm": "@attention.self.layer_norm",
            "@ffn_norm": "@layer_norm_2",
            "@ffn.expand": "@mlp.dense1",
            "@ffn.depthwise": "@mlp.dwconv.dwconv",
            "@ffn.contract": "@mlp.dense2",
            "/norm": "/layer_norm.{s}",
            "decoder.projections.{s}": "decode_head.linear_c.{s}.proj",
            **_DECODER,
        },
    ),
)
"""The Hub layout: what transformers 4 calls its modules, and what 4 and 5 both write."""

HUB_IN_MEMORY = Format(
    "hf5",
    "transformers 5, in memory",
    "segformer.",
    TRANSFORMERS_EPS,
    _rows(
        "segformer.stages.{s}.",
        "segformer.stages.{s}.blocks.{b}.",
        {
            "/merging.projection": "/patch_embeddings.proj",
            "/merging.norm": "/patch_embeddings.layer_norm",
            "@attention_norm": "@layernorm_before",
            "@attention.query": "@attention.q_proj",
            "@attention.key_value": ("@attention.k_proj", "@attention.v_proj"),
            "@attention.output": "@attention.o_proj",
            "@attention.reduction": "@attention.sequence_reduction.sequence_reduction",
            "@attention.reduction_norm": "@attention.sequence_reduction.layer_norm",
            "@ffn_norm": "@layernorm_after",
            "@ffn.expand": "@mlp.fc1",
            "@ffn.depthwise": "@mlp.dwconv.dwconv",
            "@ffn.contract": "@mlp.fc2",
            "/norm": "/layer_norm",
            "decoder.projections.{s}": "decode_head.linear_projections.{s}.proj",
            **_DECODER,
        },
    ),
)
"""What transformers 5 calls its modules in memory, as ``model.state_dict()`` gives them."""


def _original_encoder(prefix: str) -> dict[str, str | tuple[str, ...]]:
    """The encoder's names in the original code, which others took over."""
    return {
        "/merging.projection": prefix + "patch_embed{n}.proj",
        "/merging.norm": prefix + "patch_embed{n}.norm",
        "@attention_norm": "@norm1",
        "@attention.query": "@attn.q",
        "@attention.key_value": "@attn.kv",
        "@attention.output": "@attn.proj",
        "@attention.reduction": "@attn.sr",
        "@attention.reduction_norm": "@attn.norm",
        "@ffn_norm": "@norm2",
        "@ffn.expand": "@mlp.fc1",
        "@ffn.depthwise": "@mlp.dwconv.dwconv",
        "@ffn.contract": "@mlp.fc2",
        "/norm": prefix + "norm{n}",
        "head": "head",
    }


def _split_key_value(block: str) -> Row:
    """Keys and values stored apart, as some forks do."""
    return Row(
        (_OUR_BLOCK + "attention.key_value",),
        (block + "attn.k", block + "attn.v"),
    )


NVLABS = Format(
    "nvlabs",
    "NVlabs",
    "backbone.",
    ORIGINAL_EPS,
    _rows(
        "",
        "backbone.block{n}.{b}.",
        {
            **_original_encoder("backbone."),
            "decoder.projections.{s}": "decode_head.linear_c{n}.proj",
            "decoder.fuse": "decode_head.linear_fuse.conv",
            "decoder.norm": "decode_head.linear_fuse.bn",
            "decoder.classifier": "decode_head.linear_pred",
        },
        _split_key_value("backbone.block{n}.{b}."),
    ),
    unused=(r"decode_head\.conv_seg\.", r"auxiliary_head\."),  # the base class's own classifier
)

SMP = Format(
    "smp",
    "segmentation_models.pytorch",
    "encoder.",
    ORIGINAL_EPS,
    _rows(
        "",
        "encoder.block{n}.{b}.",
        {
            **_original_encoder("encoder."),
            "decoder.projections.{s}": "decoder.mlp_stage.{r}.linear",
            "decoder.fuse": "decoder.fuse_stage.0",
            "decoder.norm": "decoder.fuse_stage.1",
            "decoder.classifier": "segmentation_head.0",
        },
        _split_key_value("encoder.block{n}.{b}."),
    ),
    unused=(r"classification_head\.",),
)

_MMSEG_BLOCK = "backbone.layers.{s}.1.{b}."
OPENMMLAB = Format(
    "mmseg",
    "OpenMMLab 1.x",
    "backbone.",
    OPENMMLAB_EPS,
    _rows(
        "backbone.layers.{s}.",
        _MMSEG_BLOCK,
        {
            "/merging.projection": "/0.projection",
            "/merging.norm": "/0.norm",
            "@attention_norm": "@norm1",
            "@attention.output": "@attn.attn.out_proj",
            "@attention.reduction": "@attn.sr",
            "@attention.reduction_norm": "@attn.norm",
            "@ffn_norm": "@norm2",
            "@ffn.depthwise": "@ffn.layers.1",
            "/norm": "/2",
            "decoder.stage_norms.{s}": "decode_head.convs.{s}.bn",
            "decoder.fuse": "decode_head.fusion_conv.conv",
            "decoder.norm": "decode_head.fusion_conv.bn",
            "decoder.classifier": "decode_head.conv_seg",
        },
        Row(
            (_OUR_BLOCK + "attention.query", _OUR_BLOCK + "attention.key_value"),
            (_MMSEG_BLOCK + "attn.attn.in_proj_",),
        ),
        Row((_OUR_BLOCK + "ffn.expand",), (_MMSEG_BLOCK + "ffn.layers.0",), pointwise=True),
        Row((_OUR_BLOCK + "ffn.contract",), (_MMSEG_BLOCK + "ffn.layers.4",), pointwise=True),
        Row(("decoder.projections.{s}",), ("decode_head.convs.{s}.conv",), pointwise=True),
    ),
    decoder="openmmlab",
    unused=(r"auxiliary_head\.", r"data_preprocessor\."),
)

FORMATS = (HUB, HUB_IN_MEMORY, NVLABS, SMP, OPENMMLAB)
