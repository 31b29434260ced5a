"""The Ray cluster of a command, and the room that it has for workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from segformer.cluster.options import ClusterOptions


@dataclass(frozen=True)
class Room:
    """How many workers there are to be.

    Attributes:
        workers: Number of workers.
        per_machine: Largest number of them that one machine has room for.
        actor_options: What Ray is told of each.
    """

    workers: int
    per_machine: int
    actor_options: dict[str, Any]


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, started or connected to unless the process is connected already."""
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def find_room(options: ClusterOptions) -> Room:
    """The workers that the options ask for, or as many as the cluster has room for.

    Raises:
        ValueError: There is no room for one.
    """
    resources = ray.cluster_resources()
    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if resources.get("GPU") else 0.0

    def fitting(found: dict[str, float]) -> int:
        count = found.get("CPU", 0) // options.cpus_per_worker
        return int(min(count, found.get("GPU", 0) // gpus) if gpus else count)

    workers = options.workers or fitting(resources)
    if not workers:
        raise ValueError(
            f"the cluster has no room for a worker with {options.cpus_per_worker} CPUs and "
            f"{gpus:g} GPUs; it has {resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}"
        )
    machines = [fitting(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    actor_options = {
        "num_cpus": options.cpus_per_worker,
        "num_gpus": gpus,
        "max_restarts": 0,
        "scheduling_strategy": "SPREAD",
    }
    return Room(workers, max(1, min(workers, max(machines, default=1))), actor_options)
