"""A zip as a data set: unpacked once, safely, next to the zip."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from uuid import uuid4

from segformer.data.errors import DatasetError

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 40
"""Bytes that a zip may unpack to."""

MAX_RATIO = 200
"""Bytes unpacked per byte of the zip; images and masks of real data sets stay far below."""

_SMALL = 64 << 20
"""Up to this size the ratio does not matter: masks of one class compress well."""

_CHUNK = 1 << 20
_MARK = ".unpacked"
"""File in a complete folder; holds the size and time of the zip it came from."""


def unpacked(path: Path) -> Path:
    """The folder of a zip's contents, unpacked beside it if that has not been done.

    The folder has the name of the zip. It appears when all is unpacked, so that an interrupted
    run leaves nothing behind that looks complete.

    Args:
        path: The zip.

    Returns:
        The folder.

    Raises:
        DatasetError: The zip is broken, encrypted, too large or leads out of its folder; or a
            folder of its name exists that does not come from it.
    """
    folder = path.with_suffix("")
    try:
        status = path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}\n"
        if folder.exists():
            if _mark(folder) == stamp:
                return folder
            raise DatasetError(
                f"{folder}: this folder exists, but is not what {path.name} unpacks to; remove it, "
                "or name it instead of the zip"
            )
        with zipfile.ZipFile(path) as archive:
            members = _check(path, archive, status.st_size)
            partial = folder.with_name(f".{folder.name}-{uuid4().hex}")
            try:
                partial.mkdir()
                _extract(path, archive, members, partial)
                (partial / _MARK).write_text(stamp, encoding="utf-8")
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        UnicodeError,
    ) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise DatasetError(f"{path}: cannot be unpacked: {error}") from None
        raise DatasetError(f"{path}: the zip cannot be read: {error}") from None
    logger.info("unpacked %s into %s", path, folder)
    return folder


def _mark(folder: Path) -> str | None:
    try:
        return (folder / _MARK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _check(path: Path, archive: zipfile.ZipFile, packed: int) -> list[zipfile.ZipInfo]:
    """The files to unpack, all of them harmless."""
    members = [member for member in archive.infolist() if not _is_clutter(member.filename)]
    seen: set[str] = set()
    for member in members:
        entry = f"{path}: member {member.filename!r}"
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in member.filename.split("/")[0]:
            raise DatasetError(f"{entry}: its path leads out of the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DatasetError(f"{entry}: a symbolic link, which is not unpacked")
        if member.flag_bits & 1:
            raise DatasetError(f"{entry}: it is encrypted; unpack the zip yourself")
        if not member.is_dir() and parts.as_posix() in seen:
            raise DatasetError(f"{entry}: it occurs twice")
        seen.add(parts.as_posix())
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES or total > max(MAX_RATIO * packed, _SMALL):
        raise DatasetError(
            f"{path}: it unpacks to {total:,} bytes from {packed:,}, which is not plausible for "
            "images; unpack it yourself if you trust it"
        )
    free = shutil.disk_usage(path.parent).free
    if total > free:
        raise DatasetError(f"{path}: it unpacks to {total:,} bytes, but only {free:,} are free")
    return members


def _is_clutter(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name in (".DS_Store", "Thumbs.db")


def _extract(
    path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path
) -> None:
    """Unpack, never more of a member than it states; zipfile checks the sums."""
    for member in members:
        target = folder / member.filename.replace("\\", "/")
        if member.is_dir() or member.filename.endswith("\\"):
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with archive.open(member) as source, target.open("wb") as copy:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > member.file_size:
                    raise DatasetError(
                        f"{path}: member {member.filename!r} is larger than it states"
                    )
                copy.write(chunk)
