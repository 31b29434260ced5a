"""Opening a data set of scenes: which tiles belong to which split.

Legend: N blocks, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from segformer.data.dataset import Dataset
from segformer.data.description import Description, read_description
from segformer.data.errors import DatasetError
from segformer.data.pairing import Sample
from segformer.data.parallel import map_ordered
from segformer.data.scenes.blocks import Block, blocks_of, tiles_of, without_gap
from segformer.data.scenes.description import SceneEntry, SceneSet
from segformer.data.scenes.labels import PolygonLabels, RasterLabels, SceneLabels, TileLabels
from segformer.data.scenes.vectors import VectorLayer
from segformer.data.splitting import split_fraction
from segformer.image import SceneTile
from segformer.image.scene import open_scene
from segformer.image.scene_grid import Grid, Window
from segformer.progress import ProgressBar

logger = logging.getLogger(__name__)

_COVERED = 1
"""What the labeled area is painted with."""


@dataclass
class _OpenedScene:
    """A scene, its labels, and what is known of its tiles.

    Attributes:
        entry: As ``dataset.yaml`` has it.
        name: Names of its tiles begin with this.
        grid: Its pixels.
        bands: Names of the bands that are read.
        labels: None without labels.
        area: Of the labels, if not all of the scene.
        held_out: Windows for validation.
        present: (K,) which classes occur in each tile that has been looked at.
    """

    entry: SceneEntry
    name: str
    grid: Grid
    bands: tuple[str, ...]
    labels: SceneLabels | None
    area: PolygonLabels | None
    held_out: list[Window] = field(default_factory=list)
    present: dict[Window, NDArray[np.bool_]] = field(default_factory=dict)


def open_scenes(file: Path, split: str) -> Dataset:
    """Open one split of a data set of scenes.

    Each sample is a tile with at least one labeled pixel. Which tiles belong to which split
    depends on ``dataset.yaml`` and the files alone.

    Args:
        file: The ``dataset.yaml``.
        split: "train", "val" or "test".

    Raises:
        DatasetError: The description is wrong, a file cannot be read, labels cannot be placed on
            their scene, or the split has no tiles.
        UnreadableImage: A scene cannot be read.
        ModuleNotFoundError: rasterio is not installed.
    """
    description = read_description(file)
    assert description.scenes is not None
    if split not in description.scenes.splits:
        raise DatasetError(f"{file}: the data set has no split {split!r}")
    opened = _opened(file, _stamps(file, description.scenes))
    channels, names, samples = opened.channels, opened.channel_names, opened.samples[split]
    if not samples:
        raise DatasetError(f"{file}: no tile of the split {split!r} has a labeled pixel")
    size = description.scenes.tile_size
    return Dataset(
        root=file.parent,
        split=split,
        samples=samples,
        classes=description.classes,
        channels=channels,
        allow_missing_classes=description.allow_missing_classes,
        taken_for=f"scenes and labels as {file.name} describes them",
        notes=(f"{len(samples)} tiles of {size} x {size} pixels", *opened.notes),
        nodata=description.nodata,
        channel_names=names,
    )


@dataclass(frozen=True)
class _Opened:
    """The tiles of each split."""

    channels: int
    channel_names: tuple[str, ...]
    samples: dict[str, tuple[Sample, ...]]
    notes: tuple[str, ...]


def _stamps(file: Path, scenes: SceneSet) -> tuple[int, ...]:
    """Changes when one of the files does."""
    files = [file]
    for scene in scenes.scenes:
        files += [path for path in (scene.image, scene.labels, scene.area) if path is not None]
    return tuple(path.stat().st_mtime_ns for path in files)


@lru_cache(maxsize=4)
def _opened(file: Path, stamps: tuple[int, ...]) -> _Opened:
    """Cached, because the splits of a data set are opened one after the other."""
    description = read_description(file)
    assert description.scenes is not None
    names = _names([scene.image for scene in description.scenes.scenes], file.parent)
    scenes = [
        _open_scene(entry, name, description)
        for entry, name in zip(description.scenes.scenes, names, strict=True)
    ]
    channels, channel_names = _channels(file, scenes, description)
    tiles = _Tiles(scenes, description, channels)
    tiles.hold_out(file)
    samples = {split: tiles.samples(split) for split in description.scenes.splits}
    return _Opened(channels, channel_names, samples, tuple(tiles.notes))


def _names(images: Sequence[Path], root: Path) -> list[str]:
    """What to call the tiles of each scene: its path in the data set without suffix."""
    paths = [
        image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
        for image in images
    ]
    paths = [Path(*(part for part in path.parts if part != "..")) for path in paths]
    stems = [path.with_suffix("").as_posix() for path in paths]
    names = [
        stem if stems.count(stem) == 1 else path.as_posix().replace(".", "_")
        for stem, path in zip(stems, paths, strict=True)
    ]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise DatasetError(f"{root}: two scenes are called {repeated[0]}; rename one of the files")
    return names


def _open_scene(entry: SceneEntry, name: str, description: Description) -> _OpenedScene:
    scenes, classes = description.scenes, description.classes
    assert scenes is not None
    with open_scene(entry.image, bands=scenes.bands, resolution=scenes.resolution) as scene:
        grid, bands = scene.grid, scene.bands
    labels: SceneLabels | None = None
    if entry.labels is not None and entry.has_polygons:
        layer = VectorLayer(
            entry.labels, entry.layer, scenes.class_column, scenes.value_ids, scenes.only_class
        )
        fill = classes.ignore_index if scenes.background is None else scenes.background
        labels = PolygonLabels(layer, grid, entry.image, fill, all_touched=scenes.all_touched)
        if not len(labels.polygons):
            raise DatasetError(
                f"{entry.labels}: no polygon lies in the scene {entry.image}; check the coordinate "
                "reference system of both files"
            )
    elif entry.labels is not None:
        labels = RasterLabels(entry.labels, grid, entry.image, classes)
    area = None
    if entry.area is not None:
        layer = VectorLayer(entry.area, class_id=_COVERED)
        area = PolygonLabels(layer, grid, entry.image, 0)
        if not len(area.polygons):
            raise DatasetError(f"{entry.area}: the labeled area lies outside of {entry.image}")
    return _OpenedScene(entry, name, grid, bands, labels, area)


def _channels(
    file: Path, scenes: Sequence[_OpenedScene], description: Description
) -> tuple[int, tuple[str, ...]]:
    """Number of channels, and their names where known."""
    channels, names = len(scenes[0].bands), description.channel_names
    for scene in scenes:
        if len(scene.bands) != channels:
            raise DatasetError(
                f"{scene.entry.image}: has {len(scene.bands)} bands, but {scenes[0].entry.image} "
                f"has {channels}; choose those that all scenes have with bands: [1, 2, 3]"
            )
    if description.channels not in (0, channels):
        raise DatasetError(
            f"{file}: channels names {description.channels} channels, but "
            f"{scenes[0].entry.image} has {channels} bands; choose them with bands: [1, 2, 3]"
        )
    if not names and not any(name.isdecimal() for name in scenes[0].bands):
        names = scenes[0].bands if len(set(scenes[0].bands)) == channels else ()
    return channels, names


class _Tiles:
    """The tiles of all scenes, and which are held out.

    Args:
        scenes: The scenes.
        description: The ``dataset.yaml``.
        channels: Number of channels of the scenes.
    """

    def __init__(self, scenes: Sequence[_OpenedScene], description: Description, channels: int):
        assert description.scenes is not None
        self.scenes, self.description, self.how = scenes, description, description.scenes
        self.dataset = Dataset(
            Path(), "train", (), description.classes, channels=channels, nodata=description.nodata
        )
        self.notes: list[str] = []
        self._blocks: dict[int, dict[Block, Window]] = {}
        self._held: dict[int, set[Block]] = {}

    def hold_out(self, file: Path) -> None:
        """Choose the blocks for validation, so that both parts have all classes in proportion."""
        shared = [i for i, scene in enumerate(self.scenes) if scene.entry.split is None]
        for scene in self.scenes:
            if scene.entry.split in ("val", "test"):
                scene.held_out.append(scene.grid.window)
        if not shared or not self.how.val_fraction:
            return
        names, groups, present = list[str](), list[str](), list[NDArray[np.bool_]]()
        keys: list[tuple[int, Block]] = []
        for i in shared:
            grid = self.scenes[i].grid
            self._blocks[i] = blocks_of(grid.height, grid.width, self.how.block_size)
            for block, found in zip(
                self._blocks[i], self._classes_of(i, self._blocks[i].values()), strict=True
            ):
                if found.any():
                    keys.append((i, block))
                    names.append(f"{self.scenes[i].name} {block}")
                    groups.append(f"{self._place(i)} {block}")
                    present.append(found)
        if len(set(groups)) < 2:
            raise DatasetError(
                f"{file}: {len(set(groups))} blocks of {self.how.block_size} pixels have labels, "
                "too few to hold some out for validation; choose a smaller block_size and "
                "tile_size, or set split: train and split: val on scenes"
            )
        _, held = split_fraction(
            names,
            self.how.val_fraction,
            present=np.stack(present),
            groups=groups,
            seed=self.how.split_seed,
        )
        for position in held:
            i, block = keys[position]
            self._held.setdefault(i, set()).add(block)
            self.scenes[i].held_out.append(self._blocks[i][block])
        self.notes.append(
            f"{len(held)} of {len(keys)} blocks with labels are for validation; training tiles "
            f"are at least {self.how.block_gap} pixels away from them"
        )

    def samples(self, split: str) -> tuple[Sample, ...]:
        """The tiles of a split that have labeled pixels, by name."""
        found = []
        for i, scene in enumerate(self.scenes):
            windows = self._windows(i, split)
            if scene.labels is None:
                found += [self._sample(i, window) for window in windows]
                continue
            labeled = zip(windows, self._presence(i, windows), strict=True)
            found += [self._sample(i, window) for window, classes in labeled if classes.any()]
        return tuple(sorted(found, key=lambda sample: PurePosixPath(sample.name)))

    def _windows(self, i: int, split: str) -> list[Window]:
        """The tiles of a scene that may belong to a split."""
        scene, how = self.scenes[i], self.how
        held, grid = self._held.get(i, set()), scene.grid
        if (scene.entry.split or split) != split:
            return []
        if split != "train":
            areas = scene.held_out
            return [tile for area in areas for tile in tiles_of(area, how.tile_size)]
        blocks = self._blocks.get(i)
        areas = [grid.window]
        if held and blocks is not None:
            areas = [
                without_gap(block, area, held, how.block_gap)
                for block, area in blocks.items()
                if block not in held
            ]
        tiles = [tile for area in areas for tile in tiles_of(area, how.tile_size, how.tile_overlap)]
        apart = [tile for tile in tiles if not self._is_near_validation(i, tile)]
        if len(apart) < len(tiles):
            self.notes.append(
                f"{scene.entry.image}: {len(tiles) - len(apart)} training tiles are left out, "
                "because another scene shows the same place and is for validation there"
            )
        return apart

    def _is_near_validation(self, i: int, tile: Window) -> bool:
        """Whether another scene has pixels for validation where a tile of this scene is."""
        gap = self.how.block_gap - 0.01  # bounds in another reference system are rounded
        return any(
            left < tile.right + gap
            and right > tile.left - gap
            and top < tile.bottom + gap
            and bottom > tile.top - gap
            for left, top, right, bottom in self._elsewhere(i)
        )

    @lru_cache  # noqa: B019 - lives as long as the data set is being opened
    def _elsewhere(self, i: int) -> list[tuple[float, float, float, float]]:
        """What other scenes hold out, as bounds in pixels of this scene."""
        own, found = self.scenes[i].grid, []
        for j, other in enumerate(self.scenes):
            if i == j or own.crs is None or other.grid.crs is None or not other.held_out:
                continue
            found += [_bounds_in(other.grid.part(window), own) for window in other.held_out]
        return found

    def _place(self, i: int) -> str:
        """The same for scenes with the same pixels, whose blocks are held out together."""
        grid = self.scenes[i].grid
        if grid.crs is None:
            return str(i)
        first = next(j for j, other in enumerate(self.scenes) if other.grid.matches(grid))
        return str(first)

    def _classes_of(self, i: int, areas: Iterable[Window]) -> list[NDArray[np.bool_]]:
        """(K,) for each block, which classes occur in it."""
        tiles = [tiles_of(area, self.how.tile_size) for area in areas]
        present = iter(self._presence(i, [tile for part in tiles for tile in part]))
        return [np.any([next(present) for _ in part], axis=0) for part in tiles]

    def _presence(self, i: int, tiles: Sequence[Window]) -> list[NDArray[np.bool_]]:
        """(K,) for each tile, which classes occur in it."""
        known = self.scenes[i].present
        missing = [tile for tile in dict.fromkeys(tiles) if tile not in known]
        with ProgressBar("finding labels", len(missing), "tiles") as bar:
            for tile, found in zip(
                missing, map_ordered(lambda tile: self._look(i, tile), missing), strict=True
            ):
                known[tile] = found
                bar.advance()
        return [known[tile] for tile in tiles]

    def _look(self, i: int, tile: Window) -> NDArray[np.bool_]:
        sample = self._sample(i, tile)
        assert sample.mask is not None
        assert not isinstance(sample.mask, Path)
        if self.dataset.nodata is None:  # the labels know where the scene has no data
            ids = sample.mask.rasterize(tile.height, tile.width)
        else:
            ids = self.dataset.read(sample)[1]
        labeled = ids[ids != self.dataset.classes.ignore_index].astype(np.int64)
        return np.bincount(labeled, minlength=len(self.dataset.classes)) > 0

    def _sample(self, i: int, window: Window) -> Sample:
        scene = self.scenes[i]
        tile = SceneTile(scene.entry.image, window, self.how.bands, self.how.resolution)
        ignored = self.dataset.classes.ignore_index
        labels = None
        if scene.labels is not None:
            labels = TileLabels(tile, scene.labels, ignored, scene.area)
        return Sample(f"{scene.name}_y{window.top:05}_x{window.left:05}.tif", tile, labels)


def _bounds_in(grid: Grid, other: Grid) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a grid in pixels of another."""
    from rasterio.warp import transform_bounds

    left, bottom, right, top = transform_bounds(grid.crs, other.crs, *grid.bounds)
    inverse = ~other.transform
    corners = [inverse * (x, y) for x in (left, right) for y in (bottom, top)]
    columns, rows = zip(*corners, strict=True)
    return min(columns), min(rows), max(columns), max(rows)
