"""How long an evaluation takes, and how much memory it needs."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Speed:
    """Time and memory from the creation of this object to the last image.

    Attributes:
        device: Where the model runs, such as "cpu" or "cuda:0".
        images: Number of images.
        seconds: Time until the last image was scored, with reading and scoring.
        peak_memory: Largest memory of the process since it was started, in bytes; None where the
            system does not tell.
        peak_device_memory: Largest memory of PyTorch's tensors on a CUDA device, in bytes.
    """

    device: str
    images: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None
    peak_device_memory: int | None = None
    _began: float = field(default_factory=time.perf_counter, repr=False)

    def __post_init__(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)

    def image_done(self) -> None:
        """Count an image."""
        self.images += 1
        self.seconds = time.perf_counter() - self._began
        self.peak_memory = _peak_memory()
        if self.device.startswith("cuda"):
            self.peak_device_memory = torch.cuda.max_memory_allocated(self.device)

    def merge(self, other: Speed) -> None:
        """Add an evaluation that ran at the same time in another process."""
        self.images += other.images
        self.seconds = max(self.seconds, other.seconds)
        self.peak_memory = _larger(self.peak_memory, other.peak_memory)
        self.peak_device_memory = _larger(self.peak_device_memory, other.peak_device_memory)

    @property
    def images_per_second(self) -> float:
        """Images per second, with reading and scoring; 0 before the first image."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def device_name(self) -> str:
        """The device, with the name of a GPU."""
        if self.device.startswith("cuda"):
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        return self.device

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "device": self.device_name,
            "images_per_s": round(self.images_per_second, 3),
            "seconds": round(self.seconds, 3),
            "peak_memory": self.peak_memory,
            "peak_device_memory": self.peak_device_memory,
        }


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _peak_memory() -> int | None:
    """Largest memory of this process so far, in bytes."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, else KiB
