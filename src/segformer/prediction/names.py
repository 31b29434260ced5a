"""Sets of names that take 8 bytes for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np


class NameSet:
    """A set of names, of which 64-bit hashes are kept.

    Whether a name is in the set is answered wrongly with a probability of the size of the set
    divided by 2^64: of a million questions to a set of a million, one in 20 million runs has one
    wrong answer.

    Args:
        names: The names.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._hashes = np.sort(np.fromiter(map(hash, names), np.int64))

    def __contains__(self, name: str) -> bool:
        wanted = hash(name)
        at = int(np.searchsorted(self._hashes, wanted))
        return at < len(self._hashes) and bool(self._hashes[at] == wanted)

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def repeated(cls, names: Iterable[str]) -> NameSet:
        """Those of the names that occur more than once."""
        found = cls(names)
        again = found._hashes[1:] == found._hashes[:-1]
        found._hashes = np.unique(found._hashes[1:][again])
        return found

    @classmethod
    def of_folder(cls, folder: Path) -> NameSet:
        """The files in a folder, which need not exist; it is read once, and no file is opened."""
        try:
            with os.scandir(folder) as entries:
                return cls(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return cls()


def result_names(files: Sequence[str]) -> Iterator[str]:
    """Names of the results of a folder's images, in order, without suffix.

    The suffix is kept where two images would get the same results: ``a.jpg`` and ``a.png`` stay
    ``a.jpg`` and ``a.png``, as both would become ``a``. Upper and lower case count as the same.
    """
    repeated = NameSet.repeated(_stem(file).lower() for file in files)
    if not len(repeated):
        yield from map(_stem, files)
        return
    for file in files:
        stem = _stem(file)
        yield file if stem.lower() in repeated else stem


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]  # noqa: PTH122
