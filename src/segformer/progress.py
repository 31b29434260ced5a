"""Progress that a person can follow: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

console = Console(stderr=True)
"""Where progress and messages go; results go to standard output."""

_LINE_EVERY_S = 15.0


class ProgressBar:
    """Counts towards a total, with a rate and the time left.

    In a terminal it is a bar; in a log file or pipe a plain line every 15 seconds, and nothing
    for work of under two seconds.

    Args:
        description: What is being done.
        total: How many units there are.
        unit: Name of a unit, for the rate.
        start: Units already done, as in a resumed run.
        scale: Rate units per unit: images per training step, say.
    """

    def __init__(
        self, description: str, total: int, unit: str, *, start: int = 0, scale: float = 1
    ):
        self.description, self.total, self.unit = description, total, unit
        self.start, self.done, self.scale = start, start, scale
        self.note = ""
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressBar:
        self._began = self._last_line = time.monotonic()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.start, note=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and time.monotonic() - self._began > 2:
            self._print_line()

    @property
    def rate(self) -> float:
        """Rate units per second since the bar began."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        return (self.done - self.start) * self.scale / elapsed

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more units; ``note`` replaces the words beside the bar."""
        self.done += count
        if note is not None:
            self.note = note
        if self._bar is not None:
            words = f"{self.note}  {self.rate:.1f} {self.unit}/s".strip()
            self._bar.update(self._task, completed=self.done, note=words)
        elif time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._print_line()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar off the screen while something else is shown; its time does not count."""
        stopped = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
        yield
        self._began += time.monotonic() - stopped
        if self._bar is not None:
            self._bar.start()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        left = (self.total - self.done) * self.scale / self.rate if self.rate else 0
        logger.info(
            f"{self.description}: {self.done}/{self.total}, {self.rate:.1f} {self.unit}/s, "
            f"{_clock(left)} left{', ' + self.note if self.note else ''}"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
