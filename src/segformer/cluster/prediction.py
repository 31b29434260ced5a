"""Prediction on the machines of a Ray cluster: the driver."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from segformer.cluster import storage
from segformer.cluster.connection import connected, find_room
from segformer.cluster.manifest import (
    Part,
    Unit,
    find_done,
    find_parts,
    list_sources,
    read_part,
    remaining_units,
    write_parts,
)
from segformer.cluster.options import ClusterOptions
from segformer.cluster.pool import Pool
from segformer.cluster.storage import STATE, Unreachable, join
from segformer.cluster.work import Outputs, UnitResult, read_remotely, run_unit, write_summary
from segformer.files import OutputExists
from segformer.prediction.config import PredictConfig
from segformer.prediction.predictor import Predictor
from segformer.prediction.writing import Row

logger = logging.getLogger(__name__)

_SHOWN_FAILURES = 20


@dataclass
class ClusterResult:
    """What became of the images in this run.

    Attributes:
        images: Number of images in the list.
        done: Number of images that were segmented.
        skipped: Number of images whose results existed, in units that were not done.
        earlier: Number of images in units that earlier runs had done.
        failed: Number of images that failed.
        failures: The first of these: image and error.
        workers: How many there were.
        lost_workers: Number of workers that died.
        repeated_units: Number of units that were given out again.
        seconds_to_first_unit: From the start of Ray to the first unit that was done.
        seconds: All together.
    """

    images: int = 0
    done: int = 0
    skipped: int = 0
    earlier: int = 0
    failed: int = 0
    failures: list[Row] = field(default_factory=list)
    workers: int = 0
    lost_workers: int = 0
    repeated_units: int = 0
    seconds_to_first_unit: float = 0.0
    seconds: float = 0.0


class Worker:
    """A model and the units that it is given; Ray runs it in a process of its own."""

    def __init__(self, model: Any, config: PredictConfig, outputs: Outputs, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.predictor, self.outputs = Predictor(model, config), outputs
        read_remotely(self.predictor)

    def ready(self) -> None:
        """Return when the model is loaded."""

    def run(self, unit: Unit) -> UnitResult:
        """Do a unit; see `run_unit`."""
        return run_unit(self.predictor, self.outputs, unit)


def predict_on_cluster(
    model: Any,
    classes: Sequence[str],
    sources: Sequence[str],
    outputs: Outputs,
    config: PredictConfig,
    options: ClusterOptions,
    *,
    on_progress: Callable[[ClusterResult], None] | None = None,
) -> ClusterResult:
    """Segment images on the machines of a Ray cluster.

    A second run with the same output folder does what is missing: images that were not done, that
    failed, or that are new. Results that exist are kept.

    Args:
        model: What `Predictor` takes; it is sent to the workers through Ray's object store.
        classes: Names of its classes.
        sources: Files, folders and patterns on any file system, or Parquet files with a column
            ``uri``.
        outputs: Where results go.
        config: How images are seen and run.
        options: The cluster and the workers.
        on_progress: Called after each unit, with what has been done so far.

    Raises:
        OutputExists: The output folder has files of others in it.
        ValueError: The output folder belongs to a run of other images or classes, a source has no
            images, or no worker can be started.
        CannotContinue: There is no space, or no access to files.
    """
    run = _Run(sources, outputs, list(classes), options, on_progress)
    run.claim_folder()
    with connected(options.cluster):
        run.work(model, config)
    return run.result


class _Run:
    """One run of `predict_on_cluster`."""

    def __init__(
        self,
        sources: Sequence[str],
        outputs: Outputs,
        classes: list[str],
        options: ClusterOptions,
        on_progress: Callable[[ClusterResult], None] | None,
    ) -> None:
        self.sources = [storage.absolute(source) for source in sources]
        self.outputs, self.options, self.on_progress = outputs, options, on_progress
        self.about = {"sources": self.sources, "classes": classes, **asdict(outputs)}
        self.result = ClusterResult()
        self.began = time.monotonic()
        self.parts: queue.Queue[Part | BaseException | None] = queue.Queue()

    @property
    def out(self) -> str:
        return self.outputs.out

    def claim_folder(self) -> None:
        """Mark the output folder as that of this run, or find that it is."""
        for source in self.sources:
            if f"{source.rstrip('/')}/".startswith(f"{self.out.rstrip('/')}/"):
                raise ValueError(f"{self.out}: the images are in this folder; choose another --out")
        mark = join(self.out, f"{STATE}/run.json")
        if not storage.exists(mark):
            files, folders = storage.list_folder(self.out)
            if files or folders:
                raise OutputExists(
                    f"{self.out}: this folder is not empty, and no run on a cluster has written "
                    "it; choose another --out"
                )
            storage.write_bytes(mark, json.dumps(self.about, indent=2).encode())
            return
        former = json.loads(storage.read_bytes(mark))
        for key, value in self.about.items():
            if former[key] != value:
                raise ValueError(
                    f"{self.out}: an earlier run had other {key}: {former[key]}, not {value}; "
                    "choose another --out"
                )

    def work(self, model: Any, config: PredictConfig) -> None:
        room = find_room(self.options)
        actor = ray.remote(Worker).options(**room.actor_options)
        reference = ray.put(model) if not isinstance(model, (str, type(None))) else model
        threads = self.options.cpus_per_worker

        def start() -> Any:
            return actor.remote(reference, config, self.outputs, threads)

        self.result.workers = room.workers
        threading.Thread(target=self._list, name="listing", daemon=True).start()
        pool: Pool[Unit, UnitResult] = Pool(start, room.workers)
        try:
            with pool:
                for result in pool.results(self._units(), self._lost):
                    self._add(result)
        finally:
            self.result.lost_workers = pool.report.lost_workers
            self.result.repeated_units = pool.report.repeated_units
            self.result.seconds = time.monotonic() - self.began
            report = json.dumps(asdict(self.result), indent=2).encode("utf-8", "backslashreplace")
            storage.write_bytes(join(self.out, f"{STATE}/report.json"), report)

    def _list(self) -> None:
        """Find the parts of the list, and write what is missing of it; runs in a thread."""
        try:
            parts = find_parts(self.out)
            for part in parts:
                self.parts.put(part)
            complete = join(self.out, f"{STATE}/complete")
            fixed = all(source.endswith(".parquet") for source in self.sources)
            if not (fixed and storage.exists(complete)):
                images = list_sources(self.sources, self.out)
                for part in write_parts(images, self.out, existing=parts):
                    self.parts.put(part)
                storage.write_bytes(complete, b"")
            self.parts.put(None)
        except BaseException as error:  # raised where the parts are taken
            self.parts.put(error)

    def _units(self) -> Iterator[Unit | None]:
        """What is to be done; None while the list is being made."""
        done = find_done(self.out)
        while True:
            try:
                part = self.parts.get(timeout=0.05)
            except queue.Empty:
                yield None
                continue
            if part is None:
                return
            if isinstance(part, BaseException):
                raise part
            self.result.images += part.count
            units = remaining_units(part, done.get(part.number, ()), self.options.images_per_unit)
            earlier = part.count
            for unit in units:
                earlier -= len(unit)
                yield unit
            self.result.earlier += earlier

    def _add(self, result: UnitResult) -> None:
        total = self.result
        total.seconds_to_first_unit = total.seconds_to_first_unit or time.monotonic() - self.began
        total.done += result.done
        total.skipped += result.skipped
        total.failed += len(result.failed)
        total.failures += result.failed[: max(0, _SHOWN_FAILURES - len(total.failures))]
        if self.on_progress is not None:
            self.on_progress(total)

    def _lost(self, unit: Unit, reason: str) -> None:
        """An image during which workers died or failed counts as failed."""
        ((uri, _),) = read_part(self.out, Part(unit.part, unit.count), unit.start, unit.stop)
        row = {"image": uri, "error": f"{uri}: the worker was lost each time ({reason})"}
        write_summary(self.out, unit, [row])
        self._add(UnitResult(unit, failed=[row]))


def read_failures(out: str) -> Iterator[Row]:
    """The images that failed in the last run over them: image and error."""
    folder = join(out, f"{STATE}/failures")
    for name in storage.list_folder(folder)[0]:
        try:
            lines = storage.read_bytes(join(folder, name)).decode().splitlines()
        except Unreachable:
            continue  # done meanwhile
        yield from map(json.loads, lines)
