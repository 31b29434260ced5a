"""The Mix Transformer: blocks in stages, four stages, four maps.

Legend: B batch, H W pixels, h w tokens, C channels.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from segformer.model.config import PATCH_KERNELS, PATCH_STRIDES, SegFormerConfig
from segformer.model.layers import (
    DropPath,
    EfficientSelfAttention,
    MixFFN,
    OverlapPatchMerging,
    to_maps,
)


class EncoderBlock(nn.Module):
    """Attention and Mix-FFN, each behind a LayerNorm and inside a residual."""

    def __init__(self, config: SegFormerConfig, stage: int, drop_path: float):
        super().__init__()
        channels, eps = config.channels[stage], config.eps
        self.attention_norm = nn.LayerNorm(channels, eps=eps.block)
        self.attention = EfficientSelfAttention(
            channels, config.heads[stage], config.reductions[stage], eps.reduction
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
        channels = config.channels[stage]
        self.merging = OverlapPatchMerging(
            config.channels[stage - 1] if stage else config.in_channels,
            channels,
            PATCH_KERNELS[stage],
            PATCH_STRIDES[stage],
            config.eps.merging,
        )
        self.blocks = nn.ModuleList(EncoderBlock(config, stage, p) for p in drop_paths)
        self.norm = nn.LayerNorm(channels, eps=config.eps.block)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, h, w), in channels_last memory."""
        tokens = self.merging(maps)
        for block in self.blocks:
            tokens = block(tokens)
        return to_maps(self.norm(tokens))


class MixTransformer(nn.Module):
    """The hierarchical encoder MiT (paper, section 3.1).

    Args:
        config: Its encoder fields are used.

    Attributes:
        stages: Four stages, at 1/4, 1/8, 1/16 and 1/32 of the picture.
    """

    def __init__(self, config: SegFormerConfig):
        super().__init__()
        self.config = config
        blocks = sum(config.depths)
        drop_paths = [config.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            self.stages.append(EncoderStage(config, stage, drop_paths[:depth]))
            drop_paths = drop_paths[depth:]
        self.apply(_initialise)

    @classmethod
    def from_variant(cls, variant: str, **overrides: object) -> MixTransformer:
        """Fresh weights for "b0".."b5"; ``overrides`` are fields of `SegFormerConfig`."""
        return cls(SegFormerConfig.from_variant(variant, **overrides))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Four feature maps of a batch of pictures.

        Args:
            pixels: (B, in_channels, H, W), normalised, any height and width of at least
                ``config.min_size``.

        Returns:
            Maps (B, C_i, ceil(H / s), ceil(W / s)) for the strides s = 4, 8, 16, 32.

        Raises:
            ValueError: Another number of dimensions or bands, or too small a picture.
        """
        self.check(pixels)
        maps = []
        for stage in self.stages:
            pixels = stage(pixels)
            maps.append(pixels)
        return maps

    def check(self, pixels: Tensor) -> None:
        """Raise a ValueError that says what is wrong with ``pixels``, if anything is."""
        expected = self.config.in_channels
        if pixels.ndim != 4:
            raise ValueError(f"pixels must be (B, C, H, W), not {tuple(pixels.shape)}")
        if pixels.shape[1] != expected:
            raise ValueError(
                f"the model takes pictures of {expected} bands, these have {pixels.shape[1]}"
            )
        smallest, (height, width) = self.config.min_size, pixels.shape[2:]
        if min(height, width) < smallest:
            raise ValueError(
                f"a picture of {height} x {width} pixels is too small for this model: both sides "
                f"must be at least {smallest}; enlarge or pad it"
            )


def _initialise(module: nn.Module) -> None:
    """Initial weights as the original encoder draws them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        fan_out = kernel * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
