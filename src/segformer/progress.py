"""Progress of long work: a bar in a terminal, log messages elsewhere."""

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

    In a terminal it is a bar; in a log file or pipe a log message every 15 seconds, and none for
    work of less than two seconds. It is shown if messages of level INFO are.

    Args:
        description: What is being done.
        total: How many units there are.
        unit: Name of a unit, for the rate.
        start: Units that are done already, as in a resumed run.
        scale: Rate units per unit, such as images per training step.
    """

    def __init__(
        self, description: str, total: int, unit: str, *, start: int = 0, scale: float = 1
    ):
        self.description, self.total, self.unit = description, total, unit
        self.start, self.done, self.scale = start, start, scale
        self.fraction = 0.0
        self.note = ""
        self._logged: int | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressBar:
        self._began = self._last_line = time.monotonic()
        if console.is_terminal and logger.isEnabledFor(logging.INFO):
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
        elif kind is None and time.monotonic() - self._began > 2 and self._logged != self.done:
            self._log()

    @property
    def rate(self) -> float:
        """Rate units per second since the bar began."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        return (self.done + self.fraction - self.start) * self.scale / elapsed

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more units; ``note`` replaces the text beside the bar."""
        self.done += count
        self.fraction = 0.0
        if note is not None:
            self.note = note
        self._show()

    def within(self, fraction: float, note: str) -> None:
        """Show how far the current unit is, 0..1, with a text beside the bar."""
        self.fraction, self.note = fraction, note
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            text = f"{self.note}  {self._rate_text()}".strip()
            completed = self.done + self.fraction
            self._bar.update(self._task, total=self.total, completed=completed, note=text)
        elif time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._log()

    def _rate_text(self) -> str:
        """Units per second, or seconds per unit of slow work."""
        rate = self.rate
        return (
            f"{1 / rate:.1f} s/{self.unit.removesuffix('s')}"
            if 0 < rate < 0.1
            else (f"{rate:.1f} {self.unit}/s")
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the bar while something else is shown; this time does not count."""
        stopped = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
        yield
        self._began += time.monotonic() - stopped
        if self._bar is not None:
            self._bar.start()

    def _log(self) -> None:
        self._last_line, self._logged = time.monotonic(), self.done
        rate = self.rate
        remaining = (self.total - self.done - self.fraction) * self.scale
        left = f", {_clock(remaining / rate)} left" if rate else ""
        note = f", {self.note}" if self.note else ""
        logger.info(
            f"{self.description}: {self.done}/{self.total}, {self._rate_text()}{left}{note}"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
