"""What the runtimes have in common. Nothing here imports torch.

Legend: B batch, H W pixels, h w logits, C channels, K classes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Logits: TypeAlias = "Tensor | NDArray[np.float32]"
"""Tensors of PyTorch, on the device of the model; NumPy arrays of the other runtimes."""

_MOST_READERS = 8

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator:",  # PyTorch on a CPU
    "MPS backend out of memory",
    "std::bad_alloc",  # OpenVINO
    "Failed to allocate memory",  # ONNX Runtime
)
"""Parts of messages of the errors that runtimes raise when they cannot allocate memory."""


class RuntimeUnavailable(ValueError):
    """A runtime that cannot be used here, or not with these options; the message says why."""


class Runtime(Protocol):
    """Runs one model."""

    @property
    def device(self) -> torch.device | str:
        """Where the model runs, such as "cpu"."""

    @overload
    def __call__(self, pixels: Tensor) -> Tensor: ...
    @overload
    def __call__(self, pixels: NDArray[np.float32]) -> Logits: ...
    def __call__(self, pixels: Any) -> Any:
        """(B, C, H, W) float32 -> logits (B, K, ceil(H / 4), ceil(W / 4)) or (B, K), float32.

        A tensor gives a tensor. An array gives an array, or with PyTorch a tensor.
        """


def default_readers(device: torch.device | str) -> int:
    """Number of threads that read images: few beside a model that runs on the CPU itself."""
    if str(device) == "cpu":
        return 2
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(_MOST_READERS, max(2, cores))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or of a runtime means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def stack(logits: list[Any]) -> Any:
    """Join logits (K, h, w) of several images to (B, K, h, w)."""
    if len(logits) == 1:
        return logits[0][None]
    if isinstance(logits[0], np.ndarray):
        return np.stack(logits)
    import torch

    return torch.stack(logits)


def mirrored(logits: Any) -> Any:
    """Logits (..., w) from right to left."""
    return logits[..., ::-1] if isinstance(logits, np.ndarray) else logits.flip(-1)


def classes_last(logits: Any) -> Any:
    """(K, h, w) -> (h, w, K), a view."""
    if isinstance(logits, np.ndarray):
        return logits.transpose(1, 2, 0)
    return logits.permute(1, 2, 0)


def zeros(like: Any, *shape: int) -> Any:
    """Zeros of the kind, dtype and device of ``like``."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    return like.new_zeros(shape)


def as_kind(array: NDArray[np.float32], like: Any) -> Any:
    """An array as what ``like`` is: an array, or a tensor on its device."""
    if isinstance(like, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array).to(like)


def as_tensors(logits: list[Any]) -> list[Any]:
    """Arrays as tensors; tensors are returned as they are. This needs PyTorch."""
    import torch

    return [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in logits]
