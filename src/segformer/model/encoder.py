"""The Mix Transformer: blocks in stages, four stages, four maps.

Legend: B batch, H W pixels, h w tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segformer.config import PATCH_KERNELS, PATCH_STRIDES, STRIDES, SegFormerConfig
from segformer.model.layers import (
    DropPath,
    EfficientSelfAttention,
    MixFFN,
    OverlapPatchMerging,
    to_maps,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segformer.checkpoints.hub import HubOptions


class EncoderBlock(nn.Module):
    """Attention and Mix-FFN, each behind a LayerNorm and inside a residual."""

    def __init__(self, config: SegFormerConfig, stage: int, drop_path: float):
        super().__init__()
        channels, eps = config.hidden_sizes[stage], config.eps
        self.attention_norm = nn.LayerNorm(channels, eps=eps.block)
        self.attention = EfficientSelfAttention(
            channels, config.num_attention_heads[stage], config.sr_ratios[stage], eps.reduction
        )
        self.ffn_norm = nn.LayerNorm(channels, eps=eps.block)
        self.ffn = MixFFN(channels, config.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        tokens = tokens + self.drop_path(self.attention(self.attention_norm(tokens)))
        return tokens + self.drop_path(self.ffn(self.ffn_norm(tokens)))


class EncoderStage(nn.Module):
    """Patch merging, blocks, LayerNorm: in this order, as the released models have it."""

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
        self.norm = nn.LayerNorm(channels, eps=config.eps.block)
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
    """The hierarchical encoder MiT (paper, section 3.1), alone a backbone for any head.

    Args:
        config: Its encoder fields are used.
        out_indices: Which stages' maps to return, in order; stages behind the last do not run.

    Attributes:
        stages: Four stages, at 1/4, 1/8, 1/16 and 1/32 of the image.
        out_channels: Of each map that is returned: for B0 32, 64, 160, 256, for B1 to B5 64, 128,
            320, 512.
        strides: Pixels per cell of each map that is returned: 4, 8, 16, 32.

    Raises:
        ValueError: ``out_indices`` are not rising numbers from 0 to 3.

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
            raise ValueError(f"out_indices must be rising numbers from 0 to 3, not {out_indices}")
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
        """Fresh weights for "b0".."b5"; ``overrides`` are fields of `SegFormerConfig`."""
        return cls(SegFormerConfig.from_variant(variant, **overrides), out_indices)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        in_channels: int | None = None,
        **hub: Unpack[HubOptions],
    ) -> MixTransformer:
        """Load the encoder of a segmentation model, a classification model, or an encoder's file.

        Args:
            source: As for `SegFormer.from_pretrained`.
            out_indices: Which stages' maps to return.
            in_channels: Another number of channels than the model's own. The first convolution is
                then adapted (`segformer.model.pretrained.adapt_in_channels`).
            **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns:
            The encoder in float32, in evaluation mode.

        Raises:
            CheckpointError: There is no such model, or a tensor is missing, damaged, or of another
                shape than the model's.
        """
        from segformer.model import pretrained

        return pretrained.load_encoder(
            source, out_indices=out_indices, in_channels=in_channels, **hub
        )

    def freeze(self, stages: int = 4) -> MixTransformer:
        """Keep the first stages as they are in training: no gradients, no stochastic depth.

        Args:
            stages: How many; 0 lets all learn again.
        """
        if not 0 <= stages <= len(self.stages):
            raise ValueError(f"there are {len(self.stages)} stages to freeze, not {stages}")
        self.frozen_stages = stages
        for i, stage in enumerate(self.stages):
            stage.requires_grad_(i >= stages)
        return self.train(self.training)

    def train(self, mode: bool = True) -> MixTransformer:
        """Training mode for the stages that are not frozen."""
        super().train(mode)
        for stage in self.stages[: self.frozen_stages]:
            stage.eval()
        return self

    def set_gradient_checkpointing(self, enabled: bool = True) -> MixTransformer:
        """Gradient checkpointing: keep no activations inside blocks, make them again backwards.

        Training then takes about a third longer and far less memory; gradients are the same.
        """
        for stage in self.stages:
            assert isinstance(stage, EncoderStage)
            stage.set_gradient_checkpointing(enabled)
        return self

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of a batch of images, those of ``out_indices``.

        Args:
            pixels: (B, in_channels, H, W), normalized, any height and width of at least
                ``config.min_size``.

        Returns:
            Maps (B, C_i, ceil(H / s), ceil(W / s)) for the strides s = 4, 8, 16, 32.

        Raises:
            ValueError: Another number of dimensions or channels, or too small an image.
        """
        self.check(pixels)
        maps = []
        for i, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            pixels = stage(pixels)
            if i in self.out_indices:
                maps.append(pixels)
        return maps

    def check(self, pixels: Tensor) -> None:
        """Raise a ValueError that says what is wrong with ``pixels``, if anything is."""
        expected = self.config.in_channels
        if pixels.ndim != 4:
            raise ValueError(f"pixels must be (B, C, H, W), not {tuple(pixels.shape)}")
        if pixels.shape[1] != expected:
            raise ValueError(
                f"the model takes images of {expected} channels, these have {pixels.shape[1]}"
            )
        smallest, (height, width) = self.config.min_size, pixels.shape[2:]
        if min(height, width) < smallest:
            raise ValueError(
                f"an image of {height} x {width} pixels is too small for this model: both sides "
                f"must be at least {smallest}; enlarge or pad it"
            )


def _initialize(module: nn.Module) -> None:
    """Initial weights as the original encoder draws them."""
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return  # shapes alone; drawing those would import PyTorch's compiler, which takes a second
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        fan_out = kernel * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
