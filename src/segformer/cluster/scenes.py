"""Scenes on the machines of a Ray cluster: the driver.

It is `raster.predicting.predict_scene` with blocks that are computed by workers. The journal and
the results are written by the driver; workers open the scene themselves and write nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import ray

from segformer.cluster.connection import connected, find_room
from segformer.cluster.options import ClusterOptions
from segformer.cluster.pool import Pool, PoolReport
from segformer.cluster.scene_work import (
    SceneRequest,
    SceneUnit,
    SceneUnitResult,
    SceneWorker,
    plan_units,
    same_everywhere,
)
from segformer.image.scene import Scene
from segformer.prediction.config import PredictConfig
from segformer.raster.computing import BlockFailed, ComputeBlocks, EncodedBlock
from segformer.raster.config import default_memory
from segformer.raster.tiling import Block

logger = logging.getLogger(__name__)


class SceneWorkers:
    """Workers that compute the blocks of one scene after another.

    They start with the first block that is to be computed, and end with the context.

    Args:
        model: What `Predictor` takes; it is sent to the workers through Ray's object store.
        config: How pixels are seen and run.
        options: The cluster and the workers.
        max_memory: Bytes that each worker may take in all. Default: those on one machine together
            half of its memory, each at most a quarter.

    Example:
        >>> with SceneWorkers(model, config, ClusterOptions("auto")) as workers:
        ...     request = SceneRequest("/shared/scene.tif")
        ...     with request.open() as scene:
        ...         predict_scene(predictor, scene, out, compute=workers.computer(request, scene))
    """

    def __init__(
        self,
        model: Any,
        config: PredictConfig,
        options: ClusterOptions,
        *,
        max_memory: int | None = None,
    ) -> None:
        self.model, self.config, self.options = model, config, options
        self.max_memory = max_memory
        self.workers = 0
        self._stack = ExitStack()
        self._pool: Pool[SceneUnit, SceneUnitResult] | None = None

    def __enter__(self) -> SceneWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def report(self) -> PoolReport:
        """What happened to the workers."""
        return PoolReport() if self._pool is None else self._pool.report

    def computer(self, request: SceneRequest, scene: Scene) -> ComputeBlocks:
        """What `predict_scene` takes as ``compute``.

        Args:
            request: How workers open the scene.
            scene: The same, opened on this machine.
        """
        return partial(self._compute, request, same_everywhere(scene))

    def _compute(
        self, request: SceneRequest, known: tuple[object, ...], blocks: Sequence[Block]
    ) -> Generator[EncodedBlock, None, None]:
        """Compute blocks on the workers; after one has failed, no more are given out."""
        pool = self._start()
        tiling = blocks[0].tiling
        planned = plan_units(blocks, self.workers)
        units = [SceneUnit(request, known, tiling, unit) for unit in planned]
        pool.workers = min(self.workers, len(units))
        failures: list[str] = []

        def given() -> Iterator[SceneUnit]:
            for unit in units:
                if failures:
                    return
                yield unit

        def lost(unit: SceneUnit, reason: str) -> None:
            failures.append(f"{unit.stem}: the worker was lost each time ({reason})")

        for result in pool.results(given(), lost):
            yield from result.blocks
            if result.error is not None:
                failures.append(result.error)
        if failures:
            raise BlockFailed(failures[0])

    def _start(self) -> Pool[SceneUnit, SceneUnitResult]:
        if self._pool is None:
            self._stack.enter_context(connected(self.options.cluster))
            room = find_room(self.options)
            memory = self.max_memory or default_memory() * 2 // max(2, room.per_machine)
            actor = ray.remote(SceneWorker).options(**room.actor_options)
            given = self.model
            model = given if isinstance(given, (str, type(None))) else ray.put(given)
            threads = self.options.cpus_per_worker

            def start() -> Any:
                return actor.remote(model, self.config, memory, threads)

            self.workers = room.workers
            self._pool = self._stack.enter_context(Pool(start, room.workers))
        return self._pool
