"""Files on any file system that fsspec knows: local, s3, gs, http. Transient errors are retried."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import fsspec

from segformer.files import whole_file
from segformer.image import IMAGE_SUFFIXES
from segformer.prediction.writing import CannotContinue, DiskFull, is_disk_full

ATTEMPTS = 4
FIRST_DELAY_S = 0.5
"""Seconds before the second attempt; doubled before each further one."""

STATE = "_segformer"
"""Folder in the output folder with the manifest and the summaries."""

_WHOLE_OBJECTS = ("s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "memory", "http", "https")
"""Object stores, where a file appears when all of it has been sent."""

_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "RefreshError",
)
"""Names of the errors of botocore, google-auth and azure-identity."""

_PERMANENT = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)

T = TypeVar("T")


class StorageRefused(CannotContinue):
    """Credentials are missing or have no access; trying again does not help."""


class Unreachable(ValueError):
    """A file that could not be read or written, after several attempts."""


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        Unreachable: There is none, it must not be read, or the network failed several times.
        StorageRefused: There are no credentials.
    """
    return _retried(uri, "read", lambda files, path: bytes(files.cat_file(path)))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        Unreachable: The network failed several times.
        StorageRefused: There are no credentials, or they do not allow it.
        DiskFull: There is no space.
    """

    def write(files: Any, path: str) -> None:
        protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
        if "file" in protocols:
            with whole_file(path) as partial:
                partial.write_bytes(data)
        elif set(protocols) & set(_WHOLE_OBJECTS):
            files.pipe_file(path, data)
        else:
            folder, _, _ = path.rpartition("/")
            files.makedirs(folder, exist_ok=True)
            partial_path = f"{folder}/.partial-{uuid4().hex}"
            files.pipe_file(partial_path, data)
            files.mv(partial_path, path)

    _retried(uri, "written", write)


def exists(uri: str) -> bool:
    """Whether there is such a file."""
    return bool(_retried(uri, "looked up", lambda files, path: files.exists(path)))


def remove(uri: str) -> None:
    """Delete a file if there is one."""
    _retried(uri, "deleted", lambda files, path: files.exists(path) and files.rm_file(path))


def list_folder(uri: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, in alphabetical order; none if missing."""
    try:
        entries = _retried(
            uri, "listed", lambda files, path: files.ls(path, detail=True, refresh=True)
        )
    except Unreachable as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return [], []
        raise
    names: dict[str, list[str]] = {"file": [], "directory": []}
    for entry in entries:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        # Object stores also list an empty object for the folder itself
        if name and entry["name"].rstrip("/") != resolve(uri)[1]:
            names["directory" if entry["type"] == "directory" else "file"].append(name)
    return sorted(names["file"]), sorted(names["directory"])


def walk_images(uri: str) -> Iterator[tuple[str, list[str]]]:
    """Images in a folder and its subfolders, a folder at a time.

    Hidden files are left out, and folders of results of earlier runs.

    Yields:
        The path of a folder relative to ``uri``, "" or with a slash at the end, and the names of
        the images in it in alphabetical order.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        files, folders = list_folder(join(uri, folder))
        if STATE in folders:
            continue
        yield (
            folder,
            [
                file
                for file in files
                if file[file.rfind(".") :].lower() in IMAGE_SUFFIXES and not file.startswith(".")
            ],
        )
        waiting += [f"{folder}{name}/" for name in reversed(folders) if not name.startswith(".")]


def join(base: str, name: str) -> str:
    """A file in a folder."""
    return f"{base.rstrip('/')}/{name}".rstrip("/") if name else base


def absolute(uri: str) -> str:
    """The same for all machines: a local path from the root, other URIs as they are."""
    return uri if is_remote(uri) else os.path.abspath(uri)  # noqa: PTH100


def is_remote(source: str | Path) -> bool:
    """Whether a source is a URI, not a path of this machine."""
    return "://" in str(source)


def resolve(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it.

    Raises:
        ValueError: The file system needs a package that is not installed, or is not known.
    """
    try:
        files, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{uri}: {error}") from None
    return files, str(path)


def _retried(uri: str, verb: str, work: Callable[[Any, str], T]) -> T:
    files, path = resolve(uri)
    for attempt in range(ATTEMPTS):
        try:
            return work(files, path)
        except FileNotFoundError as error:
            raise Unreachable(f"{uri}: no such file") from error
        except Exception as error:  # each file system has errors of its own
            if is_disk_full(error):
                raise DiskFull(
                    f"{uri}: no space left; results that are complete stay: free some space, then "
                    "run the same command again"
                ) from None
            names = {kind.__name__ for kind in type(error).__mro__}
            if names & set(_NO_CREDENTIALS):
                raise StorageRefused(
                    f"{uri}: no credentials ({error}); they must be set on each machine, in the "
                    "environment or in the files of the provider's command line"
                ) from None
            if isinstance(error, PermissionError) and verb != "read":
                raise StorageRefused(
                    f"{uri}: cannot be {verb}: access is denied ({error})"
                ) from None
            if isinstance(error, _PERMANENT):
                raise Unreachable(f"{uri}: cannot be {verb} ({error})") from error
            if attempt == ATTEMPTS - 1:
                raise Unreachable(
                    f"{uri}: cannot be {verb} after {ATTEMPTS} attempts "
                    f"({type(error).__name__}: {error})"
                ) from error
            time.sleep(FIRST_DELAY_S * 2**attempt)
    raise AssertionError
