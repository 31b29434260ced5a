"""Summaries of any number of images: a line of JSON for each, appended when it is done.

The first line of a file is about the run, the last about how it ended; all others are rows::

    {"written_by": "segformer predict", "classes": [...], "sources": [...], "shard": null}
    {"image": "a.jpg", "height": 480, "width": 640, "files": [...], "class_fractions": {...}}
    {"image": "b.jpg", "error": "b.jpg: not an image in a known format"}
    {"finished": true, "done": 1, "failed": 1, "skipped": 0}

A run that continues an earlier one appends to its file. An image that had failed may then have a
second row; the last one counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from segformer.files import OutputExists, check_replaceable, whole_file
from segformer.prediction.names import NameSet
from segformer.prediction.outputs import WRITER
from segformer.prediction.sharding import Shard
from segformer.prediction.writing import Row, is_disk_full, no_space_for

_PARQUET_ROWS = 10_000
"""Rows of a row group, which are held in memory at once."""

_BEGIN = b'{"written_by": '
_ROW = b'{"image": '


def lines_path(out: Path, shard: Shard | None = None) -> Path:
    """The file of a run, or of its shard: ``summary.jsonl``, ``summary-00003-of-00016.jsonl``."""
    part = "" if shard is None else f"-{shard.number:05}-of-{shard.count:05}"
    return out / f"summary{part}.jsonl"


def find_lines(folder: Path) -> list[Path]:
    """The summaries of JSON lines in a folder; it is read once, without holding its names."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if is_lines(entry.name)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [folder / name for name in sorted(names) if _read_head(folder / name)]


def is_lines(name: str) -> bool:
    """Whether a file may be such a summary by its name."""
    return name.startswith("summary") and name.endswith(".jsonl")


def read_rows(paths: Iterable[Path]) -> Iterator[Row]:
    """The row of each image in summaries of JSON lines, the last one where there are several.

    The files are read twice, and 8 bytes are held for each image.
    """
    paths = list(paths)
    hashes = np.fromiter((hash(row["image"]) for row in _rows(paths)), np.int64)
    # np.unique gives the first of equal values, so it is asked about the reverse
    _, first = np.unique(hashes[::-1], return_index=True)
    counts = np.zeros(len(hashes), bool)
    counts[len(hashes) - 1 - first] = True
    for row, last in zip(_rows(paths), counts, strict=True):
        if last:
            yield row


def check_summary(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace summaries unasked.

    Raises:
        OutputExists: One of them exists.
    """
    try:
        check_replaceable(paths, overwrite=overwrite)
    except OutputExists as error:
        raise OutputExists(f"{error}, or --skip-existing to continue") from None


def check_parquet() -> None:
    """Refuse Parquet where pyarrow is not installed.

    Raises:
        ValueError: The message says how to install it.
    """
    if find_spec("pyarrow") is None:
        raise ValueError(
            "a summary as Parquet needs pyarrow; pip install 'segformer[parquet]' brings it"
        )


def write_parquet(rows: Iterable[Row], path: Path) -> None:
    """Write rows as a Parquet file; ``class_fractions`` is a map from names to fractions.

    Raises:
        ValueError: pyarrow is not installed.
    """
    check_parquet()
    import pyarrow.parquet as pq

    with whole_file(path) as partial, pq.ParquetWriter(partial, as_table([]).schema) as writer:
        upcoming = iter(rows)
        while some := list(islice(upcoming, _PARQUET_ROWS)):
            writer.write_table(as_table(some))


def as_table(rows: Sequence[Row]) -> Any:
    """Rows as an Arrow table; all tables have the same columns."""
    import pyarrow as pa

    schema = pa.schema(
        {
            "image": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
            "files": pa.list_(pa.string()),
            "class_fractions": pa.map_(pa.string(), pa.float64()),
            "mean_confidence": pa.float64(),
            "error": pa.string(),
        }
    )
    flat = [
        {**row, "class_fractions": list(row.get("class_fractions", {}).items())} for row in rows
    ]
    return pa.Table.from_pylist(flat, schema)


class SummaryLines:
    """The summary of a run while it is written.

    Args:
        path: From `lines_path`.
        head: What the first line says of the run.
        overwrite: Replace a file that exists.
        resume: Continue a file that exists.

    Attributes:
        done: Images with results in the runs that are continued.

    Raises:
        OutputExists: The file exists, and may not be replaced or continued.
        ValueError: The earlier run had other classes or other images.
    """

    def __init__(
        self, path: Path, head: dict[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> None:
        self.path = path
        self.done = NameSet()
        head = {"written_by": WRITER, **head}
        if resume and path.exists():
            self._check_head(head)
            rows = _rows([path])
            self.done = NameSet(row["image"] for row in rows if "error" not in row)
            _drop_partial_line(path)
            self._file = path.open("ab", buffering=0)
            return
        check_summary([path], overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self.append(head)

    def append(self, row: Row) -> None:
        """Add a line.

        Raises:
            DiskFull: There is no space for it.
        """
        # Names that are not valid UTF-8 are written with their bytes escaped
        line = json.dumps(row, ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode("utf-8", errors="backslashreplace"))
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise no_space_for(self.path) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_head(self, head: dict[str, Any]) -> None:
        former = _read_head(self.path)
        if not former:
            check_replaceable([self.path], overwrite=False)
        if former["classes"] != head["classes"]:
            raise ValueError(
                f"{self.path}: these are results of a model with other classes; choose another "
                "output folder"
            )
        if former["sources"] != head["sources"]:
            raise ValueError(
                f"{self.path}: these are results of {', '.join(former['sources'])}, not of "
                f"{', '.join(head['sources'])}; choose another output folder"
            )


def _read_head(path: Path) -> dict[str, Any]:
    """The first line of a summary; empty if the file is something else."""
    try:
        with path.open("rb") as file:
            if file.read(len(_BEGIN)) != _BEGIN:
                return {}
            found = json.loads(_BEGIN + file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("written_by") == WRITER else {}


def _rows(paths: Iterable[Path]) -> Iterator[Row]:
    """All rows of images; a last line that is not whole, left by a killed process, is none."""
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                if line.startswith(_ROW) and line.endswith(b"\n"):
                    yield json.loads(line)


def _drop_partial_line(path: Path) -> None:
    with path.open("r+b") as file:
        size = end = file.seek(0, 2)
        while end:
            begin = max(0, end - 65536)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            file.truncate(end)
