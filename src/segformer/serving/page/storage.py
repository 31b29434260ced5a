"""What visitors of the page leave on the disk for a while."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


def clean(folder: Path, seconds: float) -> None:
    """Delete the files below a folder that have not been written for some time.

    Args:
        folder: Folder; it is kept itself.
        seconds: Age from which files, and empty folders, are deleted.
    """
    oldest = time.time() - seconds
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(parent, name)
            with suppress(OSError):  # deleted by somebody else
                if path.stat().st_mtime < oldest:
                    path.unlink()
        for name in folders:
            path = Path(parent, name)
            with suppress(OSError):  # not empty
                if path.stat().st_mtime < oldest:
                    path.rmdir()
