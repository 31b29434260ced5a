"""HDF5 files: where each array lies, found with h5py but read without it.

h5py reads the tree of groups and the header of each dataset. Only what Keras writes is accepted:
plain arrays that lie in the file in one piece. Links to other files are refused and never followed,
filters, attributes and objects are never read, and the values are read straight from their place.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segformer.checkpoints.errors import CheckpointError, printable
from segformer.checkpoints.tensors import Stored, check_places

if TYPE_CHECKING:
    import h5py

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

_DEEPEST = 24
"""Largest depth of groups; Keras nests about ten."""
_MOST_OBJECTS = 20_000
"""Largest number of groups and datasets; a B5 of KerasHub has about 3000."""
_LARGEST_RANK = 8


def locate(path: Path, start: int = 0, size: int | None = None) -> dict[str, Stored]:
    """Where the arrays of an HDF5 file lie.

    Args:
        path: The file, or an archive that holds one uncompressed.
        start: First byte of the HDF5 file in ``path``.
        size: Bytes of the HDF5 file. Default: up to the end.

    Returns:
        Places in ``path`` by the paths of the datasets, such as ``layers/dense/vars/0``. The type
        is None where it is none that PyTorch has.

    Raises:
        CheckpointError: h5py is missing, the file is damaged, or it holds what Keras does not
            write.
    """
    size = path.stat().st_size - start if size is None else size
    try:
        with _opened(path, start, size) as file:
            stored = {
                name: _place(path, name, dataset, start, size)
                for name, dataset in _datasets(path, file)
            }
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # h5py raises many types for a damaged file
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise CheckpointError(
            f"{path}: cannot be read as an HDF5 file, it may be truncated: {reason}"
        ) from None
    check_places(path, stored)
    return stored


@contextmanager
def _opened(path: Path, start: int, size: int) -> Iterator[h5py.File]:
    try:
        import h5py
    except ImportError:
        raise CheckpointError(
            f'{path}: reading HDF5 files needs h5py: pip install "segformer[keras]"'
        ) from None
    if start == 0:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    else:
        with path.open("rb") as whole, h5py.File(_Part(whole, start, size), "r") as file:
            yield file


def _datasets(path: Path, file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """The datasets by their paths, without following a link to another file."""
    import h5py

    waiting: list[tuple[str, Any]] = [("", file)]
    objects = 0
    while waiting:
        where, group = waiting.pop()
        if where.count("/") >= _DEEPEST:
            raise CheckpointError(f"{path}: its groups are nested deeper than {_DEEPEST}")
        for key in group:
            objects += 1
            if objects > _MOST_OBJECTS:
                raise CheckpointError(f"{path}: holds more than {_MOST_OBJECTS:,} objects")
            name = f"{where}/{key}" if where else str(key)
            if group.get(key, getlink=True, getclass=True) is not h5py.HardLink:
                raise CheckpointError(
                    f"{path}: {printable(name)}: a link to another place or file, which Keras does "
                    "not write"
                )
            found = group[key]
            if isinstance(found, h5py.Dataset):
                yield name, found
            elif isinstance(found, h5py.Group):
                waiting.append((name, found))
            # Named types hold no values


def _place(path: Path, name: str, dataset: h5py.Dataset, start: int, size: int) -> Stored:
    import h5py

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: {printable(name)}: {reason}")

    properties = dataset.id.get_create_plist()
    if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
        raise refuse("its values lie in another file; only files that hold all values are read")
    if dataset.shape is None or len(dataset.shape) > _LARGEST_RANK:
        raise refuse("not an array of numbers")
    shape = tuple(int(side) for side in dataset.shape)
    dtype = _dtype(dataset.id.get_type())
    if dtype is None:
        return Stored(shape, None)
    if properties.get_layout() != h5py.h5d.CONTIGUOUS:
        raise refuse("stored compressed or in pieces, which Keras does not write")
    length = math.prod(shape) * dtype.itemsize
    if length == 0:
        return Stored(shape, dtype)
    offset = dataset.id.get_offset()
    if offset is None:
        raise refuse(f"has the shape {printable(list(shape))}, but no values")
    if offset + length > size or dataset.id.get_storage_size() != length:
        raise refuse(
            f"{length:,} bytes for its shape {printable(list(shape))} are not there; the file is "
            "truncated or damaged"
        )
    return Stored(shape, dtype, start + offset, start + offset + length)


def _dtype(stored: Any) -> torch.dtype | None:
    """The type whose values have the same bytes, or None."""
    from h5py import h5t

    known = {
        "IEEE_F16LE": torch.float16,
        "IEEE_F32LE": torch.float32,
        "IEEE_F64LE": torch.float64,
        "STD_I8LE": torch.int8,
        "STD_U8LE": torch.uint8,
        "STD_I32LE": torch.int32,
        "STD_I64LE": torch.int64,
    }
    return next((dtype for name, dtype in known.items() if stored == getattr(h5t, name)), None)


class _Part(io.RawIOBase):
    """Some bytes of a file as a file of their own."""

    def __init__(self, whole: io.BufferedReader, start: int, size: int):
        self.whole, self.start, self.size, self.place = whole, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = base + offset
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self.place < 0 or self.place + len(view) > self.size:
            raise OSError("a read beyond the end of the file")
        self.whole.seek(self.start + self.place)
        count = self.whole.readinto(view)
        if count != len(view):
            raise OSError("the file became shorter while it was read")
        self.place += count
        return count
