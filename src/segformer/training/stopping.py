"""Stopping between two optimizer steps when the user or a scheduler asks for it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class TrainingStopped(Exception):
    """The training was asked to stop; its state is saved and it can be resumed."""


class StopRequest:
    """Whether a signal has asked the training to stop."""

    requested = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that no step is interrupted.

    A second one interrupts at once. The last resume checkpoint remains complete.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True
        logger.info("\nstopping after this step and saving (repeat to stop at once)")

    try:
        previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals can only be handled in the main thread
        previous = {}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
