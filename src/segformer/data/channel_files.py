"""Images with a file for each channel: where the files are, and which belong together."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segformer.classes import printable
from segformer.data.errors import DatasetError
from segformer.data.pairing import visible_files
from segformer.image import IMAGE_SUFFIXES

_GROUPS = {"stem": "[^/]+", "parent": "(?:[^/]+/)*"}
"""What the placeholders stand for; the slash after a parent is part of it."""


@dataclass(frozen=True)
class ChannelFiles:
    """Where the channels of images are.

    Attributes:
        patterns: For each channel, by name and in order, the path of its file relative to
            ``root``, with ``{stem}``, ``{split}`` and ``{parent}`` in it.
        root: Folder of the data set.
    """

    patterns: Mapping[str, str]
    root: Path

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(self.patterns)

    @property
    def is_divided(self) -> bool:
        """Whether the paths depend on the split."""
        return "{split}" in next(iter(self.patterns.values()))

    def folder(self, split: str) -> Path:
        """The folder below which the files of the first channel are."""
        return self.root / _head(next(iter(self.patterns.values()))).format(split=split)

    def find(self, split: str) -> dict[Path, tuple[Path, ...]]:
        """The files of each image, also those that do not exist while others of it do.

        An image is named like the file of its first channel, without what the pattern adds to
        the stem.
        """
        patterns = list(self.patterns.values())
        heads = {_head(pattern).format(split=split) for pattern in patterns}
        folders = [self.root / head for head in heads if (self.root / head).is_dir()]
        files = {file for folder in folders for file in visible_files(folder, IMAGE_SUFFIXES)}
        expressions = [(_literals(p), re.compile(_expression(p, split))) for p in patterns]
        # In a folder of a.tif and a_nir.tif, the second is no image of its own
        expressions.sort(key=lambda pair: -pair[0])
        keys = set()
        for file in sorted(files):
            path = file.relative_to(self.root).as_posix()
            for _, expression in expressions:
                if match := expression.fullmatch(path):
                    keys.add((match.groupdict().get("parent") or "", match["stem"]))
                    break
        folder, suffix = self.folder(split), PurePosixPath(patterns[0]).suffix
        return {
            folder / f"{parent}{stem}{suffix}": tuple(
                self.root
                / pattern.replace("{parent}/", parent).format(
                    stem=stem, split=split, parent=parent.rstrip("/")
                )
                for pattern in patterns
            )
            for parent, stem in sorted(keys)
        }


def channel_files(entry: Any, root: Path) -> ChannelFiles:
    """Read the key ``images`` of ``dataset.yaml``.

    Raises:
        DatasetError: It is not a path for each channel.
    """
    if not isinstance(entry, dict) or not entry:
        raise DatasetError(
            "images must be a path for each channel: {red: images/{split}/{stem}_red.tif, nir: ...}"
        )
    patterns = {printable(str(name)): str(pattern) for name, pattern in entry.items()}
    for name, pattern in patterns.items():
        _check(name, pattern)
    if len({"{split}" in pattern for pattern in patterns.values()}) > 1:
        raise DatasetError("images: {split} must be in the paths of all channels, or in none")
    if len(set(patterns.values())) < len(entry):
        raise DatasetError("images: two channels have the same path or the same name")
    return ChannelFiles(patterns, root)


def _check(name: str, pattern: str) -> None:
    """Raise a DatasetError for a path that cannot be used."""
    where = f"images: {name}: {pattern!r}"
    try:
        fields = [part[1:] for part in string.Formatter().parse(pattern) if part[1] is not None]
    except ValueError as error:
        raise DatasetError(f"{where} is not a pattern ({error})") from None
    names = [field for field, *_ in fields]
    if (
        "stem" not in names
        or not set(names) <= {"stem", "split", "parent"}
        or any(specification or conversion for _, specification, conversion in fields)
    ):
        raise DatasetError(f"{where} must hold {{stem}}, and may hold {{split}} and {{parent}}")
    if names.count("parent") > 1 or "{parent}" in pattern.replace("{parent}/", ""):
        raise DatasetError(f"{where}: {{parent}} must be a folder of its own, once")
    if "{split}" in pattern[len(_head(pattern)) :] and "{split}" not in _head(pattern):
        raise DatasetError(f"{where}: {{split}} must be in a folder before {{stem}} and {{parent}}")
    if PurePosixPath(pattern).suffix.lower() not in IMAGE_SUFFIXES:
        raise DatasetError(
            f"{where} must end with the suffix of the files, one of "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if Path(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
        raise DatasetError(f"{where} must be inside the data set's folder, which path sets")


def _head(pattern: str) -> str:
    """The folders before the first that differs between the images of a split."""
    folders = pattern.split("/")[:-1]
    fixed = [i for i, folder in enumerate(folders) if "{stem}" in folder or "{parent}" in folder]
    return "/".join(folders[: fixed[0]] if fixed else folders)


def _literals(pattern: str) -> int:
    """Characters outside of placeholders."""
    return sum(len(text) for text, *_ in string.Formatter().parse(pattern))


def _expression(pattern: str, split: str) -> str:
    """A regular expression for the paths that a pattern stands for."""
    expression, seen = "", set[str]()
    for text, field, *_ in string.Formatter().parse(pattern.replace("{parent}/", "{parent}")):
        expression += re.escape(text)
        if field == "split":
            expression += re.escape(split)
        elif field is not None:
            expression += f"(?P={field})" if field in seen else f"(?P<{field}>{_GROUPS[field]})"
            seen.add(field)
    return expression
