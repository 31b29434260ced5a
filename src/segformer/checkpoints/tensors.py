"""Files of tensors: safetensors and pickles, read without running code and within bounds.

A file is opened before it is read: names and shapes come first, so that what does not fit is
found before a weight is touched, and the tensors then one at a time, so that a model takes little
more memory than its weights.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

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
    "BOOL": torch.bool,
}

_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "model_state", "module", "net", "network"),
    *("weights", "params", "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema"),
)
"""Keys under which training codes keep the weights; where there are several, the first counts."""


class CheckpointError(ValueError):
    """A model that cannot be loaded; the message says which file or tensor, and what to do."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, unread.

    Attributes:
        shape: Of the tensor.
        dtype: Of the tensor.
        start: First byte in a safetensors file.
        stop: One past the last.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = 0
    stop: int = 0


class TensorFile(ABC):
    """Tensors of one file, each read when it is asked for.

    Attributes:
        path: The file; of several, the first.
        files: All files.
        stored: Shapes and types of the tensors.
        metadata: What else the file says: safetensors' own strings, or a training code's entry.
    """

    def __init__(self, path: Path, stored: dict[str, Stored], metadata: dict[str, Any]):
        self.path, self.stored, self.metadata = path, stored, metadata
        self.files: tuple[Path, ...] = (path,)

    @abstractmethod
    def take(self, name: str) -> Tensor:
        """Read a tensor into memory of its own; each can be taken once."""


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


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors, whatever its name: its first bytes tell what it is.

    Raises:
        CheckpointError: It is neither safetensors nor a pickle of tensors alone, is truncated, or
            asks for more memory than its size warrants.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if head[8:9] == b"{":
        return _SafetensorsFile(path)
    if zipfile.is_zipfile(path) or head[:1] == b"\x80":
        return _PickleFile(path)
    if head.startswith((b"version https://git-lfs", b"version https:")):
        raise CheckpointError(
            f"{path}: a Git LFS pointer, not the weights themselves; run 'git lfs pull' there"
        )
    if head.lstrip()[:1] in (b"<", b"{"):
        raise CheckpointError(f"{path}: a text file (a web page saved by mistake?), not weights")
    kind = "an empty file" if not head else "neither safetensors nor a PyTorch file"
    raise CheckpointError(f"{path}: {kind}; it may be truncated: fetch it again")


class _SafetensorsFile(TensorFile):
    """Reads each tensor's bytes straight into memory of its own.

    The safetensors library maps the file instead; its pages then count beside the model's, which
    doubles the peak, and on Windows the file cannot be replaced while a model is in use.
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
                    _DTYPES[entry["dtype"]],
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
            reason = f"{type(error).__name__} {error}"[:200]
            raise CheckpointError(
                f"{path}: its safetensors header cannot be read: {reason}"
            ) from None
        for name, tensor in stored.items():
            bytes_needed = math.prod(tensor.shape) * tensor.dtype.itemsize
            sane = all(0 <= side < 1 << 48 for side in tensor.shape)
            if tensor.stop - tensor.start != bytes_needed or not sane:
                raise CheckpointError(
                    f"{path}: {name}: {tensor.stop - tensor.start} bytes for a shape of "
                    f"{list(tensor.shape)}; the file is damaged"
                )
            if not 8 + length <= tensor.start <= tensor.stop <= size:
                raise CheckpointError(
                    f"{path}: truncated: {name} ends at byte {tensor.stop:,}, "
                    f"the file has {size:,}; fetch it again"
                )
        places = sorted((t.start, t.stop) for t in stored.values() if t.stop > t.start)
        if any(one[1] > other[0] for one, other in pairwise(places)):
            raise CheckpointError(f"{path}: tensors that lie over each other; the file is damaged")
        super().__init__(path, stored, metadata if isinstance(metadata, dict) else {})

    def take(self, name: str) -> Tensor:
        """Read a tensor's bytes."""
        entry = self.stored[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if tensor.numel():
            view = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            with self.path.open("rb", buffering=0) as file:
                file.seek(entry.start)
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise CheckpointError(f"{self.path}: truncated while it was read: {name}")
                    done += count
        return tensor


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


class _PickleFile(TensorFile):
    """A file of ``torch.save``: read at once, its tensors handed out and forgotten one by one."""

    def __init__(self, path: Path):
        _check_archive(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load has no narrower type for a broken file
            raise CheckpointError(f"{path}: {_why_unreadable(error)}") from None
        self.tensors, metadata = _unwrap(content, path)
        self.handed_out: set[int] = set()
        stored = {name: Stored(tuple(t.shape), t.dtype) for name, t in self.tensors.items()}
        super().__init__(path, stored, metadata)

    def take(self, name: str) -> Tensor:
        """Hand a tensor out and forget it; one that shares its memory is copied."""
        tensor = self.tensors.pop(name)
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.numel() * tensor.itemsize
        if not alone or storage.data_ptr() in self.handed_out:
            return tensor.clone(memory_format=torch.contiguous_format)
        self.handed_out.add(storage.data_ptr())
        return tensor.contiguous()


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is, before it is unpacked."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: a damaged archive: {error}; fetch it again") from None
    if unpacked > 1.1 * path.stat().st_size + (1 << 20):
        raise CheckpointError(
            f"{path}: an archive of {path.stat().st_size:,} bytes that unpacks to {unpacked:,}; "
            "PyTorch stores weights uncompressed, so this is not its file"
        )


def _why_unreadable(error: Exception) -> str:
    """PyTorch's reason, without its advice to switch the protection off."""
    text = " ".join(str(error).split())
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"`([\w.]+)` .*allowed global", text)
    if found:
        return (
            f"holds more than tensors ({found[1]}), and reading such an object could run code. "
            "If you trust the file, keep its weights alone: "
            "torch.save({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, NEW)"
        )
    return f"cannot be read as a PyTorch file, it may be truncated: {text[:160] or repr(error)}"


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name inside what a training code saved, and its ``meta`` entry."""
    metadata: dict[str, Any] = {}
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        if isinstance(content.get("meta"), Mapping):
            metadata = dict(content["meta"])
        named = {k: v for k, v in content.items() if isinstance(k, str)}
        inner = [v for key in _WRAPPERS if isinstance(v := named.get(key), Mapping) and v]
        if inner:
            content = inner[0]
            continue
        if any(isinstance(value, Tensor) for value in named.values()):
            tensors = {k: v.detach() for k, v in named.items() if isinstance(v, Tensor)}
            for name, tensor in tensors.items():
                odd = tensor.is_quantized or tensor.is_nested
                plain = tensor.layout == torch.strided and not odd
                if not plain or tensor.device.type != "cpu":
                    raise CheckpointError(
                        f"{path}: {name}: sparse, quantized or without values, not plain numbers"
                    )
                if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
                    raise CheckpointError(
                        f"{path}: {name}: of shape {list(tensor.shape)}, with values for less"
                    )
            return tensors, metadata
        break
    if isinstance(content, Mapping):
        keys = ", ".join(map(str, list(content)[:6]))
        raise CheckpointError(f"{path}: holds no tensors by name (its entries: {keys or 'none'})")
    raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
