"""From a raster of class ids to polygons in pixel coordinates.

Legend: H W pixels, N regions, V nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.raster.areas import GroundPlane, read_labels, row_blocks
from segformer.raster.polygons_confidence import add_confidences
from segformer.raster.polygons_regions import Regions, TooManyPolygons, oriented, starts_of
from segformer.raster.polygons_strips import StripJoiner

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_BYTES_PER_EDGE = 24
"""Memory that an edge of a pixel in an outline takes at most, which is where each region is one
pixel. Measured: 5 for smooth regions, 10 with isolated pixels, 15 for noise of five classes."""

_BLOCK_PIXELS = 1 << 22
"""Pixels that are compared with their neighbors at a time."""

_STRIP_EDGES = 1 << 20
"""Edges of pixels in the outlines of a strip."""

_STRIP_BYTES_PER_EDGE = 300
"""Memory that each of them takes at most while the strip is traced, measured with noise."""


@dataclass
class LabelStore:
    """Class ids of a raster in files that are mapped into memory, which the system can drop.

    Attributes:
        ids: (H, W) class ids; any value where ``mask`` is 0.
        mask: (H, W) 1 where there is a class, else 0; uint8.
    """

    ids: NDArray[np.integer]
    mask: NDArray[np.uint8]

    def merge_small_regions(self, size: int) -> None:
        """Give regions of fewer than ``size`` pixels the class of their largest neighbor.

        The size grows in steps, so that clusters of small regions, none of which has a large
        neighbor, first grow together. A region without any neighbor stays.
        """
        from rasterio.features import sieve

        step = 1
        while step < size:
            step = min(size, 4 * step)
            sieve(self.ids, step, out=self.ids, mask=self.mask, connectivity=4)

    def leave_out(self, class_ids: NDArray[np.integer]) -> None:
        """Take all pixels of some classes out of the mask."""
        for rows in self._blocks():
            self.mask[rows] &= ~np.isin(self.ids[rows], class_ids)

    def count_edges(self) -> NDArray[np.int64]:
        """(H + 1,) edges of pixels in the outlines of all regions, by row.

        Edges between rows belong to the row below them. Those between two regions count twice.
        Outlines have at most so many corners, and there are at most a quarter as many regions.
        """
        edges = np.zeros(len(self.ids) + 1, np.int64)
        above = np.full((1, self.ids.shape[1]), -1, np.int32)
        for rows in self._blocks():
            values = np.where(self.mask[rows], self.ids[rows].astype(np.int32), -1)
            values = np.concatenate([above, values])
            edges[rows] += _edges(values[:-1], values[1:])
            edges[rows] += _edges(values[1:, :-1], values[1:, 1:])
            edges[rows] += (values[1:, [0, -1]] >= 0).sum(axis=1)
            above = values[-1:]
        edges[-1] = (above >= 0).sum()
        return edges

    def find_nodes(self) -> NDArray[np.int64]:
        """(V,) corners of pixels at which at least three edges of regions meet, in order.

        The upper 32 bits of each are its row, the lower its column.
        """
        height, width = self.ids.shape
        nodes = [np.empty(0, np.int64)]
        above = np.full((1, width + 2), -1, np.int32)
        for rows in [*self._blocks(), slice(height, height + 1)]:
            values = np.full((max(1, len(self.ids[rows])) + 1, width + 2), -1, np.int32)
            values[0] = above
            if rows.start < height:
                values[1:, 1:-1] = np.where(self.mask[rows], self.ids[rows].astype(np.int32), -1)
            beside = values[:, 1:] != values[:, :-1]
            over = values[1:] != values[:-1]
            meeting = beside[1:].astype(np.uint8) + beside[:-1] + over[:, 1:] + over[:, :-1]
            y, x = np.nonzero(meeting >= 3)
            nodes.append((y + rows.start) << 32 | x)
            above = values[-1:]
        return np.concatenate(nodes)

    def trace(self, edges: NDArray[np.int64], values: DatasetReader | None) -> Iterator[Regions]:
        """The regions, whose pixels are connected by their sides, some at a time.

        Args:
            edges: From `count_edges`.
            values: Raster of confidences on the same grid.
        """
        joiner = StripJoiner(self.ids, self.mask)
        for rows in _strips(edges):
            strip = self._trace_rows(rows)
            if values is not None:
                add_confidences(strip, values, rows)
            yield joiner.add(strip, rows)

    def _trace_rows(self, rows: slice) -> Regions:
        """The regions of some rows alone."""
        from rasterio import Affine
        from rasterio.features import shapes

        rings, rings_of, class_ids = [np.empty((0, 2), np.int32)], [], []
        place = Affine.translation(0, rows.start)
        for outline, value in shapes(self.ids[rows], self.mask[rows], transform=place):
            found = [np.array(ring, np.int32) for ring in outline["coordinates"]]
            rings += found
            rings_of.append(len(found))
            class_ids.append(int(value))
        corners = np.concatenate(rings)
        ring_starts = starts_of(np.array([len(ring) for ring in rings[1:]], np.int64))
        region_starts = starts_of(np.array(rings_of, np.int64))
        return Regions(
            oriented(corners, ring_starts, region_starts[:-1]),
            ring_starts,
            region_starts,
            np.array(class_ids, np.int32),
            np.zeros(len(class_ids)),
            np.zeros(len(class_ids)),
        )

    def _blocks(self) -> Iterator[slice]:
        height = max(1, _BLOCK_PIXELS // max(1, self.ids.shape[1]))
        for top in range(0, len(self.ids), height):
            yield slice(top, min(top + height, len(self.ids)))


@contextmanager
def stored_labels(dataset: DatasetReader, classes: ClassSet, folder: Path) -> Iterator[LabelStore]:
    """Class ids of a raster in temporary files, of 2 to 3 bytes per pixel.

    Args:
        dataset: The raster, open.
        classes: Names of the class ids.
        folder: Where the files are while they are needed.

    Raises:
        ValueError: A valid pixel has a value that is no class.
        OSError: There is no space on the disk.
    """
    shape = (dataset.height, dataset.width)
    dtype = np.uint8 if len(classes) <= 256 else np.uint16
    with TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
        ids = _mapped(Path(temporary) / "ids", dtype, shape)
        mask = _mapped(Path(temporary) / "mask", np.uint8, shape)
        for window in row_blocks(dataset):
            rows = slice(int(window.row_off), int(window.row_off + window.height))
            values, valid = read_labels(dataset, window, classes)
            ids[rows], mask[rows] = np.where(valid, values, 0), valid
        try:
            yield LabelStore(ids, mask)
        finally:
            del ids, mask


def _mapped(
    path: Path, dtype: type[np.unsignedinteger], shape: tuple[int, int]
) -> NDArray[np.unsignedinteger]:
    """A new file that is mapped into memory.

    Its space is taken at once: without, a disk that becomes full would end the process (SIGBUS).
    """
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(
                f"{path.parent.parent}: polygons need {size / 1e6:.0f} MB of disk space while they "
                f"are made ({error.strerror})"
            ) from None
    return np.memmap(path, dtype, "r+" if path.stat().st_size else "w+", shape=shape)


def check_memory(edges: int, memory: int, name: str) -> None:
    """Refuse outlines that are too many for the memory, before they are traced.

    Args:
        edges: Edges of pixels in the outlines.
        memory: Bytes that the outlines may take.
        name: The raster, for the message.

    Raises:
        TooManyPolygons: They need more.
    """
    needed = edges * _BYTES_PER_EDGE + min(edges, _STRIP_EDGES) * _STRIP_BYTES_PER_EDGE
    if needed > memory:
        raise TooManyPolygons(
            f"{name}: the outlines of its regions are {edges:,} pixels long and need about "
            f"{needed / 1e9:.1f} GB of memory, more than the {memory / 1e9:.1f} GB there are; "
            "merge small regions by a larger --min-area, leave classes out, or predict parts of "
            "the scene"
        )


def smallest_pixel(ground: GroundPlane, dataset: DatasetReader) -> float:
    """Area in square meters of the smallest pixel."""
    return min(float(ground.pixel_areas(window).min()) for window in row_blocks(dataset))


def _strips(edges: NDArray[np.int64]) -> Iterator[slice]:
    """Rows that are traced together, of at most `_STRIP_EDGES` edges or one row."""
    before = starts_of(edges[:-1])
    first, last = 0, len(edges) - 1
    while first < last:
        end = int(np.searchsorted(before, before[first] + _STRIP_EDGES, side="right")) - 1
        end = min(max(end, first + 1), last)
        yield slice(first, end)
        first = end


def _edges(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    """Sides of regions between pixels and their neighbors, of which -1 is none; by row."""
    different = first != second
    return np.asarray((different & (first >= 0)).sum(1) + (different & (second >= 0)).sum(1))
