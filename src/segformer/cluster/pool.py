"""Units of work over a pool of Ray actors, some of which may die.

Ray Data is not used: its unit of recovery is a block, its results are a data set, and its driver
keeps metadata of each block. Here the driver knows ranges of a list of images, or blocks of a
scene, and a unit that is lost with its worker is given to another one.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from segformer.cluster.storage import Unreachable
from segformer.prediction.writing import CannotContinue

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
"""Times that a unit may be lost before it is divided; one that cannot be is then given up."""

_POLL_S = 0.5

_END = object()


@dataclass
class PoolReport:
    """What happened to the workers.

    Attributes:
        lost_workers: Number of workers that died.
        repeated_units: Number of units that were given out again.
    """

    lost_workers: int = 0
    repeated_units: int = 0


class PoolUnit(Protocol):
    """Work that a worker is given at once. It is hashable."""

    @property
    def stem(self) -> str:
        """Its name in messages."""

    def __len__(self) -> int:
        """Number of its parts, each of which could be a unit."""

    def halves(self: U) -> tuple[U, U]:
        """Two units with the same parts."""


U = TypeVar("U", bound=PoolUnit)
R = TypeVar("R")


@dataclass
class Pool(Generic[U, R]):
    """A number of workers that take units as they become free. They end with the context.

    Attributes:
        start: Starts a worker, an actor with the methods ``ready`` and ``run``.
        workers: How many are kept running, as far as the cluster has room for them.
        report: What happened to the workers.
    """

    start: Callable[[], Any]
    workers: int
    report: PoolReport = field(default_factory=PoolReport)

    def __post_init__(self) -> None:
        self._starting: dict[Any, Any] = {}  # reference -> worker
        self._busy: dict[Any, tuple[Any, U]] = {}
        self._idle: deque[Any] = deque()
        self._again: deque[U] = deque()
        self._lost: Counter[U] = Counter()
        self._on_lost: Callable[[U, str], None]
        self._failed_starts = self._unreachable = 0

    def __enter__(self) -> Pool[U, R]:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._all_workers():
            ray.kill(worker)

    def results(
        self, units: Iterator[U | None], on_lost: Callable[[U, str], None]
    ) -> Generator[R, None, None]:
        """Work until there are no more units; they are taken when a worker is free.

        Args:
            units: The work; None means that the next unit is not known yet.
            on_lost: Called with a unit of one part whose workers died or failed, and the reason.

        Yields:
            The result of each unit that is done.

        Raises:
            CannotContinue: A worker met an error that all would meet.
            Unreachable: The list or the summaries can be read or written by no worker.
            ValueError: No worker can be started.
        """
        self._on_lost = on_lost
        exhausted = False
        try:
            while not exhausted or self._again or self._busy:
                self._keep_running()
                while self._idle:
                    unit: Any = self._again.popleft() if self._again else next(units, _END)
                    if unit is _END:
                        exhausted = True
                    if unit is _END or unit is None:
                        break
                    worker = self._idle.popleft()
                    self._busy[worker.run.remote(unit)] = (worker, unit)
                yield from self._wait()
        finally:
            for worker, _ in self._busy.values():
                ray.kill(worker)
            self._busy.clear()
            self._again.clear()
            self._lost.clear()

    def _all_workers(self) -> list[Any]:
        busy = [worker for worker, _ in self._busy.values()]
        return [*self._starting.values(), *self._idle, *busy]

    def _keep_running(self) -> None:
        for _ in range(self.workers - len(self._all_workers())):
            worker = self.start()
            self._starting[worker.ready.remote()] = worker

    def _wait(self) -> list[R]:
        """Results that are there, after some time at most."""
        references = [*self._starting, *self._busy]
        if not references:  # all workers wait for the list
            return []
        ready, _ = ray.wait(references, num_returns=1, timeout=_POLL_S)
        results: list[R] = []
        for reference in ready:
            if reference in self._starting:
                self._started(reference)
            else:
                results += self._finished(reference)
        return results

    def _started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts > 2 * self.workers + 2:
                raise ValueError(f"workers cannot be started: {_reason(error)}") from None
            logger.warning(f"a worker could not be started: {_reason(error)}")
            return
        self._failed_starts = 0
        self._idle.append(worker)

    def _finished(self, reference: Any) -> list[R]:
        """The result of a unit, if it has one."""
        worker, unit = self._busy.pop(reference)
        try:
            result: R = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, CannotContinue):
                self._idle.append(worker)
                raise type(error.cause)(str(error.cause)) from None
            if isinstance(error.cause, Unreachable):
                self._idle.append(worker)
                self._repeat_unreachable(unit, error.cause)
                return []
            ray.kill(worker)  # its GPU may be in a state in which nothing works
            self._give_again(unit, _reason(error))
        except RayError as error:
            ray.kill(worker)  # it may only be out of reach
            self._give_again(unit, _reason(error))
        else:
            self._unreachable = 0
            self._idle.append(worker)
            return [result]
        return []

    def _repeat_unreachable(self, unit: U, error: Unreachable) -> None:
        self._unreachable += 1
        if self._unreachable > 2 * self.workers + 2:
            raise Unreachable(f"{error}; run the same command again to do what is missing")
        logger.warning(f"{error}; the unit is given out again")
        self.report.repeated_units += 1
        self._again.append(unit)

    def _give_again(self, unit: U, reason: str) -> None:
        self.report.lost_workers += 1
        self._lost[unit] += 1
        logger.warning(f"a worker was lost ({reason}); its unit {unit.stem} is given out again")
        if self._lost[unit] < _ATTEMPTS:
            self._again.append(unit)
        elif len(unit) > 1:  # one of its parts may be the reason
            self._again.extend(unit.halves())
        else:
            self._on_lost(unit, reason)
            return
        self.report.repeated_units += 1


def _reason(error: BaseException) -> str:
    """A short reason; Ray's messages have many lines."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    if "error raised in its creation task" in lines[0]:
        return lines[-1]  # of the traceback
    return f"{type(cause).__name__}: {lines[0]}"
