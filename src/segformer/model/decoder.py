"""The all-MLP decoder, in a faster form that is mathematically identical.

The paper (section 3.2) projects each stage to the decoder width D, upsamples all stages to 1/4,
concatenates them, and fuses them with a 1x1 convolution. Projection, upsampling and fusion are
linear, and bilinear weights sum to one. Let W_i be the slice of the fusion weight for stage i, and
P_i, b_i the projection of that stage. Then

    fuse(concat_i up(P_i x_i + b_i)) = sum_i up((W_i P_i) x_i) + sum_i W_i b_i

So each stage is multiplied by the composed weight W_i P_i at its own resolution. This removes the
most expensive product of the model, 4 D^2 per token. The parameters are the same as in published
checkpoints, and gradients are propagated to them through the composition.

The decoder of OpenMMLab has a BatchNorm and a ReLU after each projection. They are applied at the
resolution of each stage, and only W_i is moved before the upsampling.

Legend: B batch, h w tokens of stage 1, C channels, D decoder width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segformer.config import SegFormerConfig
from segformer.model.interpolation import interpolate_rows
from segformer.model.layers import to_maps, to_tokens
from segformer.model.products import (
    Linear,
    chunks,
    full_precision,
    is_traced,
    linear,
    passes_through,
)


class MLPDecoder(nn.Module):
    """Projections, fusion, BatchNorm, ReLU, dropout over whole channels, classifier.

    Attributes:
        projections: Four linear layers C_i -> D, stage 1 first. They have no bias if a norm
            follows.
        stage_norms: BatchNorms over D, one after each projection, each followed by a ReLU. Only
            the OpenMMLab decoder has them; otherwise None.
        fuse: 1x1 convolution 4D -> D without bias. Its input starts with stage 4; in the
            OpenMMLab decoder, with stage 1.
        norm: BatchNorm over D.
        classifier: 1x1 convolution D -> K.
    """

    def __init__(self, config: SegFormerConfig):
        super().__init__()
        width = config.decoder_hidden_size
        normed = config.decoder == "openmmlab"
        self.projections = nn.ModuleList(
            Linear(c, width, bias=not normed) for c in config.hidden_sizes
        )
        self.stage_norms = (
            nn.ModuleList(nn.BatchNorm2d(width) for _ in config.hidden_sizes) if normed else None
        )
        self.fuse = nn.Conv2d(len(config.hidden_sizes) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = config.dropout
        self.classifier = nn.Conv2d(width, config.num_classes, 1)
        if self.fuse.weight.is_meta:
            return  # no values to initialize
        nn.init.kaiming_normal_(self.fuse.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.constant_(self.classifier.get_parameter("bias"), 0)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_i, h_i, w_i), stage 1 first -> logits (B, K, h_1, w_1)."""
        if self._can_fold():
            return _decode(features, _fold(self), self.classifier)
        if self.stage_norms is not None:
            features = [
                norm(to_maps(projection(to_tokens(maps)))).relu_()
                for maps, projection, norm in zip(
                    features, self.projections, self.stage_norms, strict=True
                )
            ]
        weights, bias = self.compose()
        dtype = self.fuse.weight.dtype
        weights, bias = [weight.to(dtype) for weight in weights], bias.to(dtype)
        fused = self.norm(_fuse(features, weights, bias)).relu_()
        if not self.training or self.dropout == 0:
            return self.classifier(fused)
        return self._classify_dropped(fused)

    def _classify_dropped(self, fused: Tensor) -> Tensor:
        """Apply dropout to whole channels, then the classifier.

        Each image uses classifier weights that are zero for its dropped channels. The result is
        the same as with zeroed maps, without two passes over the largest tensor of the model.
        """
        batch, width, h, w = fused.shape
        weight = self.classifier.weight.flatten(1)
        kept = weight.new_empty(batch, 1, width).bernoulli_(1 - self.dropout)
        weight = weight * (kept / (1 - self.dropout))  # (B, K, D)
        tokens = to_tokens(fused).reshape(batch, h * w, width)
        logits = tokens @ weight.to(tokens.dtype).transpose(1, 2)
        logits = logits.reshape(batch, h, w, -1) + self.classifier.get_parameter("bias")
        return to_maps(logits)

    def compose(self) -> tuple[list[Tensor], Tensor]:
        """Return the composed weights W_i P_i and the bias sum_i W_i b_i.

        If norms follow the projections, the weights are the slices W_i, each (D, D), and the bias
        is zero.

        The dtype is at least float32, also under autocast and for weights in half precision, so
        that the product is not rounded twice.

        Returns:
            Weights, each (D, C_i), stage 1 first; bias (D,).
        """
        dtype = torch.promote_types(self.fuse.weight.dtype, torch.float32)
        with full_precision(self.fuse.weight.device):
            slices = self.fuse.weight.to(dtype).flatten(1).chunk(len(self.projections), dim=1)
            if self.stage_norms is not None:
                return list(slices), slices[0].new_zeros(len(slices[0]))
            pairs = list(zip(reversed(slices), self.projections, strict=True))
            weights = [
                part @ projection.get_parameter("weight").to(dtype) for part, projection in pairs
            ]
            biases = [
                part @ projection.get_parameter("bias").to(dtype) for part, projection in pairs
            ]
            bias = torch.stack(biases).sum(0)
        return weights, bias

    def fold(self) -> FoldedDecoder:
        """Return an equivalent decoder for inference, with the weights composed in advance."""
        return FoldedDecoder(self)

    def _can_fold(self) -> bool:
        """Whether the decoder is in evaluation mode and no gradients are needed."""
        norms = (self.norm, *(self.stage_norms or ()))
        return not (
            torch.is_grad_enabled()
            or self.training
            or any(norm.training or norm.running_mean is None for norm in norms)
        )


class FoldedDecoder(nn.Module):
    """`MLPDecoder` for inference: composed weights, with the BatchNorm folded into them.

    Args:
        decoder: The decoder to fold. Its current weights are copied; later changes to them have
            no effect.
    """

    bias: Tensor

    def __init__(self, decoder: MLPDecoder):
        super().__init__()
        with torch.no_grad():
            folded = _fold(decoder)
        self.stages = len(folded.weights)
        self.normed_stages = bool(folded.projections)
        for stage, weight in enumerate(folded.weights):
            self.register_buffer(f"weight_{stage}", weight)
        self.register_buffer("bias", folded.bias)
        for stage, (weight, bias) in enumerate(folded.projections):
            self.register_buffer(f"projection_{stage}", weight)
            self.register_buffer(f"projection_bias_{stage}", bias)
        self.classifier = decoder.classifier

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_i, h_i, w_i), stage 1 first -> logits (B, K, h_1, w_1)."""
        projections = [
            (self.get_buffer(f"projection_{stage}"), self.get_buffer(f"projection_bias_{stage}"))
            for stage in range(self.stages if self.normed_stages else 0)
        ]
        weights = [self.get_buffer(f"weight_{stage}") for stage in range(self.stages)]
        return _decode(features, _Folded(projections, weights, self.bias), self.classifier)


@dataclass(frozen=True)
class _Folded:
    """Folded weights of a decoder, for inference.

    Attributes:
        projections: Weight (D, C_i) and bias (D,) of the projection of each stage, including its
            BatchNorm. Empty unless a ReLU follows the projections.
        weights: Weight of each stage, stage 1 first: (D, C_i), or (D, D) if ``projections`` is
            not empty.
        bias: (D,).
    """

    projections: list[tuple[Tensor, Tensor]]
    weights: list[Tensor]
    bias: Tensor


def _fold(decoder: MLPDecoder) -> _Folded:
    """Fold the current weights of the decoder."""
    dtype = decoder.fuse.weight.dtype
    with full_precision(decoder.fuse.weight.device):
        weights, bias = decoder.compose()
        scale, shift = _scale_and_shift(decoder.norm)
        projections = []
        for projection, norm in zip(decoder.projections, decoder.stage_norms or (), strict=False):
            factor, summand = _scale_and_shift(norm)
            weight = projection.get_parameter("weight") * factor[:, None]
            projections.append((weight.to(dtype), summand.to(dtype)))
        return _Folded(
            projections,
            [(weight * scale[:, None]).to(dtype) for weight in weights],
            (bias * scale + shift).to(dtype),
        )


def _decode(features: Sequence[Tensor], folded: _Folded, classifier: nn.Module) -> Tensor:
    """Four maps (B, C_i, h_i, w_i), stage 1 first -> logits (B, K, h_1, w_1)."""
    if folded.projections:
        features = [
            to_maps(linear(to_tokens(maps), *projection).relu_())
            for maps, projection in zip(features, folded.projections, strict=True)
        ]
    if passes_through(features[0]):
        return _decode_in_chunks(features, folded, classifier)
    logits: Tensor = classifier(_fuse(features, folded.weights, folded.bias).relu_())
    return logits


def _decode_in_chunks(features: Sequence[Tensor], folded: _Folded, classifier: nn.Module) -> Tensor:
    """Compute and classify the fused map, the largest tensor of the model, in chunks of rows.

    The bias is added to the coarsest contribution, which has the fewest tokens. This is exact,
    because upsampling does not change constants.
    """
    finest, *coarser = [to_tokens(maps) for maps in features]
    biases = [None] * (len(coarser) - 1) + [folded.bias]
    contributions = [
        linear(tokens, weight, bias)
        for tokens, weight, bias in zip(coarser, folded.weights[1:], biases, strict=True)
    ]
    batch, h, w, _ = finest.shape
    logits = []
    for top, bottom in chunks((batch, h, w), len(folded.bias), finest):
        fused = linear(finest[:, top:bottom], folded.weights[0])
        for contribution in contributions:
            fused += interpolate_rows(contribution, (h, w), top, bottom)
        logits.append(to_tokens(classifier(to_maps(fused.relu_()))))
    return to_maps(logits[0] if len(logits) == 1 else torch.cat(logits, 1))


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Convert a BatchNorm with running statistics to a scale and a shift, (D,) each."""
    assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "the BatchNorm of the decoder has no running statistics, so it cannot be folded"
        )
    dtype = torch.promote_types(norm.weight.dtype, torch.float32)
    scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    return scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale


def _fuse(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Return the sum over the stages of up(weight_i x_i), plus bias: (B, D, h_1, w_1).

    The bias is added once, at full resolution; upsampling would not change it.
    """
    if is_traced():
        return _fuse_in_graph(features, weights, bias)
    contributions = [
        linear(to_tokens(x), w) for x, w in zip(features[1:], weights[1:], strict=True)
    ]
    finest = linear(to_tokens(features[0]), weights[0], bias)
    if finest.device.type == "cpu":
        return to_maps(_SumUpsampled.apply(finest, *contributions))  # type: ignore[no-untyped-call]
    fused = to_maps(finest)
    for contribution in contributions:
        fused = fused + _upsample(to_maps(contribution), fused)
    return fused


def _fuse_in_graph(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """`_fuse` with the operations that runtimes compute fastest.

    They fuse the sum and the ReLU into a convolution, but not into a linear layer. If stage 2 has
    fewer channels than D, it is upsampled before its product instead of after it.
    """
    finest = features[0]
    early = 2 if features[1].shape[1] < len(bias) else 1
    fine = torch.cat([finest, *(_upsample(maps, finest) for maps in features[1:early])], 1)
    fused = F.conv2d(fine, torch.cat(list(weights[:early]), 1)[:, :, None, None], bias)
    first, *others = (
        _upsample(to_maps(linear(to_tokens(x), w)), finest)
        for x, w in zip(features[early:], weights[early:], strict=True)
    )
    return fused + sum(others, first)


def _upsample(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (B, C, h, w) -> (B, C, H, W) of the height and width of other maps."""
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


class _SumUpsampled(torch.autograd.Function):
    """Add the upsampled coarser contributions to the finest one, (B, h, w, D), in chunks of rows.

    No upsampled contribution is stored as a whole. In the backward pass the gradient of the sum
    is used for all contributions.
    """

    @staticmethod
    def forward(ctx: Any, finest: Tensor, *contributions: Tensor) -> Tensor:
        ctx.sizes = [to_maps(contribution).shape for contribution in contributions]
        total = torch.empty_like(finest)
        batch, h, w, width = finest.shape
        for top, bottom in chunks((batch, h, w), width, finest):
            chunk = total[:, top:bottom].copy_(finest[:, top:bottom])
            for contribution in contributions:
                chunk += interpolate_rows(contribution, (h, w), top, bottom)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradient = to_maps(upstream[0])
        back = [
            to_tokens(
                torch.ops.aten.upsample_bilinear2d_backward(
                    gradient, list(gradient.shape[2:]), list(size), align_corners=False
                )
            )
            for size in ctx.sizes
        ]
        return upstream[0], *back
