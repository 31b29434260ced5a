"""Parameter groups, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, head_lr_factor: float
) -> list[dict[str, Any]]:
    """The paper's groups: no decay on the encoder's norms, a larger rate for the head.

    The released recipes give ``weight_decay=0`` to parameters of the encoder's norms and ten
    times the rate to the head, whose decay stays.
    """
    norms = {
        id(parameter)
        for module in model.get_submodule("encoder").modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    groups: dict[str, dict[str, Any]] = {
        "encoder": {"lr": lr, "weight_decay": weight_decay},
        "encoder norms": {"lr": lr, "weight_decay": 0.0},
        "head": {"lr": lr * head_lr_factor, "weight_decay": weight_decay},
    }
    for group in groups.values():
        group["params"] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inside = "encoder norms" if id(parameter) in norms else "encoder"
            groups[inside if name.startswith("encoder.") else "head"]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def lr_factor(step: int, total: int, warmup: int, schedule: str, power: float = 1.0) -> float:
    """Fraction of the full learning rate at a step.

    Linear warm-up from 1e-6, then down to 0 at ``total``: "poly" as ``(1 - progress) ** power``,
    "cosine" as half a cosine. As in the released recipes both are measured from step 0, so the
    warm-up multiplies the decay.

    Args:
        step: Optimizer steps done, 0 before the first.
        total: Steps of the whole training.
        warmup: Steps of the warm-up.
        schedule: "poly", "cosine" or "constant".
        power: Of "poly".
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
    if step < warmup:
        factor *= 1e-6 + (1 - 1e-6) * step / warmup
    return factor


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a model's weights, BatchNorm statistics copied.

    The decay rises from 0.1 to ``decay`` over the first steps, ``(1 + n) / (10 + n)``, so that
    the average forgets the random start.
    """
    return AveragedModel(model, multi_avg_fn=_ema_update(decay))


def _ema_update(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(list(averages), list(values), weight)

    return update
