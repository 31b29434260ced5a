"""Logits from pixels: what runs the model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from segformer.model.segformer import SegFormer, SegFormerClassifier


def best_device() -> torch.device:
    """The first accelerator that is there, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


class TorchRuntime:
    """Runs a model with PyTorch.

    Args:
        model: Put on the device; the constants of a decoder are folded.
        device: Where; left out, the best there is.
        precision: "float32", or "bfloat16", for which a rounded copy of the model is made.
        compile: Have PyTorch compile the model.
    """

    def __init__(
        self,
        model: SegFormer | SegFormerClassifier,
        device: str | torch.device | None = None,
        precision: str = "float32",
        *,
        compile: bool = False,
    ):
        try:
            self.device = torch.device(device) if device is not None else best_device()
        except RuntimeError as error:
            raise ValueError(f"no device {device!r}: {error}") from None
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device!r}: PyTorch finds no CUDA GPU here")
        try:
            model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # as PyTorch says "not built for that"
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {device!r} cannot be used: {reason}") from None
        self.model = model.fold() if isinstance(model, SegFormer) else model
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        if self.dtype == torch.bfloat16:
            self.model = copy.deepcopy(self.model).to(self.dtype)
        self.run: Callable[[Tensor], Tensor] = self.model
        self.compile = compile
        if compile:
            # CUDA graphs, which this mode records, leave no gaps between a small model's kernels
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self.run = torch.compile(self.model, mode=mode)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> logits (B, K, ceil(H / 4), ceil(W / 4)) or (B, K), float32."""
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()  # so that the copy need not wait for the kernels before
        pixels = pixels.to(self.device, non_blocking=True)
        pixels = pixels.to(self.dtype, memory_format=torch.channels_last)
        # A copy, where the next run of a CUDA graph would write over the result of this one
        return self.run(pixels).to(torch.float32, copy=self.compile)
