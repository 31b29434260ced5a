"""Images to predictions to files, with reading, computing and writing at the same time.

A folder on this machine and a part of a list on one of many machines are both written here.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from segformer.image import ImageSource
from segformer.prediction.prediction import Output, Prediction
from segformer.prediction.predictor import Predictor

WAITING_WRITES = 8
"""Predictions that may wait to be written, so that memory stays bounded."""

_WAITING_PIXELS = 1 << 25
"""Pixels of these predictions, beyond the first."""

_FULL = (errno.ENOSPC, errno.EDQUOT) if os.name != "nt" else (errno.ENOSPC,)

Row: TypeAlias = dict[str, Any]
"""What a summary says of an image: image, size, files and class fractions, or image and error."""


class CannotContinue(OSError):
    """An error that all further images would meet as well, so that the run ends."""


class DiskFull(CannotContinue):
    """Results cannot be written for lack of space."""


@dataclass(frozen=True, eq=False)
class Task:
    """An image to segment, and what to write.

    Attributes:
        source: What the predictor reads.
        image: What the summary calls it.
        files: All its results, as the summary lists them.
        missing: Those that are to be written.
    """

    source: ImageSource
    image: str
    files: tuple[str, ...]
    missing: Mapping[Output, Path] = field(default_factory=dict)


def write_files(prediction: Prediction, task: Task) -> None:
    """Write the missing results of a task."""
    prediction.write(task.missing)


def write_predictions(
    predictor: Predictor,
    tasks: Iterable[Task],
    on_row: Callable[[Task, Row], None],
    *,
    write: Callable[[Prediction, Task], None] = write_files,
    on_windows: Callable[[int, int], None] | None = None,
) -> None:
    """Segment images and write their results; an image that fails costs itself only.

    Args:
        predictor: Model and options.
        tasks: Images, of which only as many as the readers need are taken ahead.
        on_row: Called in this thread with each task that is done or has failed. After an
            interruption, it is also called with those that were being written.
        write: Writes the results of a task; it is called in other threads, and raises an OSError
            or a ValueError if it cannot.
        on_windows: See `Predictor.stream`.

    Raises:
        CannotContinue: Further images would fail as well; a `DiskFull`, or an error of ``write``.
    """
    _Writing(predictor, on_row, write).run(tasks, on_windows)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no space for a file."""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in _FULL)


def no_space_for(file: str | Path) -> DiskFull:
    """The error for a file on a full disk."""
    return DiskFull(
        f"{file}: no space left on the disk; results that are complete stay: free some space, then "
        "continue with --skip-existing"
    )


def failure(task: Task, error: Exception) -> Row:
    """The row of an image that failed."""
    return {"image": task.image, "error": str(error)}


class _Writing:
    """One call of `write_predictions`."""

    def __init__(
        self,
        predictor: Predictor,
        on_row: Callable[[Task, Row], None],
        write: Callable[[Prediction, Task], None],
    ) -> None:
        self.predictor, self.on_row, self.write = predictor, on_row, write
        self.reading: deque[Task] = deque()  # in the order in which their predictions come
        self.writing: deque[tuple[Task, Prediction, Future[None]]] = deque()

    def run(self, tasks: Iterable[Task], on_windows: Callable[[int, int], None] | None) -> None:
        with ThreadPoolExecutor(2, thread_name_prefix="writer") as pool:
            try:
                stream = self.predictor.stream(
                    self._sources(tasks), on_error=self._unreadable, on_windows=on_windows
                )
                for prediction in stream:
                    task = self.reading.popleft()
                    future = pool.submit(self.write, prediction, task)
                    self.writing.append((task, prediction, future))
                    while self._too_many_wait():
                        self._finish_first()
            finally:
                self._finish_all()

    def _sources(self, tasks: Iterable[Task]) -> Iterator[ImageSource]:
        for task in tasks:
            self.reading.append(task)
            yield task.source

    def _unreadable(self, source: ImageSource, error: Exception) -> None:
        task = next(task for task in self.reading if task.source is source)
        self.reading.remove(task)
        self.on_row(task, failure(task, error))

    def _too_many_wait(self) -> bool:
        pixels = sum(prediction.label_map.size for _, prediction, _ in list(self.writing)[1:])
        return len(self.writing) > WAITING_WRITES or pixels > _WAITING_PIXELS

    def _finish_all(self) -> None:
        last: CannotContinue | None = None
        while self.writing:
            try:
                self._finish_first()
            except CannotContinue as error:
                last = error  # others may have been written before
        if last is not None:
            raise last

    def _finish_first(self) -> None:
        task, prediction, future = self.writing.popleft()
        try:
            future.result()
        except CannotContinue:
            raise
        except (ValueError, OSError, MemoryError) as error:
            if is_disk_full(error):
                raise no_space_for(task.files[0]) from None
            self.on_row(task, failure(task, error))
        else:
            self.on_row(task, row_of(prediction, task))


def row_of(prediction: Prediction, task: Task) -> Row:
    """What a summary says of an image that is done."""
    height, width = prediction.label_map.shape
    fractions = prediction.class_fractions
    row: Row = {
        "image": task.image,
        "height": height,
        "width": width,
        "files": list(task.files),
        "class_fractions": {name: round(value, 6) for name, value in fractions.items()},
    }
    if prediction.confidence is not None:
        row["mean_confidence"] = round(float(prediction.confidence.mean()), 6)
    return row
