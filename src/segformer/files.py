"""Output files: written whole or not at all; files of the user are replaced only on request."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

_REPLACE_ATTEMPTS = 6


class OutputExists(ValueError):
    """A command would replace a file without being asked to; the message names the file."""


def check_replaceable(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse to replace files, before any work is done.

    Args:
        paths: Files that a command is about to write.
        overwrite: The user has agreed to replace them; nothing is checked then.

    Raises:
        OutputExists: One of the files exists; the message names the first three.
    """
    if overwrite:
        return
    existing = [str(path) for path in paths if os.path.lexists(path)]
    if existing:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        verb = "exists" if len(existing) == 1 else "exist"
        raise OutputExists(
            f"{', '.join(existing[:3])}{more} already {verb}; choose another destination, or pass "
            "--overwrite to replace what is there"
        )


def check_replaceable_folder(folder: Path, mark: str, *, overwrite: bool) -> None:
    """Refuse to replace a folder with anything in it that the same command has not written.

    Args:
        folder: Folder that a command is about to write whole.
        mark: File in it by which it is known that the command wrote it.
        overwrite: Such a folder may be replaced.

    Raises:
        OutputExists: The folder exists, and may not be replaced.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        check_replaceable([folder], overwrite=False)
    if not (folder / mark).is_file():
        raise OutputExists(
            f"{folder} has no {mark}, so this command has not written it; choose another "
            "destination"
        )


def check_writable(folder: Path) -> None:
    """Refuse a folder, which need not exist yet, into which no file can be written.

    Args:
        folder: Where a command is about to write.

    Raises:
        ValueError: No file can be written; the message names the folder that refuses, and why.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot write into {existing}: {error.strerror}; choose another --out"
        ) from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; on success it is renamed to ``path``.

    On failure it is deleted, and what was at ``path`` stays. The temporary file is hidden (its name
    begins with ``.partial-``), so that one left by a killed process is never taken for a result.
    Its suffix is that of ``path``, from which writers choose their format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{uuid4().hex}{path.suffix}")
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # some writers make files that only their owner may read
        # To disk before the rename, or a power cut could leave an empty file under the final name.
        # Opened for writing because Windows cannot flush a file that is open for reading.
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        _replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to write into; on success it is renamed to ``path``.

    A folder at ``path`` is then removed. On failure, also by Ctrl-C, the temporary folder is
    deleted, and what was at ``path`` stays.
    """
    path = Path(path)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = path.absolute().with_name(f".partial-{uuid4().hex}")
    partial.mkdir()
    try:
        yield partial
        if path.is_dir():
            former = partial.with_name(f".former-{uuid4().hex}")
            path.rename(former)
            partial.rename(path)
            shutil.rmtree(former)
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    """Rename over ``target``; waits a second while another program has it open on Windows."""
    for attempt in range(_REPLACE_ATTEMPTS):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if attempt == _REPLACE_ATTEMPTS - 1:
                raise PermissionError(
                    error.errno, "cannot be replaced; is it open in another program?", str(target)
                ) from None
            time.sleep(0.03 * 2**attempt)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        # File names that are not valid UTF-8 are written with their bytes escaped
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write an indented JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
