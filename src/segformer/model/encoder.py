"""The Mix Transformer encoder: four stages of transformer blocks, four feature maps.

Legend: B batch, H W pixels, h w tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segformer.checkpoints.hub import HubOptions
from segformer.checkpoints.opening import open_checkpoint
from segformer.config import PATCH_KERNELS, PATCH_STRIDES, STRIDES, SegFormerConfig
from segformer.model.layers import (
    DropPath,
    EfficientSelfAttention,
    MixFFN,
    OverlapPatchMerging,
    to_maps,
)
from segformer.model.pretrained import read_float32


class EncoderBlock(nn.Module):
    """Attention and Mix-FFN, each with a LayerNorm before it and a residual connection."""

    def __init__(self, config: SegFormerConfig, stage: int, drop_path: float):
        super().__init__()
        channels, eps = config.hidden_sizes[stage], config.eps
        self.attention_norm = nn.LayerNorm(channels, eps=eps.block)
        self.attention = EfficientSelfAttention(
            channels, config.num_attention_heads[stage], config.sr_ratios[stage], eps.reduction
        )
        self.ffn_norm = nn.LayerNorm(channels, eps=eps.block)
        self.ffn = MixFFN(channels, config.mlp_ratio, config.hidden_act)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        tokens = tokens + self.drop_path(self.attention(self.attention_norm(tokens)))
        return tokens + self.drop_path(self.ffn(self.ffn_norm(tokens)))


class EncoderStage(nn.Module):
    """Patch merging, blocks, LayerNorm, in the order of the released models."""

    def __init__(self, config: SegFormerConfig, stage: int, drop_paths: list[float]):
        super().__init__()
        channels = config.hidden_sizes[stage]
        self.merging = OverlapPatchMerging(
            config.hidden_sizes[stage - 1] if stage else config.in_channels,
            channels,
            PATCH_KERNELS[stage],
            PATCH_STRIDES[stage],
            config.eps.merging,
        )
        self.blocks = nn.ModuleList(EncoderBlock(config, stage, p) for p in drop_paths)
        self.norm = nn.LayerNorm(channels, eps=config.eps.stage)
        self._gradient_checkpointing = False

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `MixTransformer.set_gradient_checkpointing`."""
        self._gradient_checkpointing = enabled

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, h, w), in channels_last memory."""
        tokens = self.merging(maps)
        for block in self.blocks:
            if self._gradient_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return to_maps(self.norm(tokens))


class MixTransformer(nn.Module):
    """The hierarchical encoder MiT (paper, section 3.1), usable as a backbone for any head.

    Args:
        config: Model configuration; only the encoder fields are used.
        out_indices: Stages to return the maps of, in increasing order. Stages after the last one
            are not run.

    Attributes:
        stages: Four stages, at 1/4, 1/8, 1/16 and 1/32 of the image size.
        out_channels: Number of channels of each returned map; of all four maps 32, 64, 160, 256
            for B0 and 64, 128, 320, 512 for B1 to B5.
        strides: Stride of each returned map in pixels; of all four maps 4, 8, 16, 32.

    Raises:
        ValueError: ``out_indices`` is empty or not strictly increasing from 0 to 3.

    Example:
        >>> encoder = MixTransformer.from_variant("b0", out_indices=(1, 3))
        >>> [tuple(maps.shape) for maps in encoder(torch.rand(2, 3, 256, 320))]
        [(2, 64, 32, 40), (2, 256, 8, 10)]
    """

    def __init__(self, config: SegFormerConfig, out_indices: Sequence[int] = (0, 1, 2, 3)):
        super().__init__()
        self.config = config
        self.out_indices = tuple(out_indices)
        if not self.out_indices or list(self.out_indices) != sorted(
            {*self.out_indices} & {0, 1, 2, 3}
        ):
            raise ValueError(
                f"out_indices must be increasing numbers from 0 to 3, not {out_indices}"
            )
        self.out_channels = tuple(config.hidden_sizes[i] for i in self.out_indices)
        self.strides = tuple(STRIDES[i] for i in self.out_indices)
        self.frozen_stages = 0
        blocks = sum(config.depths)
        drop_paths = [config.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            self.stages.append(EncoderStage(config, stage, drop_paths[:depth]))
            drop_paths = drop_paths[depth:]
        self.apply(_initialize)

    @classmethod
    def from_variant(
        cls, variant: str, out_indices: Sequence[int] = (0, 1, 2, 3), **overrides: object
    ) -> MixTransformer:
        """Create a randomly initialized encoder.

        Args:
            variant: "b0" to "b5".
            out_indices: Stages to return the maps of.
            **overrides: Fields of `SegFormerConfig`.
        """
        return cls(SegFormerConfig.from_variant(variant, **overrides), out_indices)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        in_channels: int | None = None,
        **options: Unpack[HubOptions],
    ) -> MixTransformer:
        """Load the encoder of a segmentation, classification or encoder checkpoint.

        Args:
            source: See `SegFormer.from_pretrained`.
            out_indices: Stages to return the maps of.
            in_channels: Number of image channels. If it differs from the checkpoint, the first
                convolution is adapted (`segformer.model.pretrained.adapt_in_channels`).
                Default: as in the checkpoint.
            **options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns:
            The encoder in float32, in evaluation mode.

        Raises:
            CheckpointError: The model does not exist, or a tensor is missing, damaged, or has a
                wrong shape.
        """
        opened = open_checkpoint(source, **options)
        opened.check(("encoder.",))
        channels = opened.config.in_channels if in_channels is None else in_channels
        with torch.device("meta"):
            encoder = cls(replace(opened.config, in_channels=channels), out_indices)
        tensors = read_float32(opened, ("encoder.",), channels)
        encoder.load_state_dict(
            {name.removeprefix("encoder."): tensor for name, tensor in tensors}, assign=True
        )
        return encoder.eval()

    def freeze(self, stages: int = 4) -> MixTransformer:
        """Exclude the first stages from training: no gradients, no stochastic depth.

        Args:
            stages: Number of stages to freeze, 0 to 4; 0 unfreezes all.

        Returns:
            The encoder itself.

        Raises:
            ValueError: ``stages`` is out of range.
        """
        if not 0 <= stages <= len(self.stages):
            raise ValueError(f"cannot freeze {stages} stages: the encoder has {len(self.stages)}")
        self.frozen_stages = stages
        for i, stage in enumerate(self.stages):
            stage.requires_grad_(i >= stages)
        return self.train(self.training)

    def train(self, mode: bool = True) -> MixTransformer:
        """Set training or evaluation mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen_stages]:
            stage.eval()
        return self

    def set_gradient_checkpointing(self, enabled: bool = True) -> MixTransformer:
        """Recompute the activations inside blocks in the backward pass instead of storing them.

        Training takes about a third longer and needs much less memory; gradients are the same.
        """
        for stage in self.stages:
            assert isinstance(stage, EncoderStage)
            stage.set_gradient_checkpointing(enabled)
        return self

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute the feature maps of a batch of images.

        Args:
            pixels: (B, in_channels, H, W), float, normalized; height and width at least
                ``config.min_size``.

        Returns:
            One map (B, C_i, ceil(H / s), ceil(W / s)) per stage in ``out_indices``, where the
            stride s is 4, 8, 16 or 32.

        Raises:
            ValueError: Wrong number of dimensions or channels, or the image is too small.
        """
        self.check(pixels)
        maps = []
        for i, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            pixels = stage(pixels)
            if i in self.out_indices:
                maps.append(pixels)
        return maps

    def check(self, pixels: Tensor) -> None:
        """Raise ValueError if the model cannot process images of the shape of ``pixels``."""
        expected = self.config.in_channels
        if pixels.ndim != 4:
            raise ValueError(f"pixels must be (B, C, H, W), not {tuple(pixels.shape)}")
        if pixels.shape[1] != expected:
            raise ValueError(
                f"the model expects images with {expected} channels, but these have "
                f"{pixels.shape[1]}"
            )
        smallest, (height, width) = self.config.min_size, pixels.shape[2:]
        if min(height, width) < smallest:
            raise ValueError(
                f"an image of {height} x {width} pixels is too small for this model: both sides "
                f"must be at least {smallest}; enlarge or pad it"
            )


def _initialize(module: nn.Module) -> None:
    """Initialize the weights of a layer with the distributions of the original encoder."""
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return  # no values to set; trying would import the PyTorch compiler, which takes 1 s
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        fan_out = kernel * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
