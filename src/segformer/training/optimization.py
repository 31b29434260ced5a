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
    layer_lr_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, as in the paper.

    The original training code gives ``weight_decay=0`` to the norms of the encoder and ten times
    the learning rate to the head, whose norm and biases decay.

    Args:
        model: With an ``encoder``; everything else is the head. Frozen parameters are omitted.
        lr: Learning rate of the encoder.
        weight_decay: Of all but the norms of the encoder.
        head_lr_factor: Learning rate of the head, relative to ``lr``.
        decay_norm_and_bias: If false, no parameter of one dimension decays: norms and biases of
            the whole model.
        layer_lr_decay: Layer-wise decay of the learning rate, as in the fine-tuning of BEiT (Bao
            et al. 2022): encoder layer l of n (`encoder_layer`) has ``lr`` times
            ``layer_lr_decay ** (n + 1 - l)``. 1 gives all layers the same rate.

    Returns:
        Groups for an optimizer: those of the encoder first, its last layer before the others.
    """
    encoder = model.get_submodule("encoder")
    norms = {
        id(parameter)
        for module in encoder.modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    depths = [
        len(list(stage.get_submodule("blocks").children()))
        for stage in encoder.get_submodule("stages").children()
    ]
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = id(parameter) in norms or (not decay_norm_and_bias and parameter.ndim == 1)
            head, _, inner = name.partition(".")
            above = 0  # layers of the encoder from this one to the head
            if head == "encoder" and layer_lr_decay != 1:
                above = sum(depths) + 1 - encoder_layer(inner, depths)
            groups.setdefault((head != "encoder", above, exempt), []).append(parameter)
    return [
        {
            "name": _group_name(in_head, sum(depths) + 1 - above if above else None, exempt),
            "lr": lr * (head_lr_factor if in_head else layer_lr_decay**above),
            "weight_decay": 0.0 if exempt else weight_decay,
            "params": parameters,
        }
        for (in_head, above, exempt), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _group_name(in_head: bool, layer: int | None, exempt: bool) -> str:
    part = "head" if in_head else "encoder" if layer is None else f"encoder layer {layer}"
    return part + " without decay" * exempt


def encoder_layer(name: str, depths: Sequence[int]) -> int:
    """Number of the layer that a parameter of the encoder belongs to.

    The patch merging of the first stage is layer 0, and each block is a layer, numbered from 1
    through all stages. The patch merging of a later stage belongs to the first block of its stage,
    the norm at the end of a stage to its last block.

    Args:
        name: Name of the parameter in the encoder, such as "stages.1.blocks.0.ffn.expand.weight".
        depths: Number of blocks of each stage.
    """
    _, stage, part, *rest = name.split(".")
    before = sum(depths[: int(stage)])
    if part == "blocks":
        return before + int(rest[0]) + 1
    if part == "norm":
        return before + depths[int(stage)]
    assert part == "merging"
    return before + (int(stage) > 0)


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
