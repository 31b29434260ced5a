"""What is written during a training, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from segformer.options import depends
from segformer.training.options.checked import NOT_NEGATIVE, POSITIVE, Options

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""Where the numbers of a run can be written."""


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """What is measured and written during the training.

    Attributes:
        val_every: Epochs between validations.
        val_every_steps: Optimizer steps between validations; overrides val_every.
        patience: Stop after this many validations without a better score; 0 never stops.
        checkpoint_every: Optimizer steps between resume checkpoints.
        keep_last: Also keep the models of this many last validations, in checkpoints/.
        keep_best: Also keep the models of this many best validations, in checkpoints/.
        log_every: Optimizer steps between rows of metrics.csv; the loss is their mean.
        loggers: Where the numbers go: csv, tensorboard, wandb, mlflow. metrics.csv is always
            written.
    """

    val_every: Annotated[int, POSITIVE] = 1
    val_every_steps: Annotated[int | None, POSITIVE, depends("INT", "from val_every")] = None
    patience: Annotated[int, NOT_NEGATIVE] = 0
    checkpoint_every: Annotated[int, POSITIVE] = 500
    keep_last: Annotated[int, NOT_NEGATIVE] = 0
    keep_best: Annotated[int, NOT_NEGATIVE] = 0
    log_every: Annotated[int, POSITIVE] = 20
    loggers: Annotated[
        tuple[str, ...] | None,
        depends("[NAME [NAME ...]]", "csv, and tensorboard where it is installed"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.loggers or () if name not in LOGGERS]
        if unknown:
            raise ValueError(f"loggers: there is no {unknown[0]!r}; there are {', '.join(LOGGERS)}")


@dataclass(frozen=True)
class HardwareOptions(Options):
    """What the training runs on.

    Attributes:
        device: cpu, cuda, cuda:1, mps, ...
        devices: Number of GPUs on each machine, or of processes with device cpu. torchrun and srun
            decide it if they start the training.
        num_nodes: Number of machines. More than one need torchrun or srun, which decide it.
        strategy: What several processes do with the weights: each has a copy (ddp), or they are
            divided among them with their gradients and optimizer states (fsdp), which takes less
            memory and more communication.
        precision: Number format of most of the arithmetic.
        num_workers: Processes per device that load images; 0 loads them in the training process.
    """

    device: Annotated[str, depends("DEVICE", "the GPUs if there are any, else the CPU")] = "auto"
    devices: Annotated[int, POSITIVE] = 1
    num_nodes: Annotated[int, POSITIVE] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        arg(
            help_behavior_hint=(
                "(default: auto, bfloat16 where the device computes fast in it, else float32)"
            )
        ),
    ] = "auto"
    num_workers: Annotated[
        int | None, depends("INT", "one per CPU that the process may use, at most 8")
    ] = None


@dataclass(frozen=True)
class SegmentationHardwareOptions(HardwareOptions):
    """What the training runs on.

    Attributes:
        cache: Keep decoded images in memory, once for all workers of a device. auto: if all fit
            into half of the available memory; true: as many as fit; false: none.
    """

    cache: Literal["auto", "true", "false"] = "auto"
