"""The processes of a training: one per device, launched and kept in step by Lightning's Fabric.

Process 0 alone prints, logs and writes files. The processes agree on every decision that could
separate them, such as stopping or failing, so that none waits for another that has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed

from segformer.prediction.runtimes.pytorch import best_device, fast_in_bfloat16
from segformer.progress import console
from segformer.training.config import TrainConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}

TIMEOUT = timedelta(hours=12)
"""How long processes wait for each other. Validation runs in process 0 while the others wait."""

_FAILURE = "segformer/failure"


class Processes:
    """The processes of a training, of which this is one.

    Args:
        config: Its device, devices and precision are used.

    Raises:
        ValueError: The devices are not there.
    """

    def __init__(self, config: TrainConfig):
        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._agreed = False
        self.fabric = _fabric(config)
        self.fabric.launch()
        self.rank, self.count = self.fabric.global_rank, self.fabric.world_size
        if self.count != config.devices:
            raise ValueError(
                f"{self.count} processes were started for devices: {config.devices}; "
                "the numbers must be equal"
            )
        if self.rank > 0:
            console.quiet = True
            logging.getLogger("segformer").setLevel(logging.ERROR)

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.fabric.device

    @property
    def first(self) -> bool:
        """Whether this is process 0, which alone prints and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.count == 1 else self.mean(float(flag)) > 0

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        if self.count == 1:
            return value
        total = self.fabric.all_reduce(
            torch.tensor(value, device=self.device, dtype=torch.float32), reduce_op="mean"
        )
        assert isinstance(total, Tensor)
        return total.item()

    def run_in_each(self, work: Callable[[], T]) -> T:
        """Run a function in every process; if it fails in one, all of them end.

        The function must not communicate with the other processes.

        Raises:
            ValueError: In process 0, with the message of the process that failed.
            SystemExit: In the other processes.
        """
        if self.count == 1:
            return work()
        result, error = _attempt(work)
        if not self.any(error is not None):
            assert error is None
            return result  # type: ignore[return-value]
        errors: list[Exception | None] = [None] * self.count
        distributed.all_gather_object(errors, error)
        self.end(next(e for e in errors if e is not None))

    def run_in_first(self, work: Callable[[], T]) -> T:
        """Run a function in process 0 and give its result to all; if it fails, all of them end.

        Raises:
            Exception: In process 0, what the function raised.
            SystemExit: In the other processes.
        """
        if self.count == 1:
            return work()
        result: T | None = None
        error: Exception | None = None
        if self.first:
            result, error = _attempt(work)
        outcome = [(result, error is not None)]
        distributed.broadcast_object_list(outcome, device=self.device)
        result, failed = outcome[0]
        if failed:
            self.end(error)
        return result  # type: ignore[return-value]

    def end(self, error: Exception | None) -> NoReturn:
        """End all processes, which must all call this; process 0 raises the error.

        Raises:
            Exception: In process 0, the error.
            SystemExit: In the other processes.
        """
        self._agreed = True
        if not self.first:
            raise SystemExit(0)
        assert error is not None
        raise error

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.fabric.barrier()

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """End all processes when one fails on its own, with the message of that one.

        The others may be waiting for it in a collective operation and cannot be asked.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1 or self._agreed:
                self._leave()
                raise
            store = distributed.distributed_c10d._get_default_store()
            known = _failure_in(store)  # then another process failed, and has printed its message
            if not known:
                store.set(_FAILURE, str(error))
            if self.first:
                self._end_children()
            elif not known:
                console.quiet = False
                logger.error("process %d: %s: %s", self.rank, type(error).__name__, error)
            if distributed.get_backend() == "gloo":  # others than gloo would wait for the rest
                self._leave()
            if self.first and not known:
                raise
            raise SystemExit(1) from None
        except SystemExit:
            self._leave()
            raise
        self._leave()
        if not self.first:
            raise SystemExit(0)  # process 0 reports

    def _leave(self) -> None:
        """Leave the group, so that the next training in this program can form its own."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def _end_children(self) -> None:
        procs = getattr(self.fabric.strategy.launcher, "procs", [])
        children = list(procs)
        procs.clear()  # or Fabric's thread that watches them would kill this process too
        for child in children:
            child.kill()


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _failure_in(store: Any) -> bool:
    try:
        return bool(store.check([_FAILURE]))
    except Exception:  # the store ends with process 0
        return True


def _fabric(config: TrainConfig) -> Fabric:
    kind, _, index = config.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(
            f"device must be auto, cpu, cuda, cuda:0, ... or mps, not {config.device!r}"
        )
    if kind == "auto":
        kind = best_device().type
        if config.devices > 1 and kind != "cuda":
            raise ValueError(
                f"devices is {config.devices}, but there is no CUDA GPU; set devices to 1, or use "
                f"device cpu to train with {config.devices} processes on the CPU"
            )
    found = torch.cuda.device_count() if kind == "cuda" else 1
    if kind == "cuda" and found == 0:
        raise ValueError(f"device {config.device}: PyTorch finds no CUDA GPU")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: PyTorch finds no Apple GPU")
    devices: int | list[int] = config.devices
    if index:
        if kind != "cuda" or not index.isdecimal() or int(index) >= found or config.devices != 1:
            raise ValueError(
                f"device {config.device} cannot be used with devices {config.devices}; "
                f"there are {found} {kind} devices"
            )
        devices = [int(index)]
    elif kind != "cpu" and config.devices > found:
        raise ValueError(f"devices is {config.devices}, but there are {found} {kind} devices")
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if fast_in_bfloat16(torch.device(kind)) else "float32"
    # Fabric's own "16-mixed" computes in bfloat16 on the CPU
    numbers: dict[str, Any] = (
        {"plugins": MixedPrecision("16-mixed", kind)}
        if precision == "float16"
        else {"precision": PRECISIONS[precision]}
    )
    strategy: Any = DDPStrategy(timeout=TIMEOUT) if config.devices > 1 else "auto"
    return Fabric(accelerator=kind, devices=devices, strategy=strategy, **numbers)
