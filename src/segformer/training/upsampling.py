"""Upsampling of logits to the pixels of a mask in chunks, and its backward pass.

The gradient with respect to low-resolution logits is the adjoint of the upsampling applied to the
gradient at the pixels. So a loss can process an image in chunks that fit in the cache: compute the
logits of the pixels, compute loss and gradient, add the gradient to the low-resolution gradient.
Tensors of K x H x W values are never stored.

Legend: K classes, h w logits, H W mask, n pixels of a chunk, r ratio.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from segformer.model.interpolation import blend_rows, source_positions, source_rows
from segformer.model.layers import to_maps, to_tokens

_CHUNK_VALUES = {"cpu": 1 << 19, "other": 1 << 26}
"""Number of logits in a chunk: they fit in the cache of a CPU, or are enough to use a GPU fully."""


def upsampling(tokens: Tensor, size: tuple[int, int]) -> Upsampling:
    """Return the fastest implementation for the ratio of the sizes.

    Args:
        tokens: (h, w, K) logits, float32 or float64.
        size: (H, W) of the mask.
    """
    height, width, _ = tokens.shape
    ratio = size[0] // height
    if (height * ratio, width * ratio) == size and ratio > 1:
        return _ByPhase(tokens, ratio)
    return _ByRow(tokens, size)


class Upsampling(ABC):
    """Chunks of the pixels of an image; each subclass has its own order of pixels.

    Attributes:
        chunks: Number of chunks.
    """

    chunks: int

    @abstractmethod
    def arrange(self, values: Tensor, outside: int) -> list[Tensor]:
        """Split pixel values (H, W) into chunks (n,); ``outside`` fills places without a pixel."""

    @abstractmethod
    def logits(self, chunk: int) -> Tensor:
        """Return the (n, K) logits of the pixels of a chunk; the caller may overwrite them."""

    @abstractmethod
    def add(self, chunk: int, gradient: Tensor) -> None:
        """Add the gradient at the pixels of a chunk, (n, K); 0 at places without a pixel."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """Return the gradient with respect to the logits, (h, w, K), of all added chunks."""


class _ByPhase(Upsampling):
    """For H = r h and W = r w: each cell between four tokens has the same r x r pixel positions.

    The logits of the pixels are an (r r, 4) matrix times the four corners, and the backward pass
    uses its transpose. There are cells around the image too; only some of their pixels exist.
    """

    def __init__(self, tokens: Tensor, ratio: int):
        self.height, self.width, self.classes = tokens.shape
        self.ratio = ratio
        self.offset = (ratio + 1) // 2  # pixel rows of the first cells outside the image
        weight = source_positions(1, ratio, ratio // 2, ratio // 2 + ratio).to(tokens)
        sides = torch.stack([1 - weight, weight], 1)  # (r, 2)
        self.matrix = torch.einsum("yi,xj->yxij", sides, sides).reshape(ratio**2, 4)
        padded = F.pad(to_maps(tokens[None]), (1, 1, 1, 1), mode="replicate")
        self.tokens = to_tokens(padded)[0].contiguous()
        self.total = torch.zeros_like(self.tokens)
        per_row = ratio**2 * (self.width + 1) * self.classes
        self.rows = max(1, _chunk_values(tokens) // per_row)
        self.chunks = -(-(self.height + 1) // self.rows)

    def _part(self, chunk: int) -> slice:
        return slice(chunk * self.rows, min((chunk + 1) * self.rows, self.height + 1))

    def arrange(self, values: Tensor, outside: int) -> list[Tensor]:
        before, after = self.offset, self.ratio - self.offset
        values = F.pad(values, (before, after, before, after), value=outside)
        cells = values.view(self.height + 1, self.ratio, self.width + 1, self.ratio)
        cells = cells.permute(1, 3, 0, 2)  # (r, r, h + 1, w + 1)
        return [cells[:, :, self._part(i)].reshape(-1) for i in range(self.chunks)]

    def _corners(self, tokens: Tensor, chunk: int) -> tuple[Tensor, ...]:
        part = self._part(chunk)
        above, below = tokens[part], tokens[part.start + 1 : part.stop + 1]
        return above[:, :-1], above[:, 1:], below[:, :-1], below[:, 1:]

    def logits(self, chunk: int) -> Tensor:
        corners = torch.stack(self._corners(self.tokens, chunk))
        return (self.matrix @ corners.view(4, -1)).view(-1, self.classes)

    def add(self, chunk: int, gradient: Tensor) -> None:
        corners = self.matrix.T @ gradient.view(self.ratio**2, -1)
        for place, weight in zip(self._corners(self.total, chunk), corners, strict=True):
            place.add_(weight.view(place.shape))

    def gradient(self) -> Tensor:
        total = self.total.clone()  # add the gradient of the padding to the border
        for side in (total, total.transpose(0, 1)):
            side[1] += side[0]
            side[-2] += side[-1]
        return total[1:-1, 1:-1]


class _ByRow(Upsampling):
    """For any ratio: chunks are rows of pixels, and PyTorch computes the backward pass."""

    def __init__(self, tokens: Tensor, size: tuple[int, int]):
        self.tokens, self.size = tokens, size
        self.total = torch.zeros_like(tokens)
        self.rows = max(1, _chunk_values(tokens) // (size[1] * tokens.shape[2]))
        self.chunks = -(-size[0] // self.rows)

    def arrange(self, values: Tensor, outside: int) -> list[Tensor]:
        return [part.reshape(-1) for part in torch.split(values, self.rows)]

    def logits(self, chunk: int) -> Tensor:
        above, below, weight = self._source(chunk)
        pixels = blend_rows(
            self.tokens[None, above], self.tokens[None, below], weight, self.size[1]
        )
        return pixels.contiguous().view(-1, self.tokens.shape[2])

    def add(self, chunk: int, gradient: Tensor) -> None:
        above, below, weight = self._source(chunk)
        first, second = (
            self.tokens[None, rows].detach().requires_grad_() for rows in (above, below)
        )
        with torch.enable_grad():
            pixels = blend_rows(first, second, weight, self.size[1])
            back = torch.autograd.grad(pixels, (first, second), gradient.view(pixels.shape))
        self.total.index_add_(0, above, back[0][0])
        self.total.index_add_(0, below, back[1][0])

    def gradient(self) -> Tensor:
        return self.total

    def _source(self, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        top, bottom = chunk * self.rows, min((chunk + 1) * self.rows, self.size[0])
        return source_rows(len(self.tokens), self.size[0], top, bottom, self.tokens)


def _chunk_values(like: Tensor) -> int:
    return _CHUNK_VALUES["cpu" if like.device.type == "cpu" else "other"]
