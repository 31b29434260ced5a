"""Output files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; on success it becomes ``path``, else it goes.

    The temporary name keeps the suffix, from which writers choose their format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid4().hex}{path.suffix}")
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # some writers make files that only their owner may read
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # before the name, lest a power cut leave the name alone
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole, in UTF-8."""
    with whole_file(path) as partial:
        # File names that are no valid UTF-8 are written with their bytes escaped
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, whole, for people to read too."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
