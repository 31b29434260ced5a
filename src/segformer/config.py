"""The architecture of SegFormer as numbers: configuration, B0..B5, tensor shapes, MACs.

Legend: B batch, H W pixels, h w tokens, C channels, D decoder width, K classes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

STRIDES = (4, 8, 16, 32)
"""Pixels per token along a side, for the four stages."""

LARGEST_WIDTH = 1 << 16
"""Largest width that a configuration may have; anything above is a mistake."""

DECODERS = ("original", "openmmlab")

HIDDEN_ACTS = ("gelu", "gelu_pytorch_tanh")
"""Activations of the Mix-FFN, by their names in transformers: GELU, and its tanh approximation."""

PATCH_KERNELS = (7, 3, 3, 3)
PATCH_STRIDES = (4, 2, 2, 2)


@dataclass(frozen=True)
class NormEps:
    """Epsilons of the LayerNorms; they differ with the codebase that trained the weights.

    Attributes:
        block: In the encoder blocks.
        merging: After each overlapped patch merging.
        reduction: After the sequence reduction of the attention.
        stage: At the end of each stage.
    """

    block: float = 1e-5
    merging: float = 1e-5
    reduction: float = 1e-5
    stage: float = 1e-5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, float) or not 0 < value < 1:
                raise ValueError(f"eps of {name} must be a small positive number, not {value!r}")

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> NormEps:
        """The inverse of `dataclasses.asdict`. In old records ``block`` holds for ``stage`` too."""
        return cls(**{"stage": entries["block"], **entries})


ORIGINAL_EPS = NormEps(block=1e-6, merging=1e-5, reduction=1e-5, stage=1e-6)
"""As in the original implementation (NVlabs)."""
OPENMMLAB_EPS = NormEps(block=1e-6, merging=1e-6, reduction=1e-6, stage=1e-6)
"""As in mmsegmentation, which has one setting for all norms."""
KERASHUB_EPS = NormEps(block=1e-6, merging=1e-5, reduction=1e-5, stage=1e-5)
"""As in KerasHub."""
TRANSFORMERS_EPS = NormEps()
"""As in transformers, whose modules do not use ``layer_norm_eps`` of their configuration."""


@dataclass(frozen=True)
class SegFormerConfig:
    """Everything that determines the shapes and the arithmetic of a SegFormer.

    Attributes:
        hidden_sizes: Width of each of the four encoder stages.
        depths: Blocks in each stage.
        num_attention_heads: Attention heads of each stage; each divides the stage's width.
        sr_ratios: Spatial reduction r of keys and values (the sequence reduction is r squared).
        mlp_ratio: Expansion of the Mix-FFN.
        decoder_hidden_size: Width D of the all-MLP decoder.
        decoder: "original" (the paper's), or "openmmlab", which has BatchNorm and ReLU after the
            projection of each stage.
        num_classes: Channels K of the logits; 1 for a binary model with a sigmoid.
        in_channels: Channels of the image.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 over all blocks.
        dropout: Probability of dropping whole channels before the classifier.
        eps: Epsilons of the LayerNorms, those that the weights were trained with.
        hidden_act: Activation of the Mix-FFN: "gelu", or "gelu_pytorch_tanh" (KerasHub).
        multilabel: Classes may overlap: each logit has its own sigmoid.
        thresholds: For a model with sigmoids, the probability above which each class is present,
            fitted on a validation split. Empty: 0.5 for each.
    """

    hidden_sizes: tuple[int, int, int, int] = (32, 64, 160, 256)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    num_attention_heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    sr_ratios: tuple[int, int, int, int] = (8, 4, 2, 1)
    mlp_ratio: int = 4
    decoder_hidden_size: int = 256
    decoder: str = "original"
    num_classes: int = 150
    in_channels: int = 3
    drop_path: float = 0.1
    dropout: float = 0.1
    eps: NormEps = NormEps()
    hidden_act: str = "gelu"
    multilabel: bool = False
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("hidden_sizes", "depths", "num_attention_heads", "sr_ratios"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 4 or not all(isinstance(v, int) and v >= 1 for v in values):
                raise ValueError(f"{name} must be four positive integers, not {values}")
        for name in ("mlp_ratio", "decoder_hidden_size", "num_classes", "in_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
        if (
            max(*self.hidden_sizes, self.decoder_hidden_size, self.num_classes, self.in_channels)
            > LARGEST_WIDTH
        ):
            raise ValueError(
                f"widths and numbers of classes and channels must be at most {LARGEST_WIDTH}"
            )
        if self.mlp_ratio > 1024:
            raise ValueError(f"mlp_ratio must be at most 1024, not {self.mlp_ratio}")
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, not {self.decoder!r}")
        if self.hidden_act not in HIDDEN_ACTS:
            raise ValueError(
                f"hidden_act must be one of {', '.join(HIDDEN_ACTS)}, not {self.hidden_act!r}"
            )
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be a probability in [0, 1), not {getattr(self, name)}"
                )
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True):
            if width % heads:
                raise ValueError(f"{heads} attention heads do not divide {width} channels")
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        if not isinstance(self.multilabel, bool):
            raise ValueError(f"multilabel must be true or false, not {self.multilabel!r}")
        if self.multilabel and self.num_classes < 2:
            raise ValueError("a model of classes that may overlap has at least two")
        thresholds = tuple(float(threshold) for threshold in self.thresholds)
        object.__setattr__(self, "thresholds", thresholds)
        if not all(0 < threshold < 1 for threshold in thresholds):
            raise ValueError(f"thresholds must be between 0 and 1, not {thresholds}")
        if len(thresholds) not in (0, self.num_sigmoids):
            raise ValueError(
                f"{len(thresholds)} thresholds, but the model has {self.num_sigmoids} sigmoids"
            )

    @property
    def num_sigmoids(self) -> int:
        """Number of logits with a sigmoid; 0 for a model with a softmax."""
        return self.num_classes if self.multilabel or self.num_classes == 1 else 0

    @property
    def decision_thresholds(self) -> tuple[float, ...]:
        """Threshold of each sigmoid; empty for a model with a softmax."""
        return self.thresholds or (0.5,) * self.num_sigmoids

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> SegFormerConfig:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**entries, "eps": NormEps.from_dict(entries["eps"])})

    @property
    def min_size(self) -> int:
        """Smallest height and width of an image in pixels: each reduction needs r tokens.

        A map of stride s has ``ceil(H / s)`` rows, so H must exceed ``s * (r - 1)``.
        """
        return max(s * (r - 1) for s, r in zip(STRIDES, self.sr_ratios, strict=True)) + 1

    @property
    def variant(self) -> str | None:
        """Name of the variant with this encoder ("b0" to "b5"), or None."""
        for name, row in VARIANTS.items():
            if (self.hidden_sizes, self.depths) == (row["hidden_sizes"], row["depths"]):
                return name
        return None

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> SegFormerConfig:
        """Configuration of one of the paper's models.

        Args:
            variant: "b0" to "b5", in upper or lower case, also as "mit-b0" or "mit_b0".
            **overrides: Fields to set differently, such as ``num_classes=19``.

        Raises:
            ValueError: There is no such variant.
        """
        key = variant.lower().removeprefix("mit").lstrip("-_")
        if key not in VARIANTS:
            raise ValueError(
                f"no SegFormer variant {variant!r}; the variants are {', '.join(VARIANTS)}"
            )
        return replace(cls(**VARIANTS[key]), **overrides)


_WIDE = (64, 128, 320, 512)
VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {"hidden_sizes": (32, 64, 160, 256), "depths": (2, 2, 2, 2), "decoder_hidden_size": 256},
    "b1": {"hidden_sizes": _WIDE, "depths": (2, 2, 2, 2), "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": _WIDE, "depths": (3, 4, 6, 3), "decoder_hidden_size": 768},
    "b3": {"hidden_sizes": _WIDE, "depths": (3, 4, 18, 3), "decoder_hidden_size": 768},
    "b4": {"hidden_sizes": _WIDE, "depths": (3, 8, 27, 3), "decoder_hidden_size": 768},
    "b5": {"hidden_sizes": _WIDE, "depths": (3, 6, 40, 3), "decoder_hidden_size": 768},
}
"""MiT-B0..B5 (paper, table 6) with the decoder widths of section 3.2."""


FIRST_CONVOLUTION = "encoder.stages.0.merging.projection.weight"
"""Name of the tensor whose second axis is the number of image channels."""

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def tensor_shapes(
    config: SegFormerConfig, parts: Collection[str] = ("encoder.", "decoder.")
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, as its ``state_dict()`` has them.

    Args:
        config: The model.
        parts: Which parts: "encoder.", and "decoder." (of a `SegFormer`) or "head." (of a
            `SegFormerClassifier`).
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def batch_norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{leaf}": (width,) for leaf in _BATCH_NORM})
        shapes[f"{name}.num_batches_tracked"] = ()

    if "encoder." in parts:
        c_in = config.in_channels
        for s, (c, depth, r) in enumerate(
            zip(config.hidden_sizes, config.depths, config.sr_ratios, strict=True)
        ):
            stage = f"encoder.stages.{s}"
            layer(f"{stage}.merging.projection", c, c_in, PATCH_KERNELS[s], PATCH_KERNELS[s])
            layer(f"{stage}.merging.norm", c)
            for b in range(depth):
                block = f"{stage}.blocks.{b}"
                layer(f"{block}.attention_norm", c)
                layer(f"{block}.attention.query", c, c)
                layer(f"{block}.attention.key_value", 2 * c, c)
                layer(f"{block}.attention.output", c, c)
                if r > 1:
                    layer(f"{block}.attention.reduction", c, c, r, r)
                    layer(f"{block}.attention.reduction_norm", c)
                layer(f"{block}.ffn_norm", c)
                layer(f"{block}.ffn.expand", config.mlp_ratio * c, c)
                layer(f"{block}.ffn.depthwise", config.mlp_ratio * c, 1, 3, 3)
                layer(f"{block}.ffn.contract", c, config.mlp_ratio * c)
            layer(f"{stage}.norm", c)
            c_in = c
    if "decoder." in parts:
        d, stages = config.decoder_hidden_size, range(len(config.hidden_sizes))
        normed = config.decoder == "openmmlab"
        for s in stages:
            layer(f"decoder.projections.{s}", d, config.hidden_sizes[s], bias=not normed)
        for s in stages if normed else ():
            batch_norm(f"decoder.stage_norms.{s}", d)
        layer("decoder.fuse", d, len(stages) * d, 1, 1, bias=False)
        batch_norm("decoder.norm", d)
        layer("decoder.classifier", config.num_classes, d, 1, 1)
    if "head." in parts:
        layer("head", config.num_classes, config.hidden_sizes[-1])
    return shapes


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass over one image.

    Attributes:
        encoder: Convolutions, linears and the two products of each attention.
        decoder: The decoder as it is trained, which published figures count.
        decoder_folded: The decoder as inference runs it, projections folded into the fusion.
    """

    encoder: int
    decoder: int
    decoder_folded: int


def count_macs(config: SegFormerConfig, height: int, width: int) -> Macs:
    """Count the multiply-accumulates of one forward pass, without norms and interpolation.

    Args:
        config: The model.
        height: Of the image, pixels.
        width: Of the image, pixels.
    """
    encoder = 0
    channels_in = config.in_channels
    tokens_of_stage = []
    for stage, (c, depth, r) in enumerate(
        zip(config.hidden_sizes, config.depths, config.sr_ratios, strict=True)
    ):
        h, w = -(-height // STRIDES[stage]), -(-width // STRIDES[stage])
        tokens, reduced = h * w, (h // r) * (w // r)
        tokens_of_stage.append(tokens)
        encoder += tokens * channels_in * c * PATCH_KERNELS[stage] ** 2
        attention = 2 * tokens * c * c + 2 * reduced * c * c + 2 * tokens * reduced * c
        if r > 1:
            attention += reduced * c * c * r * r
        hidden = config.mlp_ratio * c
        encoder += depth * (attention + tokens * hidden * (2 * c + 9))
        channels_in = c
    d, first = config.decoder_hidden_size, tokens_of_stage[0]
    projections = sum(n * c * d for n, c in zip(tokens_of_stage, config.hidden_sizes, strict=True))
    classifier = first * d * config.num_classes
    # A projection before a ReLU cannot be folded, but its slice runs before the upsampling
    slices = sum(tokens_of_stage) * d * d if config.decoder == "openmmlab" else 0
    return Macs(
        encoder,
        projections + first * 4 * d * d + classifier,
        projections + slices + classifier,
    )
