"""Memory of an optimizer step: measured, and what follows from it for the batch size.

The memory of a step is a fixed part (weights, gradients, two moments of AdamW, the moving average)
and a part per image (activations). Both are measured by real steps on real batches.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from segformer.machine import available_memory
from segformer.prediction.runtimes.base import is_out_of_memory
from segformer.training.batches import next_batch, open_batches
from segformer.training.finetuning import choose_trained
from segformer.training.task import Model, Task

logger = logging.getLogger(__name__)

GIB = 1 << 30

MARGIN = 0.9
"""Fraction of the free memory that a batch size chosen here may take."""


@dataclass(frozen=True)
class StepMemory:
    """Memory of an optimizer step.

    Attributes:
        fixed: Bytes for weights, gradients and the state of the optimizer.
        per_image: Bytes for each image of a batch.
    """

    fixed: float
    per_image: float

    def of(self, batch_size: int) -> float:
        """Bytes for a batch."""
        return self.fixed + self.per_image * batch_size


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; oneDNN only says that it "could not create a primitive"."""
    return is_out_of_memory(error) or str(error).startswith("could not create a ")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device, or None where it cannot be known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return available_memory() if device.type == "cpu" else None


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """Bytes by which memory in use rises, at its peak, while a function runs.

    On a GPU this is what PyTorch takes, on the CPU the resident memory of the process, or 0 where
    the system does not tell.
    """
    _return_freed_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _return_freed_memory(device: torch.device) -> None:
    """Give freed memory back, which PyTorch and glibc keep for the next allocation."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """Bytes of a line of Linux's status of this process."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def measure_step(fabric: Fabric, task: Task, model: Model, batch_size: int) -> int:
    """Bytes that an optimizer step of a batch takes at its peak, weights and average included.

    Two steps are done on a copy of the model, with training images.

    Raises:
        RuntimeError: It does not fit.
    """
    config = replace(task.config, batch_size=batch_size, accumulate_grad_batches=1)
    loader = task.with_config(config).loader(model, 0, 1, 0, 0, 1)
    with open_batches(loader) as batches:
        batch = next_batch(batches)
    copy = deepcopy(model)
    choose_trained(copy, config)
    copy.encoder.set_gradient_checkpointing(config.gradient_checkpointing)
    copy.to(fabric.device).train()
    trained = [parameter for parameter in copy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-9)

    def two_steps() -> None:
        for _ in range(2):  # the second has the moments of the optimizer
            pixels, targets = task.prepare(*fabric.to_device(batch))
            with fabric.autocast():
                logits = copy(pixels)
            task.loss(logits, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    weights = sum(tensor.nbytes for tensor in copy.state_dict().values())
    with torch.random.fork_rng():
        return peak_bytes(fabric.device, two_steps) + weights * (2 if config.ema_decay else 1)


def _measured(fabric: Fabric, task: Task, model: Model, batch_size: int) -> int | None:
    """As `measure_step`, or None where it does not fit."""
    try:
        return measure_step(fabric, task, model, batch_size)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return None


def largest_batch_size(fabric: Fabric, task: Task, model: Model, processes: int) -> int:
    """The largest power of two whose optimizer step fits into the free memory, as measured.

    A size is tried if the two before it let expect that it fits; no more than the training images
    make one step.

    Args:
        fabric: Device and precision.
        task: Images and loss.
        model: The model, before it is moved to the device.
        processes: Number of processes of the training.

    Raises:
        ValueError: The free memory is not known.
        MemoryError: Not even one image fits.
    """
    free = free_bytes(fabric.device)
    if free is None:
        raise ValueError(
            f"batch_size auto: this system does not tell how much memory device "
            f"{fabric.device.type} has; give a number"
        )
    config = task.config
    limit = MARGIN * free / (processes if fabric.device.type == "cpu" else 1)
    most = task.images // (config.accumulate_grad_batches * processes)
    size, expected, measured = 1, 0.0, {0: 0.0}
    while size <= max(1, most) and expected <= limit:
        taken = _measured(fabric, task, model, size)
        if taken is None or taken > limit:
            break
        measured[size] = taken
        expected = taken + max(0.0, taken - measured[size // 2]) * (2 if size > 1 else 1)
        size *= 2
    chosen = max(measured)
    if chosen == 0:
        raise MemoryError(_nothing_fits(task, free))
    logger.info(
        f"batch size {chosen}: a step takes about {measured[chosen] / GIB:.2f} GiB, "
        f"{free / GIB:.2f} are free"
    )
    return chosen


@contextmanager
def explained(
    fabric: Fabric,
    task: Task,
    model: Model,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    step: int,
) -> Iterator[None]:
    """Replace PyTorch's message for too little memory in an optimizer step by what to change.

    Raises:
        MemoryError: There is too little memory.
    """
    try:
        yield
        return
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step
    optimizer.zero_grad(set_to_none=True)
    held = list(model.state_dict().values()) * (1 if average is None else 2)
    for moments in optimizer.state.values():
        held += [value for value in moments.values() if isinstance(value, Tensor)]
    hint = advice(fabric, task, model, sum(tensor.nbytes for tensor in held))
    raise MemoryError(f"out of memory at step {step}: {hint}")


def advice(fabric: Fabric, task: Task, model: Model, held: int) -> str:
    """What to change after a step did not fit, from the measured memory of smaller batches.

    Args:
        fabric: Device and precision.
        task: Images and loss.
        model: The model.
        held: Bytes that the training holds on the device: weights, average, optimizer.
    """
    config = task.config
    assert isinstance(config.batch_size, int)
    general = (
        "use a smaller --batch-size (with --accumulate-grad-batches to keep the effective batch), "
        "a smaller --crop-size, or --gradient-checkpointing"
    )
    _return_freed_memory(fabric.device)
    free = free_bytes(fabric.device)
    if free is None or config.devices * config.num_nodes > 1:  # other processes wait for this one
        return general
    free += held
    one, two = (_measured(fabric, task, model, size) for size in (1, 2))
    if one is None:
        return _nothing_fits(task, free)
    per_image = one / 2 if two is None else max(1, two - one)
    memory = StepMemory(max(0, one - per_image), per_image)
    fitting = [
        size
        for size in range(1, config.batch_size // 2 + 1)
        if config.batch_size % size == 0 and (size == 1 or memory.of(size) <= MARGIN * free)
    ]
    if not fitting:
        return _nothing_fits(task, free)
    accumulate = config.accumulate_grad_batches * config.batch_size // fitting[-1]
    return (
        f"batch {config.batch_size} at crop {config.crop_size} needs about "
        f"{memory.of(config.batch_size) / GIB:.2f} GiB, {free / GIB:.2f} are free: use "
        f"--batch-size {fitting[-1]} --accumulate-grad-batches {accumulate}"
    )


def _nothing_fits(task: Task, free: float) -> str:
    """What to say where one image is too much."""
    config = task.config
    smaller = max(32, 32 * math.floor(config.crop_size / math.sqrt(2) / 32))
    checkpointing = "" if config.gradient_checkpointing else " or --gradient-checkpointing"
    return (
        f"not even one image at crop {config.crop_size} fits, {free / GIB:.2f} GiB are free: use "
        f"--crop-size {smaller}{checkpointing}, or a smaller --variant"
    )
