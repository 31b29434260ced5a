"""The layers of section 3.1 of the paper: patch merging, attention, Mix-FFN.

Tokens are channels-last, (B, h, w, C), in the whole encoder. Linear layers and LayerNorms act on
the last axis. Convolutions use a permuted view of the same memory, in ``channels_last`` format,
so no transposed copies are made.

Legend: B batch, h w tokens, C channels, r spatial reduction, M keys, d channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segformer.model.products import Linear, chunks, onednn, passes_through


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C); a view, contiguous if ``maps`` is channels_last."""
    return maps.permute(0, 2, 3, 1)


def to_maps(tokens: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w), a view in channels_last memory."""
    return tokens.permute(0, 3, 1, 2)


class OverlapPatchMerging(nn.Module):
    """A strided convolution with overlapping patches, then a LayerNorm.

    Args:
        in_channels: Channels of the input maps.
        channels: Channels C of the output tokens.
        kernel: Patch size in pixels of the input; the padding is ``kernel // 2``.
        stride: Distance between patches in pixels of the input.
        eps: Epsilon of the LayerNorm.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, eps: float):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        return self.norm(to_tokens(self.projection(maps)))


_EXPLICIT_SCORES = 1 << 24
"""Largest number of attention scores, over images and heads, that is stored on a CPU."""


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention: softmax(query key^T / sqrt(d)) value, for each head.

    The fused kernel of PyTorch does not store the scores, which makes it fast on a GPU. After the
    spatial reduction there are few keys, so the score matrices are small, and on a CPU two
    products and a softmax are faster: three to six times with gradients in bfloat16
    (``benchmarks/attention.py``), up to twice without gradients.

    Args:
        query: (B, h, w, C).
        key: (B, M, C).
        value: (B, M, C).
        heads: Number of heads, each of d = C / heads channels.

    Returns:
        (B, h, w, C).
    """
    if passes_through(query) and onednn(query):
        return _attend_by_convolutions(query, key, value, heads)
    batch, h, w, channels = query.shape
    query, key, value = (
        x.reshape(batch, -1, heads, channels // heads).transpose(1, 2) for x in (query, key, value)
    )  # (B, heads, h*w or M, d)
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad
    if not slow or scores > _EXPLICIT_SCORES:
        attended = F.scaled_dot_product_attention(query, key, value)
    else:
        scale = query.shape[-1] ** -0.5
        attended = ((query * scale) @ key.transpose(-1, -2)).softmax(-1) @ value
    return attended.transpose(1, 2).reshape(batch, h, w, channels)


def _attend_by_convolutions(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention as two grouped 1x1 convolutions per image, in chunks of rows.

    The keys are the filters of the first convolution, the values those of the second. Each head
    is a group of channels, so no transposed copies are made.
    """
    batch, h, w, channels = query.shape
    keys, d = key.shape[1], channels // heads
    attended = torch.empty_like(query)
    for i in range(batch):
        filters = (key[i] * d**-0.5).reshape(keys, heads, d).transpose(0, 1)
        score_filters = filters.reshape(heads * keys, d, 1, 1)
        value_filters = value[i].reshape(keys, heads, d).permute(1, 2, 0)
        value_filters = value_filters.reshape(channels, keys, 1, 1)
        for top, bottom in chunks((1, h, w), heads * keys, query):
            chunk = to_maps(query[i : i + 1, top:bottom])
            scores = to_tokens(F.conv2d(chunk, score_filters, groups=heads))
            weights = scores.view(*scores.shape[:3], heads, keys).softmax(-1).flatten(3)
            attended[i, top:bottom] = to_tokens(
                F.conv2d(to_maps(weights), value_filters, groups=heads)
            )[0]
    return attended


class EfficientSelfAttention(nn.Module):
    """Attention of all tokens to keys and values from a map reduced by r in height and width.

    The reduction is a convolution with kernel = stride = r, without padding. Rows and columns
    at the end that do not fill a patch are not used.

    Args:
        channels: C.
        heads: Number of attention heads; C must be divisible by it.
        reduction: Spatial reduction r; 1 means no reduction.
        eps: Epsilon of the LayerNorm after the reduction.
    """

    def __init__(self, channels: int, heads: int, reduction: int, eps: float):
        super().__init__()
        self.heads = heads
        self.query = Linear(channels, channels)
        self.key_value = Linear(channels, 2 * channels)  # keys first, then values
        self.output = Linear(channels, channels)
        self.reduction = (
            nn.Conv2d(channels, channels, reduction, reduction) if reduction > 1 else None
        )
        self.reduction_norm = nn.LayerNorm(channels, eps=eps) if reduction > 1 else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        reduced = tokens
        if self.reduction is not None and self.reduction_norm is not None:
            reduced = self.reduction_norm(to_tokens(self.reduction(to_maps(tokens))))
        key, value = self.key_value(reduced).flatten(1, 2).chunk(2, dim=-1)
        return self.output(attend(self.query(tokens), key, value, self.heads))


class MixFFN(nn.Module):
    """Feed-forward network with a 3x3 depth-wise convolution instead of positional encoding.

    Paper, equation 3: linear, depth-wise convolution, GELU, linear. The zero padding of the
    convolution provides the position information.

    Args:
        channels: C.
        ratio: Number of hidden channels divided by C.
        hidden_act: "gelu", or "gelu_pytorch_tanh" for its tanh approximation.
    """

    def __init__(self, channels: int, ratio: int, hidden_act: str = "gelu"):
        super().__init__()
        hidden = channels * ratio
        self.approximate = "tanh" if hidden_act == "gelu_pytorch_tanh" else "none"
        self.expand = Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        if not passes_through(tokens):
            return self._contracted(self._hidden(tokens))
        batch, h, w, _ = tokens.shape
        parts = list(chunks((batch, h, w), self.expand.out_features, tokens))
        if len(parts) == 1:
            return self._contracted(self._hidden(tokens))
        contracted = torch.empty_like(tokens)
        for top, bottom in parts:
            # The 3x3 convolution also needs the neighboring row on each side
            first, last = max(top - 1, 0), min(bottom + 1, h)
            hidden = self._hidden(tokens[:, first:last])[:, top - first : bottom - first]
            contracted[:, top:bottom] = self._contracted(hidden)
        return contracted

    def _contracted(self, hidden: Tensor) -> Tensor:
        return self.contract(F.gelu(hidden, approximate=self.approximate))

    def _hidden(self, tokens: Tensor) -> Tensor:
        return to_tokens(self.depthwise(to_maps(self.expand(tokens))))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the residual branch for random images of the batch.

    Args:
        probability: Probability of dropping; kept branches are scaled by 1 / (1 - probability).
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
        """Return the probability, shown when a model is printed."""
        return f"{self.probability:.3f}"
