"""The numbers of a run: metrics.csv, and the loggers that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from segformer.training.config import TrainConfig
from segformer.training.folder import RunFolder
from segformer.training.loggers import Loggers, open_loggers


class Metrics:
    """Writes rows of numbers.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._loggers = Loggers()

    @contextmanager
    def open(self, config: TrainConfig, step: int, *, enabled: bool) -> Iterator[None]:
        """Open the loggers; they are closed when the context ends.

        Args:
            config: Names the loggers.
            step: Steps that a resumed run has done, else 0.
            enabled: False in processes that write nothing.
        """
        if enabled:
            self._loggers = open_loggers(config, self._folder.path, step)
        finished = False
        try:
            yield
            finished = True
        finally:
            self._loggers.close(finished)

    def write(self, step: int, **values: float) -> None:
        """Write a row.

        Args:
            step: Optimizer steps done.
            **values: Numbers by their columns in ``metrics.csv``.
        """
        self._folder.append_metrics(step=step, **values)
        self._loggers.log(step, values)
