"""Losses and gradients that are not finite or explode: when, and what is said about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lightning.fabric import Fabric
from torch import Tensor

from segformer.training.config import TrainConfig
from segformer.training.processes import Processes

EXPLODED = 1000.0
"""A loss of more than this many times the lowest, or of more than this if that is below 1, is not
going to recover."""

_SMALLEST_SCALE = 2.0**-20
"""Loss scale of float16 below which gradients that are still not finite have another cause."""

_NAMED = 8


def is_diverging(loss: float, lowest: float) -> bool:
    """Whether a loss is not finite or has exploded.

    Args:
        loss: Mean loss of a step.
        lowest: Lowest mean so far; infinite before the first.
    """
    return not math.isfinite(loss) or (math.isfinite(lowest) and loss > EXPLODED * max(lowest, 1.0))


def can_rescale(fabric: Fabric) -> bool:
    """Whether a smaller scale of the loss may make gradients finite: only in float16."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return scaler is not None and scaler.get_scale() >= _SMALLEST_SCALE


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values of some weights and statistics are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


def blamed_images(
    processes: Processes, names: Sequence[Sequence[Sequence[str]]], losses: Sequence[float]
) -> list[str]:
    """Names of the images of the batches whose loss is not finite, else of all of the step.

    Args:
        processes: All of them call this.
        names: Names of the images of each batch of the step, by process.
        losses: Losses of the batches of this process.
    """
    mine = [not math.isfinite(loss) for loss in losses]
    wrong = [
        [processes.any(processes.rank == rank and mine[i]) for i in range(len(batches))]
        for rank, batches in enumerate(names)
    ]
    every = not any(map(any, wrong))
    return [
        name
        for batches, flags in zip(names, wrong, strict=True)
        for batch, flag in zip(batches, flags, strict=True)
        if flag or every
        for name in batch
    ]


def advice(config: TrainConfig, names: Sequence[str]) -> str:
    """What to change, and which images to look at."""
    changes = "a smaller --lr, more --warmup-steps"
    if not config.max_grad_norm:
        changes += ", --max-grad-norm 1"
    if config.precision == "float16":
        changes += ", --precision bfloat16 or float32"
    shown = ", ".join(names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    where = f"images of this batch: {shown}{more}" if names else "data"
    return f"use {changes}, or look for wrong values in the {where}"
