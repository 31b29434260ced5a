"""Files of tensors: safetensors, pickles and HDF5, read without running code and in bounded memory.

A file is opened before it is read: names and shapes come first, so that weights that do not fit a
model are found before they are read. The tensors then come one at a time, so that loading a model
takes little more memory than its weights.
"""

from __future__ import annotations

import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segformer.checkpoints.errors import CheckpointError, printable

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""Of files of weights that are written and read."""
READ_SUFFIXES = (*WEIGHT_SUFFIXES, ".h5", ".keras")
"""Of files of weights that are read."""

_LARGEST_HEADER = 1 << 23
"""Bytes; the header of a B5 takes about 150 kB."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet read.

    Attributes:
        shape: Shape.
        dtype: Type; None for one that PyTorch does not have.
        start: First byte in the file, where the values lie in it as they are.
        stop: One past the last byte.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    start: int = 0
    stop: int = 0


class TensorFile(ABC):
    """Tensors of one file, each read when it is asked for.

    Attributes:
        path: The file; of several, the first.
        files: All files.
        stored: Shapes and types of the tensors.
        metadata: What else the file holds: strings of safetensors, or ``meta`` of a training code.
    """

    def __init__(self, path: Path, stored: dict[str, Stored], metadata: dict[str, Any]):
        self.path, self.stored, self.metadata = path, stored, metadata
        self.files: tuple[Path, ...] = (path,)

    @abstractmethod
    def take(self, name: str) -> Tensor:
        """Read a tensor into memory of its own; each can be read once."""


class Shards(TensorFile):
    """Several files as one."""

    def __init__(self, files: Iterable[TensorFile]):
        files = list(files)
        self.file_of = {name: file for file in files for name in file.stored}
        stored = {name: file.stored[name] for name, file in self.file_of.items()}
        super().__init__(files[0].path, stored, files[0].metadata)
        self.files = tuple(file.path for file in files)

    def take(self, name: str) -> Tensor:
        """As the file that holds it."""
        return self.file_of[name].take(name)


class SafetensorsFile(TensorFile):
    """Reads the bytes of each tensor straight into its memory.

    The safetensors library maps the file into memory. Copying each tensor out of the mapping has
    twice the peak memory (2.0 instead of 1.0 times the weights of a B5) and took ten times as long;
    not copying them keeps the file open, which then cannot be replaced on Windows.
    """

    def __init__(self, path: Path):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LARGEST_HEADER, size - 8):
                raise CheckpointError(
                    f"{path}: truncated or not safetensors: it announces a header of {length:,} "
                    f"bytes, the file has {size:,} and headers at most {_LARGEST_HEADER:,}"
                )
            header = file.read(length)
        try:
            entries = json.loads(header, object_pairs_hook=_without_duplicates)
            metadata = entries.pop("__metadata__", {})
            stored = {
                name: Stored(
                    tuple(int(n) for n in entry["shape"]),
                    _DTYPES.get(str(entry["dtype"])),
                    *(8 + length + int(offset) for offset in entry["data_offsets"]),
                )
                for name, entry in entries.items()
            }
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as error:
            reason = printable(f"{type(error).__name__} {error}")
            raise CheckpointError(
                f"{path}: its safetensors header cannot be read: {reason}"
            ) from None
        for name, tensor in stored.items():
            sane = len(tensor.shape) <= 64 and all(0 <= side < 1 << 48 for side in tensor.shape)
            if sane and tensor.dtype is not None:
                sane = tensor.stop - tensor.start == math.prod(tensor.shape) * tensor.dtype.itemsize
            if not sane:
                raise CheckpointError(
                    f"{path}: {printable(name)}: {tensor.stop - tensor.start} bytes for a shape of "
                    f"{printable(list(tensor.shape))}; the file is damaged"
                )
            if not 8 + length <= tensor.start <= tensor.stop <= size:
                raise CheckpointError(
                    f"{path}: truncated: {printable(name)} ends at byte {tensor.stop:,}, "
                    f"the file has {size:,}; download it again"
                )
        check_places(path, stored)
        super().__init__(path, stored, metadata if isinstance(metadata, dict) else {})

    def take(self, name: str) -> Tensor:
        """Read a tensor's bytes."""
        return read_bytes(self.path, name, self.stored[name])


def read_bytes(path: Path, name: str, entry: Stored) -> Tensor:
    """Read a tensor that lies in a file as its plain little-endian values.

    Raises:
        CheckpointError: The file became shorter since it was opened.
    """
    assert entry.dtype is not None
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if tensor.numel():
        view = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        with path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{path}: truncated while it was read: {printable(name)}")
                done += count
        if sys.byteorder == "big" and tensor.itemsize > 1:
            swapped = tensor.view(-1).view(torch.uint8).view(-1, tensor.itemsize).flip(1)
            tensor = swapped.reshape(-1).view(tensor.dtype).view(entry.shape)
    return tensor


def check_places(path: Path, stored: Mapping[str, Stored]) -> None:
    """Check that no bytes of a file belong to two tensors.

    Raises:
        CheckpointError: Two of them do.
    """
    places = sorted((t.start, t.stop) for t in stored.values() if t.stop > t.start)
    if any(one[1] > other[0] for one, other in pairwise(places)):
        raise CheckpointError(f"{path}: its tensors overlap; the file is damaged")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)
