"""A configuration from the shapes of tensors, and whether tensors fit a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from segformer.checkpoints.errors import CheckpointError
from segformer.config import (
    FIRST_CONVOLUTION,
    LARGEST_WIDTH,
    VARIANTS,
    NormEps,
    SegFormerConfig,
    tensor_shapes,
)

Shapes = Mapping[str, tuple[int, ...]]


def infer_config(shapes: Shapes, eps: NormEps, hidden_act: str = "gelu") -> SegFormerConfig:
    """Infer the configuration of a model from the shapes of its tensors.

    The number of attention heads cannot be inferred. Heads are assumed to be as wide as the first
    stage, as in every published variant.

    Args:
        shapes: Of the tensors, by the names in this package.
        eps: Epsilons of the checkpoint format.
        hidden_act: Activation of the checkpoint format.

    Raises:
        CheckpointError: The encoder is incomplete.
    """
    try:
        return _infer_config(shapes, eps, hidden_act)
    except (IndexError, ZeroDivisionError):
        raise CheckpointError("the tensors have shapes that no SegFormer has") from None


def _infer_config(shapes: Shapes, eps: NormEps, hidden_act: str) -> SegFormerConfig:
    stages = [f"encoder.stages.{s}." for s in range(4)]
    depths = [_depth(shapes, stage) for stage in stages]
    needed = [stage + "merging.projection.weight" for stage in stages]
    needed += [stage + "blocks.0.ffn.expand.weight" for stage in stages]
    missing = [name for name in needed if len(shapes.get(name, ())) < 2]
    if missing or not all(depths):
        raise CheckpointError(f"the encoder is incomplete: {(missing or ['its blocks'])[0]}")
    hidden_sizes = [shapes[stage + "merging.projection.weight"][0] for stage in stages]
    sr_ratios = [
        shapes.get(stage + "blocks.0.attention.reduction.weight", (0, 0, 1, 1))[-1]
        for stage in stages
    ]
    hidden = shapes[stages[0] + "blocks.0.ffn.expand.weight"][0]
    classifier = shapes.get("decoder.classifier.weight", shapes.get("head.weight", (1,)))
    if max(classifier[0], shapes[FIRST_CONVOLUTION][1]) > LARGEST_WIDTH:
        raise CheckpointError(f"more than {LARGEST_WIDTH} classes or channels")
    normed = any(name.startswith("decoder.stage_norms.") for name in shapes)
    try:
        config = SegFormerConfig(
            hidden_sizes=tuple(hidden_sizes),  # type: ignore[arg-type]
            depths=tuple(depths),  # type: ignore[arg-type]
            num_attention_heads=tuple(max(1, c // hidden_sizes[0]) for c in hidden_sizes),  # type: ignore[arg-type]
            sr_ratios=tuple(sr_ratios),  # type: ignore[arg-type]
            mlp_ratio=hidden // hidden_sizes[0],
            decoder="openmmlab" if normed else "original",
            num_classes=classifier[0],
            in_channels=shapes[FIRST_CONVOLUTION][1],
            eps=eps,
            hidden_act=hidden_act,
        )
    except ValueError as error:
        raise CheckpointError(f"the tensors do not form a SegFormer: {error}") from None
    usual = VARIANTS.get(config.variant or "b0", VARIANTS["b0"])["decoder_hidden_size"]
    return replace(config, decoder_hidden_size=shapes.get("decoder.fuse.weight", (usual,))[0])


def check_fit(
    config: SegFormerConfig, shapes: Shapes, parts: Sequence[str], unknown: Sequence[str]
) -> None:
    """Check that tensors have the names and shapes that a configuration requires.

    Args:
        config: Of the model.
        shapes: Of the tensors, by the names in this package.
        parts: Which parts of the model to check: "encoder.", "decoder.", "head.".
        unknown: Names in the file that no part of a SegFormer has.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or of another shape; the message lists
            them and states the likely cause.
    """
    blocks = len({name.split(".ffn.")[0] for name in shapes if ".ffn." in name})
    if sum(config.depths) > 2 * blocks + 100:  # before millions of names are listed
        raise CheckpointError(
            f"the weights do not fit the model: depths {config.depths}, the file has {blocks} "
            "blocks in total"
        )
    expected = tensor_shapes(config, parts)
    found = {n: shape for n, shape in shapes.items() if n.startswith(tuple(parts))}
    optional = ("num_batches_tracked",)
    problems = [
        f"{name}: expected {tuple(expected[name])}, found {tuple(shape)}"
        for name, shape in found.items()
        if name in expected and tuple(shape) != tuple(expected[name])
    ]
    problems += [
        f"{name}: missing" for name in expected if name not in found and not name.endswith(optional)
    ]
    extra = [name for name in found if name not in expected and not name.endswith(optional)]
    problems += [f"{n}: not part of a model of this configuration" for n in (*extra, *unknown)]
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"the weights do not fit the model{_likely_cause(config, shapes)}:\n  {shown}{more}"
        )


def _likely_cause(config: SegFormerConfig, shapes: Shapes) -> str:
    """Where the tensors contradict the configuration, as words in brackets."""
    try:
        found = infer_config(shapes, config.eps)
    except CheckpointError:
        return ""
    differences = []
    if (found.hidden_sizes, found.depths) != (config.hidden_sizes, config.depths):
        differences.append(f"the file holds {_encoder(found)}, not {_encoder(config)}")
    if found.in_channels != config.in_channels:
        differences.append(
            f"the file is for {found.in_channels} channels, not {config.in_channels}"
        )
    has_classes = {"decoder.classifier.weight", "head.weight"} & shapes.keys()
    if has_classes and found.num_classes != config.num_classes:
        differences.append(f"the file has {found.num_classes} classes, not {config.num_classes}")
    has_decoder = "decoder.fuse.weight" in shapes
    if has_decoder and found.decoder_hidden_size != config.decoder_hidden_size:
        differences.append(
            f"the file's decoder is {found.decoder_hidden_size} wide, "
            f"not {config.decoder_hidden_size}"
        )
    return f" ({'; '.join(differences)})" if differences else ""


def _encoder(config: SegFormerConfig) -> str:
    if config.variant is not None:
        return config.variant.upper()
    return f"hidden_sizes {config.hidden_sizes} with depths {config.depths}"


def _depth(shapes: Shapes, stage: str) -> int:
    pattern = re.compile(re.escape(stage) + r"blocks\.(\d+)\.")
    blocks = [int(found[1]) for name in shapes if (found := pattern.match(name))]
    return max(blocks, default=-1) + 1
