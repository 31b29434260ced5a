"""Matrix products and chunk sizes that suit the processor.

This module selects kernels and chunk sizes; it does not change what is computed.

Legend: B batch, h w tokens, C channels, M keys.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ONEDNN = torch.backends.mkldnn.is_available() and (  # type: ignore[no-untyped-call]
    platform.machine().lower() in ("x86_64", "amd64")
)

_CHUNK_BYTES = 8 << 20
"""Size of the temporary tensor of a chunk. It fits in the cache, and its memory is reused.

With smaller chunks, the cost of more calls exceeds the saved memory traffic
(``benchmarks/forward.py``).
"""

_LARGEST_KEPT = (32 << 20) - 8192
"""Bytes of the largest block that raises the mmap threshold of glibc, with room for its header."""

_MIN_ROWS = 8
"""Minimum rows of a chunk, so that rows computed by two neighboring chunks are a small fraction."""


def is_traced() -> bool:
    """Whether a compiler or exporter traces the model; it needs plain formulas for any size."""
    return torch.compiler.is_compiling() or bool(
        torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that disables autocast; no effect on devices without it, such as "meta"."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def onednn(tensor: Tensor) -> bool:
    """Whether PyTorch uses oneDNN for convolutions of ``tensor``."""
    return (
        _ONEDNN
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and not is_traced()
    )


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` for (B, h, w, C) tokens, with the fastest kernel.

    On x86 PyTorch computes float32 products with MKL. On processors from other vendors than
    Intel, MKL reaches less than half the speed of oneDNN, which PyTorch uses for convolutions and
    for bfloat16 products. So float32 products are computed as 1x1 convolutions.
    """
    if tokens.ndim != 4 or not onednn(tokens) or tokens.dtype == torch.bfloat16:
        return F.linear(tokens, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        return F.linear(tokens, weight, bias)
    return F.conv2d(tokens.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Linear(nn.Linear):
    """`torch.nn.Linear` for (B, h, w, C) tokens, with the fastest kernel."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C_in) -> (B, h, w, C_out)."""
        return linear(tokens, self.weight, self.bias)


def passes_through(tensor: Tensor) -> bool:
    """Whether to process ``tensor`` in chunks: only for inference on a CPU.

    Gradients need the complete temporaries, a GPU is faster without chunks, and a compiler
    chooses its own chunks.
    """
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and not is_traced()


def reuse_memory() -> None:
    """Make glibc keep up to 64 MB of freed memory for the next temporary tensors.

    Allocating and freeing one block of 32 MB raises the dynamic thresholds of glibc, so that
    blocks up to that size are reused. With other C libraries this has no effect. Otherwise,
    temporaries of some MB would return to the system, and the system would map and clear their
    pages again in every layer.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)


def chunks(shape: tuple[int, int, int], channels: int, like: Tensor) -> Iterator[tuple[int, int]]:
    """Split the rows of a tensor into chunks, so that temporaries fit in the cache.

    Args:
        shape: (B, h, w).
        channels: Number of channels of the largest temporary.
        like: Tensor with the dtype of the temporary.

    Yields:
        First row and one after the last row of each chunk; a single chunk if all rows fit.
    """
    batch, height, width = shape
    rows = max(_MIN_ROWS, _CHUNK_BYTES // (batch * width * channels * like.element_size()))
    # Chunks of equal height: no small chunk remains at the end
    count = -(-height // rows)
    edges = [round(i * height / count) for i in range(count + 1)]
    yield from pairwise(edges)
