"""The list of samples of a run, by which a resumed run notices that its data set has changed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

Files = Mapping[str, Iterable[tuple[str, tuple[Path, ...]]]]
"""For each split, the name and the files of each sample."""


def pack_samples(splits: Files) -> Tensor:
    """Names of the samples and sizes of their files, compressed, as uint8 (N,)."""
    lines = [
        f"{split}/{name}\t{' '.join(map(_size, files))}"
        for split, samples in splits.items()
        for name, files in samples
    ]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return torch.frombuffer(bytearray(zlib.compress(text, 1)), dtype=torch.uint8)


def describe_changes(before: Tensor, now: Tensor) -> str | None:
    """What differs between two lists in words, or None if they are equal."""
    old, new = _unpack(before), _unpack(now)
    if list(old.items()) == list(new.items()):
        return None
    differences = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed in size": [name for name in new if name in old and new[name] != old[name]],
    }
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in differences.items()
        if names
    ]
    return "; ".join(parts) or "the order of the samples"


def sample_names(packed: Tensor) -> dict[str, list[str]]:
    """Names of the samples by split."""
    names: dict[str, list[str]] = {}
    for path in _unpack(packed):
        split, _, name = path.partition("/")
        names.setdefault(split, []).append(name)
    return names


def _size(file: Path) -> str:
    """Size in bytes; - where the file is missing."""
    try:
        return str(file.stat().st_size)
    except FileNotFoundError:
        return "-"


def _unpack(packed: Tensor) -> dict[str, str]:
    text = zlib.decompress(packed.numpy().tobytes()).decode("utf-8", "surrogateescape")
    rows = (line.rpartition("\t") for line in text.split("\n") if line)
    return {name: sizes for name, _, sizes in rows}
