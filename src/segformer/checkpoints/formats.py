"""The checkpoint formats: one table of tensor names per codebase, and which one a file has.

The tables were made from the upstream sources: `modeling_segformer.py` of transformers,
`mix_transformer.py` and `segformer_head.py` of NVlabs/SegFormer, `mit.py` and
`segformer_head.py` of mmsegmentation 1.x, `mix_transformer.py` and `decoders/segformer` of
segmentation_models.pytorch. See `segformer.checkpoints.naming` for how to read a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from segformer.checkpoints.naming import Format, Row
from segformer.config import DECODERS, OPENMMLAB_EPS, ORIGINAL_EPS, TRANSFORMERS_EPS, NormEps

_OUR_STAGE = "encoder.stages.{s}."
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
                (full(ours, _OUR_BLOCK, _OUR_STAGE),),
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
    decoders=("openmmlab",),
    unused=(r"auxiliary_head\.", r"data_preprocessor\."),
)

_OUR_NAMES = (
    *("/merging.projection", "/merging.norm"),
    *("@attention_norm", "@attention.query", "@attention.key_value", "@attention.output"),
    *("@attention.reduction", "@attention.reduction_norm"),
    *("@ffn_norm", "@ffn.expand", "@ffn.depthwise", "@ffn.contract", "/norm"),
    *("decoder.projections.{s}", "decoder.stage_norms.{s}"),
    *("decoder.fuse", "decoder.norm", "decoder.classifier", "head"),
)
OURS = Format(
    "segformer",
    "segformer (this package)",
    "encoder.",
    NormEps(),
    _rows(_OUR_STAGE, _OUR_BLOCK, {name: name for name in _OUR_NAMES}),
    decoders=DECODERS,
)
"""The names in this package, as ``model.state_dict()`` gives them."""

FORMATS = (HUB, HUB_IN_MEMORY, NVLABS, SMP, OPENMMLAB, OURS)


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
