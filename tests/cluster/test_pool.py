"""Which worker gets which unit, and what happens when workers die. Ray itself is not started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("ray", reason="ray is not installed")

from ray.exceptions import ActorDiedError, RayTaskError

from segformer.cluster import pool
from segformer.cluster.manifest import Unit
from segformer.cluster.pool import Pool
from segformer.cluster.storage import StorageRefused, Unreachable
from segformer.cluster.work import UnitResult

UNITS = [Unit(0, 40, start, start + 8) for start in range(0, 40, 8)]


class FakeWorker:
    """An actor whose calls are done when they are asked for."""

    def __init__(self, work: Callable[[Unit], None], start: Callable[[], None]) -> None:
        self.killed = False
        self.run = SimpleNamespace(remote=lambda unit: (self, work, unit))
        self.ready = SimpleNamespace(remote=lambda: (self, lambda _: start(), None))


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: Any) -> Any:
        worker, work, unit = reference
        if worker.killed:
            raise ActorDiedError
        try:
            work(unit)
        except ActorDiedError:
            raise
        except Exception as error:
            raise RayTaskError("run", str(error), error) from None
        return None if unit is None else UnitResult(unit, done=len(unit))

    def kill(worker: FakeWorker) -> None:
        worker.killed = True

    def wait(references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    monkeypatch.setattr(pool, "ray", SimpleNamespace(get=get, kill=kill, wait=wait))


class Run:
    """A pool, and what it reports."""

    def __init__(
        self, work: Callable[[Unit], None], start: Callable[[], None] = lambda: None
    ) -> None:
        self.done: list[Unit] = []
        self.lost: list[Unit] = []
        self.started: list[FakeWorker] = []

        def begin() -> FakeWorker:
            self.started.append(FakeWorker(work, start))
            return self.started[-1]

        self.pool: Pool[Unit, UnitResult] = Pool(begin, 3)

    def __call__(self, units: Iterator[Unit | None]) -> None:
        with self.pool:
            for result in self.pool.results(units, lambda unit, _: self.lost.append(unit)):
                self.done.append(result.unit)

    def images(self) -> Counter[int]:
        return Counter(i for unit in [*self.done, *self.lost] for i in range(unit.start, unit.stop))


def test_every_unit_is_done_once_while_the_list_is_made() -> None:
    run = Run(lambda unit: None)
    # None: the next unit is not known yet
    run(iter([None, *UNITS[:2], None, None, *UNITS[2:]]))
    assert sorted(run.done) == UNITS
    assert len(run.started) == 3
    assert all(worker.killed for worker in run.started)
    assert run.pool.report.lost_workers == 0


def test_a_unit_of_a_lost_worker_is_given_to_another() -> None:
    deaths: list[Unit] = []

    def work(unit: Unit) -> None:
        if not deaths:
            deaths.append(unit)
            raise ActorDiedError

    run = Run(work)
    run(iter(UNITS))
    assert sorted(run.done) == UNITS
    assert len(run.started) == 4
    assert (run.pool.report.lost_workers, run.pool.report.repeated_units) == (1, 1)


@pytest.mark.parametrize("error", [ActorDiedError(), RuntimeError("CUDA error")])
def test_an_image_that_kills_workers_costs_itself(error: Exception) -> None:
    def work(unit: Unit) -> None:
        if unit.start <= 21 < unit.stop:
            raise error

    run = Run(work)
    run(iter(UNITS))
    assert [(unit.start, unit.stop) for unit in run.lost] == [(21, 22)]
    assert run.images() == Counter(range(40))
    assert run.pool.report.lost_workers == 2 * 4  # units of 8, 4, 2 and 1 images


def test_storage_that_fails_for_a_while_loses_no_worker() -> None:
    calls: list[Unit] = []

    def work(unit: Unit) -> None:
        calls.append(unit)
        if len(calls) < 4:
            raise Unreachable("s3://list: cannot be read")

    run = Run(work)
    run(iter(UNITS))
    assert sorted(run.done) == UNITS
    assert len(run.started) == 3


def test_errors_that_end_the_run() -> None:
    def fail(error: Exception) -> Callable[..., None]:
        def work(*_: Any) -> None:
            raise error

        return work

    for error, message in (
        (StorageRefused("s3://x: no credentials"), "^s3://x: no credentials$"),
        (Unreachable("s3://x: cannot be read"), "run the same command again"),
    ):
        run = Run(fail(error))
        with pytest.raises(type(error), match=message):
            run(iter(UNITS))
        assert not run.done
        assert all(worker.killed for worker in run.started)
    run = Run(lambda unit: None, start=fail(RuntimeError("no such device")))
    with pytest.raises(ValueError, match="workers cannot be started.*no such device"):
        run(iter(UNITS))

    def listing() -> Any:
        yield UNITS[0]
        raise ValueError("there are no images")

    with pytest.raises(ValueError, match="there are no images"):
        Run(lambda unit: None)(listing())
