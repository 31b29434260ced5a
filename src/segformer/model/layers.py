"""The three layers of the paper's section 3.1: patch merging, attention, Mix-FFN.

Tokens stay channels-last, (B, h, w, C), from the first convolution to the last norm: linears
and LayerNorms act on the last axis, and a convolution takes the same memory, permuted, as its
``channels_last`` format. No transpose is ever copied.

Legend: B batch, h w tokens, C channels, r spatial reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C); a view where the memory is channels_last."""
    return maps.permute(0, 2, 3, 1)


def to_maps(tokens: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w), a view in channels_last memory."""
    return tokens.permute(0, 3, 1, 2)


class OverlapPatchMerging(nn.Module):
    """A strided convolution whose patches overlap, then a LayerNorm.

    Args:
        in_channels: Channels of the maps that come in.
        channels: Channels C of the tokens that go out.
        kernel: Side of a patch; padding is half of it.
        stride: Step between patches.
        eps: Of the LayerNorm.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, eps: float):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        return self.norm(to_tokens(self.projection(maps)))


_EXPLICIT_SCORES = 1 << 24
"""Attention scores, of all pictures and heads, up to which a CPU is better off keeping them."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, tokens, channels) each.

    PyTorch's fused kernel never stores the scores, which is what counts on a GPU and for large
    pictures. The few keys that the reduction leaves make small score matrices, though, and on a
    CPU, in bfloat16 and with its backward pass, it then takes three to six times as long as two
    products and a softmax (``benchmarks/attention.py``).
    """
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad
    if not slow or scores > _EXPLICIT_SCORES:
        return F.scaled_dot_product_attention(query, key, value)
    scale = query.shape[-1] ** -0.5
    return ((query * scale) @ key.transpose(-1, -2)).softmax(-1) @ value


class EfficientSelfAttention(nn.Module):
    """Attention of all tokens to a map of keys and values that is r times smaller each way.

    The reduction is a convolution with kernel = stride = r; rows and columns that do not fill
    a patch are left out, as the convolution's arithmetic has it.

    Args:
        channels: C.
        heads: Attention heads; divides C.
        reduction: r; 1 keeps every token.
        eps: Of the LayerNorm after the reduction.
    """

    def __init__(self, channels: int, heads: int, reduction: int, eps: float):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)  # keys first: one product for both
        self.output = nn.Linear(channels, channels)
        self.reduction = (
            nn.Conv2d(channels, channels, reduction, reduction) if reduction > 1 else None
        )
        self.reduction_norm = nn.LayerNorm(channels, eps=eps) if reduction > 1 else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        batch, h, w, channels = tokens.shape
        reduced = tokens
        if self.reduction is not None and self.reduction_norm is not None:
            reduced = self.reduction_norm(to_tokens(self.reduction(to_maps(tokens))))
        head_shape = (batch, -1, self.heads, channels // self.heads)
        query = self.query(tokens).reshape(head_shape).transpose(1, 2)  # (B, heads, h*w, C/heads)
        key, value = (
            part.reshape(head_shape).transpose(1, 2)
            for part in self.key_value(reduced).chunk(2, dim=-1)
        )
        attended = attend(query, key, value)
        return self.output(attended.transpose(1, 2).reshape(batch, h, w, channels))


class MixFFN(nn.Module):
    """Feed-forward with a 3x3 depth-wise convolution, which stands in for positional encoding.

    Paper, equation 3: linear, depth-wise convolution, GELU, linear. The zero padding of the
    convolution is what tells a token where it is.

    Args:
        channels: C.
        ratio: Widening of the hidden tokens.
    """

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        hidden = channels * ratio
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        hidden = to_tokens(self.depthwise(to_maps(self.expand(tokens))))
        return self.contract(F.gelu(hidden))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a whole residual branch for some of the pictures.

    Args:
        probability: Of dropping; survivors are scaled by 1 / (1 - probability).
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        if not self.training or self.probability == 0:
            return branch
        keep = 1 - self.probability
        mask = torch.empty(branch.shape[0], 1, 1, 1, device=branch.device, dtype=branch.dtype)
        return branch * mask.bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """The probability, for printing a model."""
        return f"{self.probability:.3f}"
