"""Matrix products and chunks: how the layers' arithmetic is laid onto a machine.

Nothing here changes what is computed, only by which kernel and in pieces of which size.

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
"""Of a temporary that is only passed through: it stays in the cache, and its memory is used again.

Smaller ones cost more in calls than they save in traffic (``benchmarks/forward.py``).
"""

_LARGEST_KEPT = (32 << 20) - 8192
"""Bytes of the largest block, its header included, that glibc learns from."""

_MIN_ROWS = 8
"""Of a chunk, so that the rows which neighboring chunks both compute stay a small fraction."""


def is_traced() -> bool:
    """Whether a compiler or an exporter looks on: it takes the plain formulas, of any size."""
    return torch.compiler.is_compiling() or bool(
        torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast; it does nothing on devices that have none, such as "meta"."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def onednn(tensor: Tensor) -> bool:
    """Whether PyTorch hands convolutions of ``tensor`` to oneDNN."""
    return (
        _ONEDNN
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and not is_traced()
    )


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, of (B, h, w, C) tokens by the fastest kernel.

    On x86 PyTorch hands float32 products to MKL, which on processors that are not Intel's reaches
    less than half of what oneDNN reaches; convolutions and bfloat16 products go to oneDNN.
    """
    if tokens.ndim != 4 or not onednn(tokens) or tokens.dtype == torch.bfloat16:
        return F.linear(tokens, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        return F.linear(tokens, weight, bias)
    return F.conv2d(tokens.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Linear(nn.Linear):
    """`torch.nn.Linear` for (B, h, w, C) tokens, by the fastest kernel."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C_in) -> (B, h, w, C_out)."""
        return linear(tokens, self.weight, self.bias)


def passes_through(tensor: Tensor) -> bool:
    """Whether temporaries of ``tensor`` may be made chunk by chunk: inference on a CPU.

    Gradients need them whole, a GPU is best filled at once, and a compiler makes its own chunks.
    """
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and not is_traced()


def reuse_memory() -> None:
    """Have the C library keep memory that is freed, up to 64 MB, for the next temporary.

    By glibc's rules a block of 32 MB, taken and given back untouched, is what teaches it so for
    blocks up to that size; elsewhere nothing happens. Without it, temporaries of some MB go back
    to the system and are mapped, page by page, and cleared again, in every layer.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)


def chunks(shape: tuple[int, int, int], channels: int, like: Tensor) -> Iterator[tuple[int, int]]:
    """First and last row of chunks whose (B, rows, w, channels) fit the cache.

    Args:
        shape: B, h, w.
        channels: Of the widest temporary.
        like: Its type decides the bytes.

    Yields:
        ``top`` and ``bottom``, from 0 to h; one chunk of all rows where that fits.
    """
    batch, height, width = shape
    rows = max(_MIN_ROWS, _CHUNK_BYTES // (batch * width * channels * like.element_size()))
    # As many chunks as it takes, of equal height: no last one of a row or two
    count = -(-height // rows)
    edges = [round(i * height / count) for i in range(count + 1)]
    yield from pairwise(edges)
