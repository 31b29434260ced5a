"""BatchNorm whose statistics are those of all processes, on any device.

`torch.nn.SyncBatchNorm` works on GPUs only.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _AllReduce(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        total = upstream[0].clone()
        distributed.all_reduce(total)
        return total


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes, for CPUs.

    The processes may have different numbers of pixels. In evaluation it is a plain BatchNorm.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SynchronizedBatchNorm:
        """A layer that uses the parameters and statistics of another, without a copy."""
        layer = cls(norm.num_features, norm.eps, norm.momentum)
        layer.weight, layer.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            layer.register_buffer(name, buffer)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, normalized."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        own = values.new_tensor([values.numel() / self.num_features])
        sums = _AllReduce.apply(torch.cat([values.sum((0, 2, 3)), own]))  # type: ignore[no-untyped-call]
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean[:, None, None]
        squares = _AllReduce.apply(centered.square().sum((0, 2, 3)))  # type: ignore[no-untyped-call]
        variance = squares / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None and self.num_batches_tracked is not None
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalized = centered * scale[:, None, None] + self.bias[:, None, None]
        return normalized.to(input.dtype)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Replace each BatchNorm of a model, in place, by one over all processes."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                if device.type == "cuda":
                    convert = nn.SyncBatchNorm.convert_sync_batchnorm
                    layer: nn.Module = convert(child)  # type: ignore[no-untyped-call]
                else:
                    layer = SynchronizedBatchNorm.of(child)
                setattr(parent, name, layer)
