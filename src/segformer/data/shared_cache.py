"""Objects with large arrays in memory that all worker processes use together.

The memory is a file without a name: worker processes inherit it, whether they are forked or
spawned, and the system frees it when the last of them has ended, even by SIGKILL.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

_ALIGNMENT = 64
"""Arrays begin at multiples of this many bytes."""

_HEAD = 2
"""Numbers in front of the places of the entries: the end of the last one, and 1 when full."""


def is_supported() -> bool:
    """Whether processes of this system can use the same memory in this way."""
    return sys.platform != "win32"


class SharedCache:
    """Entries that one process stores and all read, without a copy of their arrays.

    Memory is taken when entries are stored, not before.

    Args:
        entries: Number of entries, numbered from 0.
        capacity: Bytes that all entries may take together.

    Raises:
        OSError: The system does not provide this much address space.
    """

    def __init__(self, entries: int, capacity: int):
        first = _aligned(8 * (_HEAD + entries))
        file = _open_unnamed_file()
        os.ftruncate(file, first + capacity)
        self._attach(file, entries, first + capacity)
        self._numbers[0] = first

    def _attach(self, file: int, entries: int, size: int) -> None:
        self._file, self._entries, self._size = file, entries, size
        self._memory = mmap.mmap(file, size)
        self._numbers: NDArray[np.int64] = np.frombuffer(self._memory, np.int64, _HEAD + entries)

    def __getstate__(self) -> tuple[Any, int, int]:
        """For a worker process that is being spawned."""
        return reduction.DupFd(self._file), self._entries, self._size

    def __setstate__(self, state: tuple[Any, int, int]) -> None:
        duplicate, entries, size = state
        self._attach(duplicate.detach(), entries, size)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        """Number of entries that are stored."""
        return int(np.count_nonzero(self._numbers[_HEAD:]))

    @property
    def used(self) -> int:
        """Bytes of the entries that are stored."""
        return int(self._numbers[0]) - _aligned(8 * (_HEAD + self._entries))

    @property
    def is_full(self) -> bool:
        """Whether an entry did not fit."""
        return bool(self._numbers[1])

    def get(self, index: int) -> Any:
        """The entry, its arrays read-only views of the shared memory; None where none is stored."""
        place = int(self._numbers[_HEAD + index])
        if not place:
            return None
        view = memoryview(self._memory).toreadonly()
        count = int(np.frombuffer(view, np.int64, 1, place)[0])
        sizes = np.frombuffer(view, np.int64, count, place + 8).tolist()
        place = _aligned(place + 8 * (1 + count))
        parts = []
        for size in sizes:
            parts.append(view[place : place + size])
            place = _aligned(place + size)
        return pickle.loads(parts[0], buffers=parts[1:])

    def put(self, index: int, entry: Any) -> None:
        """Store an entry, unless it is stored already or the cache is full."""
        parts = _parts(entry)
        sizes = np.array([len(parts), *(len(part) for part in parts)], np.int64)
        needed = _aligned(sizes.nbytes) + sum(_aligned(len(part)) for part in parts)
        with self._locked():
            place, is_full = (int(number) for number in self._numbers[:_HEAD])
            if self._numbers[_HEAD + index] or is_full:
                return
            if place + needed > self._size:
                self._numbers[1] = 1
                logger.info(
                    f"the cache is full: {len(self)} of {self._entries} images are in memory, "
                    "the others are read from their files"
                )
                return
            end = place
            for part in (memoryview(sizes.tobytes()), *parts):
                self._memory[end : end + len(part)] = part
                end = _aligned(end + len(part))
            self._numbers[0] = end
            self._numbers[_HEAD + index] = place  # last: from now on others read it

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock that the system releases should this process be killed."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def stored_size(entry: Any) -> int:
    """Bytes that an entry takes in a `SharedCache`."""
    return sum(_aligned(len(part)) for part in _parts(entry)) + _ALIGNMENT


def _parts(entry: Any) -> list[memoryview]:
    """An entry as bytes: its structure, then its arrays, which are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    structure = pickle.dumps(entry, protocol=5, buffer_callback=buffers.append)
    return [memoryview(structure), *(buffer.raw() for buffer in buffers)]


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT


def _open_unnamed_file() -> int:
    """A file in memory, or where the system has none, in the folder of temporary files.

    Not in ``/dev/shm``, which containers limit to 64 MB by default.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("segformer-cache")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
