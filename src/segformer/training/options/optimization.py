"""How the weights are updated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from segformer.options import depends
from segformer.training.options.checked import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_FRACTION,
    Options,
)
from segformer.training.options.duration import minutes_in


@dataclass(frozen=True)
class OptimizationOptions(Options):
    """How the weights are updated: AdamW, with a moving average of the weights.

    Attributes:
        epochs: Passes over the training images.
        max_steps: Number of optimizer steps; overrides epochs.
        max_time: Duration of the training, such as 30m or 1h30m; overrides epochs and max_steps.
            The number of steps is chosen from measured ones, and adapted when the speed changes.
        batch_size: Images per device in each forward pass; auto: the largest power of two whose
            step fits into memory, as measured.
        accumulate_grad_batches: Forward passes whose gradients make one optimizer step.
        lr: Peak learning rate of the encoder.
        head_lr_factor: Learning rate of the decoder or classifier, relative to the encoder's.
        layer_lr_decay: Factor on the learning rate from each encoder block to the one before it,
            as in BEiT: the last block has this times lr, the first layer the least. 1 gives all
            blocks the same rate.
        min_lr: Learning rate of the encoder at which the schedule ends.
        weight_decay: Weight decay; not applied to the norms of the encoder.
        warmup_steps: Steps of linear warm-up.
        schedule: Learning rate after the warm-up.
        power: Exponent of the poly schedule.
        max_grad_norm: Gradients are scaled down to this norm; 0 disables clipping.
        ema_decay: Decay of the moving average of the weights, which is what is validated and
            saved; 0 disables it.
        seed: Seed of weights, order of the images, augmentation and dropout.
    """

    epochs: Annotated[int, POSITIVE] = 50
    max_steps: Annotated[int | None, POSITIVE, depends("INT", "from epochs")] = None
    max_time: Annotated[
        str | None, arg(metavar="DURATION", help_behavior_hint="", aliases=("--time",))
    ] = None
    batch_size: Annotated[int | Literal["auto"], POSITIVE, arg(metavar="INT|auto")] = 8
    accumulate_grad_batches: Annotated[int, POSITIVE] = 1
    lr: Annotated[
        float | None,
        POSITIVE,
        depends("FLOAT", "6e-5 for a pretrained model without LoRA, else 6e-4"),
    ] = None
    head_lr_factor: Annotated[
        float | None, POSITIVE, depends("FLOAT", "10 for a pretrained model without LoRA, else 1")
    ] = None
    layer_lr_decay: Annotated[float, POSITIVE_FRACTION] = 1.0
    min_lr: Annotated[float, NOT_NEGATIVE] = 0.0
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    warmup_steps: Annotated[
        int | None, NOT_NEGATIVE, depends("INT", "1500, at most 1/20 of the steps")
    ] = None
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: Annotated[float, NOT_NEGATIVE] = 1.0
    max_grad_norm: Annotated[float, NOT_NEGATIVE] = 1.0
    ema_decay: Annotated[float, BELOW_ONE] = 0.999
    seed: Annotated[int, NOT_NEGATIVE] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_time is not None:
            minutes_in(self.max_time, "max_time")


@dataclass(frozen=True)
class ClassificationOptimizationOptions(OptimizationOptions):
    """How the weights are updated: AdamW, with a moving average of the weights.

    Attributes:
        weight_decay: Weight decay; see decay_norm_and_bias.
        decay_norm_and_bias: Apply the weight decay to the norms of the head and to all biases too.
            If false, no parameter of one dimension decays, as in DeiT's recipe.
    """

    decay_norm_and_bias: bool = True
