"""The work of an unfinished prediction on disk, from which a killed run is continued.

Beside the result ``NAME.tif`` there is a folder ``NAME.unfinished`` until it is complete, with
``job.json``, which says what is predicted, and a small GeoTIFF for each block that is done. Each
appears under its name when it is whole, so that what is there counts, whenever a run was killed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from segformer.files import OutputExists, whole_file, write_json
from segformer.image.scene_grid import Window
from segformer.raster.computing import EncodedBlock
from segformer.raster.tiling import Block, Tiling

logger = logging.getLogger(__name__)

_JOB = "job.json"
_EMPTY = ".empty"
_CONFIDENCE = "_confidence"


class Journal:
    """The blocks of one scene that are done.

    Args:
        folder: Where they are kept; made by the first block.
        job: What is predicted. A folder of another job is never continued.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]):
        self.folder = folder
        self.job: dict[str, Any] = json.loads(json.dumps(job))

    def begin(self, *, overwrite: bool) -> None:
        """Continue what is there, or begin.

        Args:
            overwrite: Remove the work of another job.

        Raises:
            OutputExists: There is the work of another job, and it is not to be overwritten.
        """
        found = self._found()
        if found is not None and found != self.job and not overwrite:
            raise OutputExists(
                f"{self.folder} holds an unfinished run with {_difference(found, self.job)}; run "
                "that command again to continue it, or pass --overwrite to begin again"
            )
        if found is not None and found != self.job:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob(".partial-*"):  # of a killed run
            partial.unlink()
        write_json(self.folder / _JOB, self.job)

    @property
    def is_begun(self) -> bool:
        """Whether there is work of this very job."""
        return self._found() == self.job

    def add(self, block: EncodedBlock) -> None:
        """Keep a block; safe against a kill at any moment.

        Raises:
            OSError: It cannot be written, as when the disk is full.
        """
        if block.label_map is None:
            with whole_file(self._path(block.pixels, _EMPTY)):
                return
        if block.confidence is not None:
            with whole_file(self._path(block.pixels, f"{_CONFIDENCE}.tif")) as partial:
                partial.write_bytes(block.confidence)
        with whole_file(self._path(block.pixels, ".tif")) as partial:
            partial.write_bytes(block.label_map)

    def done(self, tiling: Tiling) -> set[tuple[int, int]]:
        """Cells, as (row, column), that are in a block that is done."""
        cells: set[tuple[int, int]] = set()
        for pixels in (*self.files(), *self._windows(_EMPTY)):
            rows = tiling.rows.cells(pixels.top, pixels.bottom)
            columns = tiling.columns.cells(pixels.left, pixels.right)
            cells.update((row, column) for row in rows for column in columns)
        return cells

    def files(self, *, confidence: bool = False) -> dict[Window, Path]:
        """Pixels and files of the blocks that have any class."""
        ending = f"{_CONFIDENCE}.tif" if confidence else ".tif"
        return {pixels: self._path(pixels, ending) for pixels in self._windows(ending)}

    def remove(self) -> None:
        """Remove the folder, after the result is complete."""
        shutil.rmtree(self.folder)

    def _found(self) -> dict[str, Any] | None:
        """The job of the folder; empty if it is not one of this program; None if there is none."""
        if not self.folder.exists():
            return None
        try:
            found = json.loads((self.folder / _JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if self.folder.is_dir() and not any(
                not file.name.startswith(".partial-") for file in self.folder.iterdir()
            ):
                return None  # killed before anything was done
            raise OutputExists(
                f"{self.folder} has no {_JOB}, so it is no unfinished run; choose another --out"
            ) from None
        return found if isinstance(found, dict) else {}

    def _path(self, pixels: Window, ending: str) -> Path:
        return self.folder / ("_".join(map(str, pixels)) + ending)

    def _windows(self, ending: str) -> list[Window]:
        found = []
        for path in self.folder.glob(f"*{ending}"):
            numbers = path.name.removesuffix(ending).split("_")
            if len(numbers) == 4 and all(number.isdecimal() for number in numbers):
                found.append(Window(*map(int, numbers)))
        return sorted(found)


def missing_blocks(blocks: Iterable[Block], cells: set[tuple[int, int]]) -> list[Block]:
    """The blocks, or parts of them, that are not done, column by column.

    Args:
        blocks: From `segformer.raster.tiling.plan_blocks`; those that are done may be of another
            plan.
        cells: Those that are done, from `Journal.done`.
    """
    missing = [part for block in blocks for part in _missing_parts(block, cells)]
    return sorted(missing, key=lambda block: (block.pixels.left, block.pixels.top))


def _missing_parts(block: Block, cells: set[tuple[int, int]]) -> Iterator[Block]:
    pixels, axis = block.pixels, block.tiling.columns
    rows = block.tiling.rows.cells(pixels.top, pixels.bottom)
    columns = axis.cells(pixels.left, pixels.right)
    lacking = {c for c in columns if any((row, c) not in cells for row in rows)}
    for first in sorted(c for c in lacking if c - 1 not in lacking):
        last = next(c for c in count(first) if c + 1 not in lacking)
        left, right = axis.cuts[first], axis.cuts[last + 1]
        part = Window(pixels.top, left, pixels.height, right - left)
        yield Block(block.tiling, part.within(pixels))


def _difference(found: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    """In what two jobs differ, for a message."""
    for key, value in job.items():
        if found.get(key) != value:
            short = len(str(value)) + len(str(found.get(key))) < 120
            values = f" ({found.get(key)}, now {value})" if short and key in found else ""
            return f"another {key.replace('_', ' ')}{values}"
    return "other options"
