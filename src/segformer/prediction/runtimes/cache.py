"""Converted models on disk, so that each is converted once.

An entry is a folder with a graph. It appears whole, one process at a time writes it, and the least
recently used entries are deleted when all together take more than the limit.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segformer.files import whole_folder
from segformer.prediction.runtimes.graphs import require

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SEGFORMER_CACHE"
"""Environment variable with another folder for the cache."""

LARGEST_CACHE = 4 << 30
"""Bytes of all converted models together: a dozen of B5, hundreds of B0."""


def cache_folder() -> Path:
    """The folder of the cache: ``$SEGFORMER_CACHE``, or that of the user on this system."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "segformer"


def key_of(*parts: object) -> str:
    """A name for an entry, which differs if one of the parts does."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def cached(key: str, write: Callable[[Path], None], *, limit: int = LARGEST_CACHE) -> Path:
    """The folder of an entry, written first if there is none.

    Args:
        key: Name of the entry.
        write: Writes the files of the entry into the folder that it is given.
        limit: Bytes of all entries together; a single larger one is kept.

    Returns:
        The folder. If the cache cannot be written, it is a temporary folder, which is deleted at
        the end of the process.
    """
    graphs = cache_folder() / "graphs"
    entry = graphs / key
    try:
        graphs.mkdir(parents=True, exist_ok=True)
        with _locked(graphs / f"{key}.lock"):
            if not entry.is_dir():
                with whole_folder(entry) as partial:
                    write(partial)
                _delete_oldest(graphs, entry, limit)
            os.utime(entry)  # the time of its last use
    except OSError as error:
        logger.warning(
            f"{graphs}: the converted model cannot be kept: {error.strerror or error}; set "
            f"{CACHE_VARIABLE} to a folder that can be written"
        )
        entry = _temporary_folder() / key
        if not entry.is_dir():
            with whole_folder(entry) as partial:
                write(partial)
    return entry


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock."""
    filelock = require("filelock", "openvino")
    with filelock.FileLock(path):
        yield


def _delete_oldest(graphs: Path, kept: Path, limit: int) -> None:
    """Delete the least recently used entries but ``kept`` until all fit into the limit."""
    entries = [path for path in graphs.iterdir() if path.is_dir() and path.name[0] != "."]
    sizes = {entry: sum(f.stat().st_size for f in entry.iterdir()) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=lambda path: path.stat().st_mtime):
        if total <= limit:
            return
        if entry != kept:
            shutil.rmtree(entry, ignore_errors=True)
            entry.with_name(f"{entry.name}.lock").unlink(missing_ok=True)
            total -= sizes[entry]


_temporary: tempfile.TemporaryDirectory[str] | None = None


def _temporary_folder() -> Path:
    global _temporary  # noqa: PLW0603  # one for the process
    if _temporary is None:
        _temporary = tempfile.TemporaryDirectory(prefix="segformer-")
    return Path(_temporary.name)
