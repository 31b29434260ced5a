"""The options of a prediction on many machines. Nothing here imports Ray or torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from segformer.options import depends


@dataclass(frozen=True)
class ClusterOptions:
    """Where and how the work is spread.

    Attributes:
        cluster: Spread the images, or the parts of scenes, over the machines of a Ray cluster:
            "auto" for the one that this machine belongs to, "local" to start one on this machine,
            or its address.
        workers: Number of workers, each with a model of its own.
        cpus_per_worker: CPUs, and threads of the model, of each worker.
        gpus_per_worker: GPUs of each worker; with 0.5, two workers use one.
        images_per_unit: Images that a worker is given at once. Each unit has one summary file.

    Raises:
        ValueError: An option is out of range.
    """

    cluster: Annotated[str | None, depends("auto|local|ADDRESS", "this process alone")] = None
    workers: Annotated[int | None, depends("INT", "as many as the cluster has room for")] = None
    cpus_per_worker: int = 1
    gpus_per_worker: Annotated[
        float | None, depends("FLOAT", "1 if the cluster has GPUs, else 0")
    ] = None
    images_per_unit: int = 1000

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "images_per_unit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.gpus_per_worker is not None and not self.gpus_per_worker >= 0:
            raise ValueError(f"gpus_per_worker must not be negative, not {self.gpus_per_worker}")
