"""The processes of a training: one per device, kept in step by Lightning's Fabric.

Fabric starts them, unless torchrun or srun have. Process 0 alone prints, logs and writes files. The
processes agree on every decision that could separate them, such as stopping or failing, so that
none waits for another that has ended.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, distributed, nn

from segformer.prediction.runtimes.pytorch import best_device, fast_in_bfloat16
from segformer.progress import console
from segformer.training.batch_norm import synchronize_batch_norm
from segformer.training.config import TrainConfig
from segformer.training.launch import Launch, LaunchedEnvironment, find_launch, fit_launch
from segformer.training.sharding import shard

logger = logging.getLogger(__name__)

T = TypeVar("T")

PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}

TIMEOUT = timedelta(hours=12)
"""How long processes wait for each other. Process 0 checks the data set while the others wait."""

_FAILURE = "segformer/failure"

_PAUSE = 0.2
"""Seconds in which gloo's thread frees its last tensors, before its group is destroyed."""


class Processes:
    """The processes of a training, of which this is one.

    Args:
        config: Its device, devices, num_nodes, strategy and precision are used.
        resuming: The run has begun; see `segformer.training.launch.fit_launch`.

    Attributes:
        config: The configuration, with the devices and machines that a launcher decides.

    Raises:
        ValueError: The devices are not there.
    """

    def __init__(self, config: TrainConfig, *, resuming: bool = False):
        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._agreed = False
        launch = find_launch()
        self.config = fit_launch(config, launch, resuming=resuming)
        self.fabric = _fabric(self.config, launch)
        self.fabric.launch()
        self.rank, self.count = self.fabric.global_rank, self.fabric.world_size
        expected = self.config.devices * self.config.num_nodes
        if self.count != expected:
            raise ValueError(
                f"{self.count} processes were started for {expected} devices; "
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

    def collect(self, work: Callable[[], T]) -> list[T]:
        """Run a function in every process and give the results of all, by rank, to all.

        The function must not communicate with the other processes.

        Raises:
            Exception: In all processes alike, what the function raised in the first that failed.
        """
        outcome = _attempt(work)
        outcomes = [outcome]
        if self.count > 1:
            outcomes = [outcome] * self.count
            distributed.all_gather_object(outcomes, outcome)
        for _, error in outcomes:
            if error is not None:
                raise error
        return [result for result, _ in outcomes]  # type: ignore[misc]

    def share(self, model: nn.Module) -> None:
        """Move a model to the device, with the weights of process 0 and one BatchNorm for all."""
        model.to(self.device)
        if self.count == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.data, 0)
        synchronize_batch_norm(model, self.device)

    def shard(self, model: nn.Module) -> None:
        """Shard another copy of the model like the model itself, if that is sharded."""
        if isinstance(self.fabric.strategy, ModelParallelStrategy):
            shard(model, self.fabric.strategy.device_mesh["data_parallel"])

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
            time.sleep(_PAUSE)
            distributed.destroy_process_group()

    def _end_children(self) -> None:
        procs = getattr(self.fabric.strategy.launcher, "procs", [])
        children = list(procs)
        procs.clear()  # or Fabric's thread that watches them would kill this process too
        for child in children:
            child.kill()


def end_program(code: object) -> NoReturn:
    """End a program with a process group at once, without the destructors of PyTorch.

    That of a process group holds Python's lock and may wait forever for a thread that needs it.

    Args:
        code: That of a `SystemExit`.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


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


def _fabric(config: TrainConfig, launch: Launch | None) -> Fabric:
    kind, _, index = config.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(
            f"device must be auto, cpu, cuda, cuda:0, ... or mps, not {config.device!r}"
        )
    if kind == "auto":
        kind = best_device().type
        if config.devices * config.num_nodes > 1 and kind != "cuda":
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
    # Without this Fabric would look for SLURM itself, and take a batch script for a job step
    plugins: list[Any] = [LaunchedEnvironment(launch) if launch else LightningEnvironment()]
    if precision == "float16":  # Fabric's own "16-mixed" computes in bfloat16 on the CPU
        plugins.append(MixedPrecision("16-mixed", kind))
    return Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=config.num_nodes,
        strategy=_strategy(config, precision),
        precision=None if precision == "float16" else PRECISIONS[precision],
        plugins=plugins,
    )


def _strategy(config: TrainConfig, precision: str) -> Any:
    count = config.devices * config.num_nodes
    if count == 1:
        return "auto"
    if config.strategy == "ddp":
        return DDPStrategy(timeout=TIMEOUT)
    if precision == "float16":
        raise ValueError("strategy fsdp does not work with precision float16; use bfloat16")
    return ModelParallelStrategy(
        lambda model, mesh: shard(model, mesh["data_parallel"]),
        data_parallel_size=count,
        tensor_parallel_size=1,
        timeout=TIMEOUT,
    )
