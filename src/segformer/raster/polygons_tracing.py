"""From a raster of class ids to polygons in pixel coordinates.

Legend: H W pixels, N polygons. Pixel coordinates are (column, row) from the top left corner: pixel
(row 0, column 0) covers 0..1 in both directions, so that outlines have integer coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.raster.areas import GroundPlane, read_labels, row_blocks

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_BYTES_PER_EDGE = 250
"""Memory that an edge of a pixel in an outline can take, measured with noise of five classes, whose
regions have few pixels, so that most of the memory is that of small objects."""


class TooManyPolygons(ValueError):
    """The outlines of the regions do not fit into the memory."""


@dataclass
class Regions:
    """Connected regions of one class each.

    Attributes:
        polygons: (N,) shapely polygons in pixel coordinates, valid, with holes.
        class_ids: (N,) class of each.
    """

    polygons: NDArray[Any]
    class_ids: NDArray[np.int32]


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

    def count_edges(self) -> int:
        """Edges of pixels in the outlines of all regions; those between two regions count twice.

        Outlines have at most so many corners, and there are at most a quarter as many regions.
        """
        edges = 0
        above = np.full((1, self.ids.shape[1]), -1, np.int32)
        for rows in self._blocks():
            values = np.where(self.mask[rows], self.ids[rows].astype(np.int32), -1)
            values = np.concatenate([above, values])
            edges += _edges(values[:-1], values[1:])
            edges += _edges(values[1:, :-1], values[1:, 1:])
            edges += int((values[1:, [0, -1]] >= 0).sum())
            above = values[-1:]
        return edges + int((above >= 0).sum())

    def trace(self) -> Regions:
        """The outlines of the regions, whose pixels are connected by their sides."""
        import shapely
        from rasterio.features import shapes

        polygons, class_ids = [], []
        for outline, value in shapes(self.ids, mask=self.mask, connectivity=4):
            exterior, *holes = outline["coordinates"]
            polygons.append(shapely.Polygon(exterior, holes))
            class_ids.append(int(value))
        traced = np.empty(len(polygons), object)
        traced[:] = polygons
        return Regions(traced, np.asarray(class_ids, np.int32))

    def _blocks(self) -> Iterator[slice]:
        height = max(1, (1 << 24) // max(1, self.ids.shape[1]))
        for top in range(0, len(self.ids), height):
            yield slice(top, top + height)


@contextmanager
def stored_labels(dataset: DatasetReader, classes: ClassSet, folder: Path) -> Iterator[LabelStore]:
    """Class ids of a raster in temporary files, of 2 to 3 bytes per pixel.

    Args:
        dataset: The raster, open.
        classes: Names of the class ids.
        folder: Where the files are while they are needed.

    Raises:
        ValueError: A valid pixel has a value that is no class.
    """
    shape = (dataset.height, dataset.width)
    dtype = np.uint8 if len(classes) <= 256 else np.uint16
    with TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
        ids = np.memmap(Path(temporary) / "ids", dtype, "w+", shape=shape)
        mask = np.memmap(Path(temporary) / "mask", np.uint8, "w+", shape=shape)
        for window in row_blocks(dataset):
            rows = slice(int(window.row_off), int(window.row_off + window.height))
            values, valid = read_labels(dataset, window, classes)
            ids[rows], mask[rows] = np.where(valid, values, 0), valid
        try:
            yield LabelStore(ids, mask)
        finally:
            del ids, mask


def check_memory(store: LabelStore, memory: int, name: str) -> None:
    """Refuse outlines that are too many for the memory, before they are traced.

    Args:
        store: The class ids.
        memory: Bytes that the outlines may take.
        name: The raster, for the message.

    Raises:
        TooManyPolygons: They need more.
    """
    edges = store.count_edges()
    needed = edges * _BYTES_PER_EDGE
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


def simplified(
    polygons: NDArray[Any], tolerance: float, pixel_size: tuple[float, float]
) -> NDArray[Any]:
    """Outlines with fewer corners, still without gaps and overlaps between neighbors.

    The simplified corners are some of the pixels' corners (Visvalingam-Whyatt simplification of
    coverages, `shapely.coverage_simplify`).

    Args:
        polygons: (N,) polygons in pixel coordinates, which do not overlap.
        tolerance: Length in meters of the details that vanish: about the square root of their area.
        pixel_size: Meters that a column and a row are wide.
    """
    import shapely

    size = np.asarray(pixel_size)
    # Neighbors must have the same corners along a common edge, also where one of them has a third
    # neighbor there: with a corner at each pixel they have
    dense = shapely.segmentize(polygons, 1.0)
    dense = shapely.transform(dense, lambda xy: np.rint(xy) * size)
    simple = shapely.coverage_simplify(dense, tolerance)
    return np.asarray(shapely.transform(simple, lambda xy: np.rint(xy / size)))


def _edges(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """Sides of regions between pixels and their neighbors, of which -1 belongs to no region."""
    different = first != second
    return int((different & (first >= 0)).sum()) + int((different & (second >= 0)).sum())
