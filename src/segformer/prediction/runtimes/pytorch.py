"""Logits from pixels with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segformer.model.segformer import SegFormer, SegFormerClassifier, inference_copy


def best_device() -> torch.device:
    """The first accelerator that is available, else the CPU."""
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
    """Runs a model with PyTorch, as the model is at each call.

    The model itself is not changed: not its mode, its device or its dtype. If it is in float32 on
    the device, its own parameters are used. Otherwise, and for ``compile``, there is a converted
    copy, with a decoder that is folded once. It is updated at the first call after parameters or
    buffers have changed, which PyTorch counts; changes through ``tensor.data`` are not counted,
    so the copy does not see them.

    Args:
        model: Segmentation model or classifier.
        device: Where to run. Default: the best there is.
        precision: "float32" or "bfloat16".
        compile: Compile the model with PyTorch.

    Raises:
        ValueError: The device is not available.
    """

    def __init__(
        self,
        model: SegFormer | SegFormerClassifier,
        device: str | torch.device | None = None,
        precision: str = "float32",
        *,
        compile: bool = False,
    ):
        self.model = model
        self.device = _available(best_device() if device is None else device)
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.compile = compile
        self._source: list[Tensor] = []
        self._versions: list[tuple[int, int]] | None = None
        self._inference: nn.Module
        self._run: Callable[[Tensor], Tensor]
        self._converted = False
        self._update()

    def __call__(self, pixels: Tensor | NDArray[np.float32]) -> Tensor:
        """(B, C, H, W) float32 -> logits (B, K, ceil(H / 4), ceil(W / 4)) or (B, K), float32."""
        self._update()
        if isinstance(pixels, np.ndarray):
            pixels = torch.from_numpy(pixels)
        with torch.inference_mode():
            if self.device.type == "cuda":
                pixels = pixels.pin_memory()  # the copy need not wait for the kernels before it
            pixels = pixels.to(self.device, non_blocking=True)
            pixels = pixels.to(self.dtype, memory_format=torch.channels_last)
            # With CUDA graphs the next run overwrites the result of this one, so it is copied
            return self._run(pixels).to(torch.float32, copy=self.compile)

    @torch.no_grad()
    def _update(self) -> None:
        """Follow the model: its modules and, where they are copied, its tensors."""
        source = list(model_tensors(self.model))
        convert = self.compile or not all(map(self._is_usable, source))
        same = same_tensors(source, self._source)
        versions = tensor_versions(source) if convert else None
        if same and convert == self._converted:
            if not convert or (versions is not None and versions == self._versions):
                return
            fresh = self._prepare()
            for old, new in zip(model_tensors(self._inference), model_tensors(fresh), strict=True):
                old.copy_(new)  # in place: a compiled model and CUDA graphs hold the addresses
        else:
            self._build(convert)
        self._source, self._versions, self._converted = source, versions, convert

    def _is_usable(self, tensor: Tensor) -> bool:
        return tensor.device == self.device and (
            not tensor.is_floating_point() or tensor.dtype == self.dtype
        )

    def _prepare(self) -> nn.Module:
        """The model for inference, still on its own device, with a folded decoder."""
        inference = inference_copy(self.model)  # fold() uses modules of the model it folds
        return inference.fold() if isinstance(inference, SegFormer) else inference

    def _build(self, convert: bool) -> None:
        if not convert:
            self._inference = self._run = inference_copy(self.model)
            return
        self._inference = self._prepare()
        copies: dict[Tensor, Tensor] = {}  # a tensor that two modules use is copied once
        for module in self._inference.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    copies.setdefault(parameter, nn.Parameter(self._convert(parameter), False))
                    module._parameters[name] = copies[parameter]  # type: ignore[assignment]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(buffer, self._convert(buffer))
        self._run = self._inference
        if self.compile:
            # CUDA graphs, which this mode records, leave no gaps between a small model's kernels
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._run = torch.compile(self._inference, mode=mode)

    def _convert(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(self.device, dtype, copy=True)


def _available(device: str | torch.device) -> torch.device:
    """The device, with its index, as tensors on it have it.

    Raises:
        ValueError: There is no such device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"no device {device!r}: {error}") from None
    except TypeError:
        raise ValueError(f"no device {device!r}: name one, such as cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: PyTorch finds no CUDA GPU here")
    try:
        return torch.empty(1, device=found).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None


def model_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a model."""
    yield from model.parameters()
    yield from model.buffers()


def same_tensors(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether two lists hold the same tensors, whatever their values."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def tensor_versions(tensors: list[Tensor]) -> list[tuple[int, int]] | None:
    """What changes with the values of tensors; None where PyTorch does not count changes."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return [(tensor._version, tensor.data_ptr()) for tensor in tensors]
