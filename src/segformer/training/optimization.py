"""Parameter groups, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    head_lr_factor: float,
    *,
    decay_norm_and_bias: bool = True,
) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, as in the paper.

    The original training code gives ``weight_decay=0`` to the norms of the encoder and ten times
    the learning rate to the head, whose norm and biases decay.

    Args:
        model: With an ``encoder``; everything else is the head. Frozen parameters are omitted.
        lr: Learning rate of the encoder.
        weight_decay: Of all but the norms of the encoder.
        head_lr_factor: Learning rate of the head, relative to the encoder's.
        decay_norm_and_bias: If false, no parameter of one dimension decays: norms and biases of
            the whole model.
    """
    norms = {
        id(parameter)
        for module in model.get_submodule("encoder").modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    groups: dict[str, dict[str, Any]] = {
        "encoder": {"lr": lr, "weight_decay": weight_decay},
        "encoder without decay": {"lr": lr, "weight_decay": 0.0},
        "head": {"lr": lr * head_lr_factor, "weight_decay": weight_decay},
        "head without decay": {"lr": lr * head_lr_factor, "weight_decay": 0.0},
    }
    for group in groups.values():
        group["params"] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = id(parameter) in norms or (not decay_norm_and_bias and parameter.ndim == 1)
            part = "encoder" if name.startswith("encoder.") else "head"
            groups[part + " without decay" * exempt]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def lr_factor(
    step: float,
    total: int,
    warmup: int,
    schedule: str,
    power: float = 1.0,
    min_factor: float = 0.0,
) -> float:
    """Fraction of the peak learning rate at a step.

    Linear warm-up from 1e-6, then down to ``min_factor`` at ``total``: "poly" as
    ``(1 - progress) ** power``, "cosine" as half a cosine. As in the original training code both
    are measured from step 0, so the warm-up multiplies the decay.

    Args:
        step: Number of optimizer steps done, 0 before the first.
        total: Number of steps of the whole training.
        warmup: Number of steps of the warm-up.
        schedule: "poly", "cosine" or "constant".
        power: Exponent of "poly".
        min_factor: Fraction at the end of the schedule.
    """
    progress = min(step / total, 1.0)
    match schedule:
        case "poly":
            factor = (1 - progress) ** power
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        case "constant":
            factor = 1.0
        case _:
            raise ValueError(f"no schedule {schedule!r}; there are poly, cosine and constant")
    factor = min_factor + (1 - min_factor) * factor
    if step < warmup:
        factor *= 1e-6 + (1 - 1e-6) * step / warmup
    return factor


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a model's weights, with BatchNorm statistics copied.

    The decay rises from 0.1 to ``decay`` over the first steps, ``(1 + n) / (10 + n)``, so that
    the average forgets the initial weights.
    """
    return AveragedModel(model, multi_avg_fn=_ema_update(decay))


def _ema_update(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(list(averages), list(values), weight)

    return update
