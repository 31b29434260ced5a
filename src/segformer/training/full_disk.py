"""A disk without space: what is complete stays, and the message says how to go on."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if os.name != "nt" else (errno.ENOSPC,)


class DiskFull(OSError):
    """A file of the run could not be written for lack of space."""


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that there is no space.

    PyTorch and safetensors raise errors of their own, which hold the number only as text.
    """
    if isinstance(error, OSError):
        return isinstance(error, DiskFull) or error.errno in _FULL
    text = str(error)
    numbers = {int(number) for number in re.findall(r"os error (\d+)", text)}
    cause = error.__cause__ or error.__context__
    return (
        bool(numbers & set(_FULL))
        or "No space left on device" in text
        or ("PytorchStreamWriter failed" in text or "unexpected pos" in text)
        or (cause is not None and is_full_disk(cause))
    )


@contextmanager
def explaining_full_disk(folder: Path, checkpoint: Path) -> Iterator[None]:
    """Turn the error of a full disk into a `DiskFull` that says how to continue.

    Args:
        folder: Folder of the run.
        checkpoint: Its resume checkpoint, which is complete if it exists.

    Raises:
        DiskFull: Something could not be written for lack of space.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        kept = (
            f"the last checkpoint is complete; free some space, then continue with: "
            f"segformer train --resume {folder}"
            if checkpoint.is_file()
            else "there is no checkpoint yet; free some space and start again"
        )
        raise DiskFull(f"{folder}: no space left on the disk: {kept}") from None


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file, whole or not at all.

    Raises:
        OSError: It cannot be written, for lack of space for example.
    """
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            written = file.write(line)
            if written != len(line):
                file.write(line[written:])  # raises what the first call could not say
        except OSError:
            file.truncate(size)
            raise
