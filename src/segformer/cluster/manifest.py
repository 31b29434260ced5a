"""The list of a run's images in Parquet files, and the work in ranges of it.

The list is in the output folder, in ``_segformer/manifest``, so that no process needs all of it:
workers read the range that they are given, and what a run has done is known from the names of its
summaries. The number of names in a part is in its file name::

    manifest/part-000003.100000.parquet        columns uri and name
    summary/part-000003.0001000-0002000.parquet
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from itertools import islice
from typing import Any

from segformer.cluster import storage
from segformer.cluster.storage import STATE, join
from segformer.prediction.names import NameSet, result_names

PART_NAMES = 100_000
"""Names in a part of the manifest."""

_PART = re.compile(r"part-(\d+)\.(\d+)\.parquet")
_RANGE = re.compile(r"part-(\d+)\.(\d+)-(\d+)\.\w+")


@dataclass(frozen=True)
class Part:
    """A file of the manifest.

    Attributes:
        number: From 0.
        count: How many names it has.
    """

    number: int
    count: int

    @property
    def file(self) -> str:
        """Its path in the output folder."""
        return f"{STATE}/manifest/part-{self.number:06}.{self.count}.parquet"


@dataclass(frozen=True, order=True)
class Unit:
    """The images that a worker is given at once: a range of a part.

    Attributes:
        part: Number of the part.
        count: How many names the part has.
        start: First row.
        stop: Row after the last.
    """

    part: int
    count: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def stem(self) -> str:
        """Name of its summary, without suffix."""
        return f"part-{self.part:06}.{self.start:07}-{self.stop:07}"

    @property
    def summary(self) -> str:
        """Path of its summary in the output folder; it exists when the unit is done."""
        return f"{STATE}/summary/{self.stem}.parquet"

    @property
    def failures(self) -> str:
        """Path of the list of its images that failed; it exists if there are any."""
        return f"{STATE}/failures/{self.stem}.jsonl"

    def halves(self) -> tuple[Unit, Unit]:
        """Two units with the same images."""
        middle = (self.start + self.stop) // 2
        return (
            Unit(self.part, self.count, self.start, middle),
            Unit(self.part, self.count, middle, self.stop),
        )


def list_sources(sources: Sequence[str], out: str) -> Iterator[tuple[str, str]]:
    """The images of a run: where they are, and the names of their results without suffix.

    A name follows from the place of an image below its source, so it is the same in each run. With
    several folders, it begins with the name of the folder.

    Args:
        sources: Folders, files, patterns, and Parquet files with a column ``uri`` and, if the
            results are to be named so, ``name``.
        out: Output folder, which is not searched.

    Raises:
        ValueError: A source has no images, or results of two images would have the same name.
    """
    files: list[str] = []
    folders: list[str] = []
    for source in map(storage.absolute, sources):
        if source.endswith(".parquet"):
            yield from _read_list(source)
        elif has_magic(source):
            filesystem, pattern = storage.resolve(source)
            found = [
                filesystem.unstrip_protocol(path) if storage.is_remote(source) else path
                for path in sorted(filesystem.glob(pattern))
                if not path.rpartition("/")[2].startswith(".")
            ]
            if not found:
                raise ValueError(f"{source}: no image matches this pattern")
            files += found
        elif storage.resolve(source)[0].isdir(storage.resolve(source)[1]):
            folders.append(source)
        else:
            files.append(source)
    yield from _named_files(files)
    prefixes = [f"{folder.rstrip('/').rpartition('/')[2]}/" for folder in folders]
    if len(set(prefixes)) < len(prefixes):
        raise ValueError("two folders have the same name; predict them into different --out")
    for folder, prefix in zip(folders, prefixes, strict=True):
        yield from _walk(folder, prefix if len(folders) > 1 or files else "")


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
    empty = True
    for inside, images in storage.walk_images(folder):
        for image, name in zip(images, result_names(images), strict=True):
            empty = False
            yield join(folder, inside + image), prefix + inside + name
    if empty:
        raise ValueError(f"{folder}: there are no images in this folder")


def _named_files(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    bases = [file.rpartition("/")[2] for file in files]
    for base in bases:
        if bases.count(base) > 1:
            raise ValueError(f"two images are called {base}; predict them into different --out")
    yield from zip(files, result_names(bases), strict=True)


def _read_list(source: str) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet as pq

    filesystem, path = storage.resolve(source)
    with filesystem.open(path) as file:
        table = pq.ParquetFile(file)
        if "uri" not in table.schema_arrow.names:
            raise ValueError(f"{source}: a list of images needs a column uri")
        named = "name" in table.schema_arrow.names
        for batch in table.iter_batches(columns=["uri", "name"] if named else ["uri"]):
            uris = batch.column("uri").to_pylist()
            # Without names, the whole path: no two are the same
            names = (
                batch.column("name").to_pylist()
                if named
                else [uri.partition("://")[2] or uri.lstrip("/") for uri in uris]
            )
            yield from zip(uris, names, strict=True)


def write_parts(
    images: Iterable[tuple[str, str]], out: str, *, existing: Sequence[Part] = ()
) -> Iterator[Part]:
    """Write the images that are not in the manifest yet, a part at a time.

    Args:
        images: From `list_sources`.
        out: Output folder.
        existing: The parts that there are.

    Yields:
        Each part, when it has been written.
    """
    known = NameSet(uri for part in existing for uri, _ in read_part(out, part))
    new = ((uri, name) for uri, name in images if uri not in known)
    number = max((part.number + 1 for part in existing), default=0)
    while rows := list(islice(new, PART_NAMES)):
        part = Part(number, len(rows))
        write_table(join(out, part.file), _names_table(rows))
        yield part
        number += 1


def _names_table(rows: Sequence[tuple[str, str]]) -> Any:
    import pyarrow as pa

    return pa.table({"uri": [uri for uri, _ in rows], "name": [name for _, name in rows]})


def write_table(uri: str, table: Any) -> None:
    """Write an Arrow table as a Parquet file."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue())


def read_table(uri: str) -> Any:
    """The Arrow table of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def read_part(
    out: str, part: Part, start: int = 0, stop: int | None = None
) -> list[tuple[str, str]]:
    """Rows of a part: where the images are, and the names of their results."""
    table = read_table(join(out, part.file)).slice(
        start, (part.count if stop is None else stop) - start
    )
    return list(zip(table["uri"].to_pylist(), table["name"].to_pylist(), strict=True))


def find_parts(out: str) -> list[Part]:
    """The parts that an earlier run has written, without opening them."""
    files, _ = storage.list_folder(join(out, f"{STATE}/manifest"))
    return [Part(int(match[1]), int(match[2])) for file in files if (match := _PART.match(file))]


def find_done(out: str, *, retry_failed: bool = True) -> dict[int, list[tuple[int, int]]]:
    """Ranges of each part that earlier runs have done, without opening their summaries.

    Args:
        out: Output folder.
        retry_failed: Leave out the ranges in which images failed.
    """
    files, _ = storage.list_folder(join(out, f"{STATE}/summary"))
    failed: set[str] = set()
    if retry_failed:
        lists, _ = storage.list_folder(join(out, f"{STATE}/failures"))
        failed = {name.rpartition(".")[0] for name in lists}
    done: dict[int, list[tuple[int, int]]] = {}
    for file in files:
        match = _RANGE.match(file)
        if match and file.rpartition(".")[0] not in failed:
            done.setdefault(int(match[1]), []).append((int(match[2]), int(match[3])))
    return done


def remaining_units(part: Part, done: Sequence[tuple[int, int]], size: int) -> Iterator[Unit]:
    """The units of a part that have not been done.

    Args:
        part: The part.
        done: Its ranges that are done.
        size: Images of a unit.
    """
    at = 0
    for start, stop in [*sorted(done), (part.count, part.count)]:
        while at < start:
            # Ends where a whole unit would, so that a second run has the same units
            end = min(start, at - at % size + size)
            yield Unit(part.number, part.count, at, end)
            at = end
        at = max(at, stop)
