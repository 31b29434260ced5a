"""Files of ``torch.save``, read with ``weights_only=True``, and advice on those it refuses."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from segformer.checkpoints.errors import CheckpointError, printable
from segformer.checkpoints.tensors import ZIP_MAGIC, Stored, TensorFile

_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "model_state", "module", "net", "network"),
    *("weights", "params", "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema"),
)
"""Keys under which training codes store the weights; of several, the first is taken."""

_RESUME_KEYS = {"architecture", "task", "model", "optimizer"}
"""Of the resume checkpoint of a training run of this package."""

_LEGACY_HEADERS = 3
"""Pickles before the content in a file that is no archive: magic number, version, machine."""


class PickleFile(TensorFile):
    """A file of ``torch.save``: read at once, its tensors handed out and released one by one."""

    def __init__(self, path: Path):
        _check_archive(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # torch.load has no narrower type for a damaged file
            raise CheckpointError(f"{path}: {_why_unreadable(error, path)}") from None
        self.tensors, metadata = _unwrap(content, path)
        self.handed_out: set[int] = set()
        stored = {name: Stored(tuple(t.shape), t.dtype) for name, t in self.tensors.items()}
        super().__init__(path, stored, metadata)

    def take(self, name: str) -> Tensor:
        """Hand a tensor out and release it; one whose memory other tensors use is copied."""
        tensor = self.tensors.pop(name)
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.numel() * tensor.itemsize
        if not alone or storage.data_ptr() in self.handed_out:
            return tensor.clone(memory_format=torch.contiguous_format)
        self.handed_out.add(storage.data_ptr())
        return tensor.contiguous()


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to far more than its size, before it is unpacked."""
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # zipfile raises many types for a damaged directory
        reason = printable(error)
        raise CheckpointError(f"{path}: a damaged archive: {reason}; download it again") from None
    if unpacked > 1.1 * path.stat().st_size + (1 << 20):
        raise CheckpointError(
            f"{path}: an archive of {path.stat().st_size:,} bytes that unpacks to {unpacked:,}; "
            "PyTorch stores weights uncompressed, so it did not write this file"
        )


def _why_unreadable(error: Exception, path: Path) -> str:
    """PyTorch's reason, without its advice to switch the protection off."""
    text = " ".join(str(error).split())
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"`([\w.]+)` .*allowed global", text)
    if found:
        return (
            f"holds more than tensors ({printable(found[1])}), and reading such an object could "
            f"run code. If you trust the file, {_advice(path)}"
        )
    return (
        f"cannot be read as a PyTorch file, it may be truncated: {printable(text or repr(error))}"
    )


def _advice(path: Path) -> str:
    """How to get the weights out of a pickle of other objects, from its unread instructions."""
    load = "torch.load(FILE, weights_only=False)"
    try:
        steps = list(_instructions(path))
    except Exception:  # not a pickle that can be followed
        steps = []
    if steps and steps[0][0] == "object":
        name = steps[0][1]
        if re.match(r"segformer\.model\.segformer\.", name):
            return f"write the model in it as a folder: {load}.save_pretrained(FOLDER)"
        return (
            f"store the weights of the model in it ({printable(name)}) where that class can be "
            f"imported: torch.save({load}.state_dict(), NEW)"
        )
    values: dict[str, str] = {}
    for (kind, text), (following, _) in pairwise(steps):
        if kind == "string":
            values.setdefault(text, following)
    for key in _WRAPPERS:
        if values.get(key) == "mapping":
            return f"store its weights alone: torch.save({load}[{key!r}], NEW)"
        if values.get(key) == "object":
            return f"store its weights alone: torch.save({load}[{key!r}].state_dict(), NEW)"
    return f"store its weights alone, as torch.save(model.state_dict(), NEW) does, from {load}"


def _instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Steps of a pickle: ("string", text), ("mapping", ""), ("object", class) or ("other", "")."""
    with path.open("rb") as file:
        archived = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        file.seek(0)
        if not archived:
            for _ in range(_LEGACY_HEADERS):
                for _ in pickletools.genops(file):
                    pass
            # Such a file stores "module" and the class of a model before the model
            steps = [*_steps(file), ("other", "")]
            for step, (following, _) in pairwise(steps):
                if step != ("string", "module") or following != "object":
                    yield step
            return
        with zipfile.ZipFile(file) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as content:
                yield from _steps(content)


def _steps(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("PROTO", "FRAME", "MARK") or "PUT" in name or name == "MEMOIZE":
            continue
        if "UNICODE" in name:
            texts.append(str(argument))
            yield "string", texts[-1]
        elif name in ("EMPTY_DICT", "DICT"):
            yield "mapping", ""
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = str(argument).split() if name == "GLOBAL" else texts[-2:]
            qualified = ".".join(parts)
            mapping = qualified == "collections.OrderedDict"
            yield ("mapping", "") if mapping else ("object", qualified)
        else:
            yield "other", ""


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name inside what a training code saved, and its ``meta`` entry."""
    metadata: dict[str, Any] = {}
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        if content.keys() >= _RESUME_KEYS:
            raise CheckpointError(
                f"{path}: the resume checkpoint of a training run, not a model; the models of the "
                "run are in the folders best/ and last/ beside it"
            )
        if isinstance(content.get("meta"), Mapping):
            metadata = dict(content["meta"])
        named = {k: v for k, v in content.items() if isinstance(k, str)}
        inner = [v for key in _WRAPPERS if isinstance(v := named.get(key), Mapping) and v]
        if inner:
            content = inner[0]
            continue
        tensors = {k: v.detach() for k, v in named.items() if isinstance(v, Tensor)}
        if tensors:
            for name, tensor in tensors.items():
                _check_plain(name, tensor, path)
            return tensors, metadata
        break
    if isinstance(content, Mapping):
        keys = ", ".join(printable(key) for key in list(content)[:6])
        raise CheckpointError(f"{path}: holds no tensors by name (its entries: {keys or 'none'})")
    raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    odd = tensor.is_quantized or tensor.is_nested
    plain = tensor.layout == torch.strided and not odd
    if not plain or tensor.device.type != "cpu":
        raise CheckpointError(
            f"{path}: {printable(name)}: sparse, quantized or without values, not plain numbers"
        )
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: {printable(name)}: has the shape {list(tensor.shape)}, but values for less"
        )
