"""Filters of warnings, which are the same for all threads of a process."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_CHANGING = threading.RLock()


@contextmanager
def ignoring(category: type[Warning]) -> Iterator[None]:
    """Without warnings of a category; one thread at a time.

    `warnings.catch_warnings` puts the filters back as they were when it began. Of two threads, one
    would so take the filter of the other away, or leave its own behind.

    Args:
        category: Of the warnings.
    """
    with _CHANGING, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
