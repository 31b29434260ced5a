"""The checkpoint formats: one table of tensor names per codebase, and which one a file has.

The tables were made from the upstream sources: `modeling_segformer.py` of transformers,
`mix_transformer.py` and `segformer_head.py` of NVlabs/SegFormer, `mit.py` and
`segformer_head.py` of mmsegmentation 1.x, `mix_transformer.py` and `decoders/segformer` of
segmentation_models.pytorch, `mit_layers.py` and `segformer_backbone.py` of KerasHub. See
`segformer.checkpoints.naming` for how to read a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from segformer.checkpoints.naming import Format, Row
from segformer.config import (
    DECODERS,
    KERASHUB_EPS,
    OPENMMLAB_EPS,
    ORIGINAL_EPS,
    TRANSFORMERS_EPS,
    NormEps,
)

_OUR_STAGE = "encoder.stages.{s}."
_OUR_BLOCK = "encoder.stages.{s}.blocks.{b}."


def _rows(
    stage: str, block: str, table: Mapping[str, str | tuple[str, ...]], *extra: Row
) -> tuple[Row, ...]:
    """A table as rows. On both sides ``@`` stands for the block and ``/`` for the stage."""

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
    # Of OpenMMLab's decoder, which transformers does not have, as this package stores it
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
    """Names of the encoder in the original code and in other codebases."""
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
    """Keys and values stored separately, as some forks do."""
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

KERASHUB = Format(
    "kerashub",
    "KerasHub",
    "image_encoder.",
    KERASHUB_EPS,
    _rows(
        "image_encoder.",
        "image_encoder.hierarchical_encoder_{s}_{b}.",
        {
            "/merging.projection": "/patch_and_embed_{s}.proj",
            "/merging.norm": "/patch_and_embed_{s}.norm",
            "@attention_norm": "@norm1",
            "@attention.query": "@attn.q",
            "@attention.key_value": ("@attn.k", "@attn.v"),
            "@attention.output": "@attn.proj",
            "@attention.reduction": "@attn.sr",
            "@attention.reduction_norm": "@attn.norm",
            "@ffn_norm": "@norm2",
            "@ffn.expand": "@mlp.fc1",
            "@ffn.depthwise": "@mlp.dwconv",
            "@ffn.contract": "@mlp.fc2",
            "/norm": "/layer_norms.{s}",
            "decoder.projections.{s}": "mlp_blocks.{s}",
            "decoder.fuse": "linear_fuse.conv2d",
            "decoder.norm": "linear_fuse.batch_normalization",
            "decoder.classifier": "output_segmentation_head",
            "head": "output_dense",
        },
    ),
    unused=(r"optimizer/", r"preprocessor/", r"(.*/)?(seed_generator|seed)/"),
    hidden_act="gelu_pytorch_tanh",
    written=False,
)
"""KerasHub's layers by their names in its code, as `segformer.checkpoints.keras` gives them."""

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

FORMATS = (HUB, HUB_IN_MEMORY, NVLABS, SMP, OPENMMLAB, KERASHUB, OURS)


def recognize(names: Iterable[str]) -> tuple[Format, dict[str, str], list[str]] | None:
    """Recognize the format of a file from the names of its tensors.

    It is the format whose table has the most of these names. Prefixes of wrappers (``module.``,
    ``model.``, ...) are removed, and an encoder alone may lack the format's prefix. Of several
    copies of a model, such as its moving average, the model itself is taken.

    Args:
        names: Of the tensors in a file.

    Returns:
        The format; the names of the model's tensors, format -> file; and the other names in the
        file. None if no format has an encoder of such names.
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
