"""What a training will be: its model, data and schedule, and its time and memory as measured."""

from __future__ import annotations

import logging
import time
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from segformer.training.config import TrainConfig
from segformer.training.folder import RunFolder
from segformer.training.loop import TrainingLoop
from segformer.training.memory import GIB, free_bytes, peak_bytes
from segformer.training.processes import Processes
from segformer.training.task import Model, Task

logger = logging.getLogger(__name__)

MEASURED = 10
"""Optimizer steps that are measured."""

_WARM_UP = 2
"""Steps before them, which are slower."""

_VALIDATED = 4
"""Validation images that are measured."""


@dataclass(frozen=True)
class Measured:
    """Time and memory of a training, from its first steps.

    Attributes:
        step_seconds: Mean duration of an optimizer step, loading included.
        validation_seconds: Duration of a validation, from a few of its images.
        memory: Bytes that the steps took at their peak, on the device.
        free: Bytes that were free before, or None where it is not known.
    """

    step_seconds: float
    validation_seconds: float
    memory: int
    free: int | None


def measure(processes: Processes, task: Task, model: Model) -> Measured:
    """Do the first steps of a training with a copy of the model. All processes call this.

    Args:
        processes: The processes of the training.
        task: Images and configuration; the number of steps need not be known.
        model: The model, which is not changed.
    """
    count = _WARM_UP + MEASURED
    config = task.config
    if config.max_steps is None or config.max_steps < count:
        config = replace(config, max_steps=count)
    config = replace(config, warmup_steps=config.warmup_steps or 0)
    free = free_bytes(processes.device)
    seconds: list[float] = []
    loops: list[TrainingLoop] = []

    def work() -> None:
        # A step writes nothing, so the folder is not used
        loops.append(
            TrainingLoop(processes, RunFolder("."), task.with_config(config), deepcopy(model))
        )
        seconds.extend(loops[0].timed_steps(count))

    taken = peak_bytes(processes.device, work)
    validation = processes.mean(_validation_seconds(task, loops[0].plain_model(), processes))
    step = processes.mean(sum(seconds[_WARM_UP:]) / MEASURED)
    return Measured(step, validation, taken, free)


def _validation_seconds(task: Task, model: Model, processes: Processes) -> float:
    if not task.validates:
        return 0.0
    whole: Any = task
    few: Any = copy(task)
    samples = whole.validation.samples
    for count in (1, _VALIDATED):  # the first warms up
        few.validation = replace(whole.validation, samples=samples[:count])
        began = time.perf_counter()
        try:
            few.validate(model, processes)
        except (ValueError, OSError) as error:
            logger.warning("the time of a validation is not known: %s", error)
            return 0.0
    elapsed = time.perf_counter() - began
    return elapsed * len(samples) / min(_VALIDATED, len(samples))


@dataclass(frozen=True)
class Plan:
    """A training before it begins.

    Attributes:
        config: The configuration, with all defaults filled in.
        measured: Time and memory of its first steps.
        parameters: Parameters of the model.
        classes: Names of the classes.
        training_images: Number of training images.
        validation_images: Number of validation images.
        device: Where it runs.
    """

    config: TrainConfig
    measured: Measured
    parameters: int
    classes: tuple[str, ...]
    training_images: int
    validation_images: int
    device: str

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        assert self.config.max_steps is not None
        return self.config.max_steps

    @property
    def images_per_step(self) -> int:
        """Images of an optimizer step, in all processes."""
        return self.config.images_per_step

    @property
    def validations(self) -> int:
        """Number of validations."""
        every = self.config.steps_per_validation(self.training_images)
        return max(1, round(self.steps / every)) if self.validation_images else 0

    @property
    def minutes(self) -> float:
        """Estimated duration from the first step to the last validation."""
        measured = self.measured
        return (
            self.steps * measured.step_seconds + self.validations * measured.validation_seconds
        ) / 60

    @property
    def table(self) -> Table:
        """For a terminal."""
        config, measured = self.config, self.measured
        classes = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
        free = "" if measured.free is None else f" of {measured.free / GIB:.1f} free"
        processes = config.devices * config.num_nodes
        batch = f"{config.batch_size} x {config.accumulate_grad_batches} x {processes}"
        rows = {
            "model": f"{config.variant or 'as given'}, {self.parameters / 1e6:.2f} M parameters, "
            + (f"from {config.pretrained}" if config.pretrained else "not from a recorded model"),
            "classes": f"{len(self.classes)}: {classes}",
            "images": f"{self.training_images} for training, {self.validation_images} for "
            f"validation, crops of {config.crop_size}",
            "schedule": f"{self.steps} steps "
            f"({self.steps * self.images_per_step / self.training_images:.1f} epochs), batches of "
            f"{self.images_per_step} ({batch}), {self.validations} validations",
            "learning rate": f"{config.lr:g}, head x {config.head_lr_factor:g}, {config.schedule} "
            f"after {config.warmup_steps} steps of warm-up",
            "device": f"{self.device}, precision {config.precision}",
            "memory": f"{measured.memory / GIB:.2f} GiB{free}",
            "time": f"{_duration(self.minutes)} ({measured.step_seconds:.3f} s per step, "
            f"{measured.validation_seconds:.1f} s per validation, from {MEASURED} steps)",
        }
        table = Table(title="plan", title_justify="left", title_style="bold", show_header=False)
        for name, text in rows.items():
            table.add_row(name, text)
        return table


def make_plan(processes: Processes, task: Task, model: Model, measured: Measured) -> Plan:
    """The plan of a task whose configuration is complete."""
    validation: Any = getattr(task, "validation", None)
    return Plan(
        task.config,
        measured,
        sum(parameter.numel() for parameter in model.parameters()),
        task.classes,
        task.images,
        0 if validation is None else len(validation),
        str(processes.device),
    )


def _duration(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
