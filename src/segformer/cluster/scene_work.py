"""What a worker does with blocks of a scene. Nothing here knows of Ray.

Blocks are computed as on one machine (`raster.computing`) and given back compressed, so that what
travels between machines is small. Only the driver writes files.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from segformer.cluster.storage import absolute
from segformer.image.scene import Scene, open_scene
from segformer.image.scene_bands import SceneSource, rasterio
from segformer.image.scene_grid import Window
from segformer.prediction.predictor import Predictor
from segformer.raster.blocks import BlockPredictor
from segformer.raster.computing import EncodedBlock, compute_blocks
from segformer.raster.memory import MemoryPlan, plan_memory
from segformer.raster.pixels import ScenePixels
from segformer.raster.tiling import Block, Tiling, plan_blocks

UNIT_PIXELS = 1 << 24
"""Pixels of a unit, whose compressed results are in the memory of a worker."""

_LONGEST = 16
"""Blocks of a unit. Each unit repeats one row of windows, so longer ones gain little."""

_USUAL_BLOCKS = 8
"""Blocks that should fit in a unit; wider ones are divided."""


@dataclass(frozen=True)
class SceneRequest:
    """How a scene is opened on each machine.

    Attributes:
        source: Path from the root or URL, or those of several files.
        bands: Numbers or names of the bands, or None for all.
        resolution: Side of a pixel to resample to, or None.
        area: Path of a vector file from the root, or None.
        where: Column, row, width and height of a window, or None.
        nodata: Value that means no data, or None for that of the files.
        scaled: Apply the scale and offset that the files declare.
        own_statistics: Normalize bands by their own mean and standard deviation.
    """

    source: str | tuple[str, ...]
    bands: tuple[int | str, ...] | None = None
    resolution: float | None = None
    area: str | None = None
    where: tuple[int, ...] | None = None
    nodata: float | None = None
    scaled: bool = True
    own_statistics: bool = False

    def open(self) -> Scene:
        """Open the scene on this machine.

        Raises:
            UnreadableImage: It cannot be read here.
            ValueError: The options do not fit it.
        """
        return open_scene(
            self.source,
            bands=self.bands,
            resolution=self.resolution,
            area=self.area,
            where=self.where,
            nodata=self.nodata,
            scaled=self.scaled,
        )


def on_all_machines(source: SceneSource) -> str | tuple[str, ...]:
    """A source as all machines find it: paths from the root, URLs as they are."""
    if isinstance(source, (str, Path)):
        return absolute(str(source))
    return tuple(absolute(str(file)) for file in source)


def same_everywhere(scene: Scene) -> tuple[object, ...]:
    """What must be equal on all machines: the size and place of the scene, its bands and files."""
    grid = scene.full_grid
    sizes = tuple(Path(file).stat().st_size for file in scene.files if Path(file).exists())
    bands = (scene.bands, str(scene.dtype), sizes)
    return (grid.height, grid.width, tuple(grid.transform[:6]), tuple(scene.window), *bands)


@dataclass(frozen=True)
class SceneUnit:
    """Blocks that a worker is given at once.

    Attributes:
        request: How the scene is opened.
        known: What `same_everywhere` gives on the driver's machine.
        tiling: Windows of the scene.
        blocks: Pixels of blocks that lie one below the other, without gaps.
    """

    request: SceneRequest
    known: tuple[object, ...]
    tiling: Tiling
    blocks: tuple[Window, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def pixels(self) -> Window:
        """All its pixels."""
        first, last = self.blocks[0], self.blocks[-1]
        return Window(first.top, first.left, last.bottom - first.top, first.width)

    @property
    def stem(self) -> str:
        """The scene and the pixels, for messages."""
        source, pixels = self.request.source, self.pixels
        name = source if isinstance(source, str) else source[0]
        columns = f"columns {pixels.left} to {pixels.right}"
        return f"{name}, rows {pixels.top} to {pixels.bottom}, {columns}"

    def halves(self) -> tuple[SceneUnit, SceneUnit]:
        """Two units with the same blocks."""
        middle = len(self) // 2
        parts = self.blocks[:middle], self.blocks[middle:]
        first, second = (SceneUnit(self.request, self.known, self.tiling, part) for part in parts)
        return first, second


@dataclass(frozen=True, eq=False)
class SceneUnitResult:
    """What became of a unit.

    Attributes:
        unit: Its blocks.
        blocks: Those that are done, compressed.
        error: Why the others are not, or None.
    """

    unit: SceneUnit
    blocks: list[EncodedBlock] = field(default_factory=list)
    error: str | None = None


def plan_units(blocks: Sequence[Block], workers: int) -> list[tuple[Window, ...]]:
    """Divide blocks into units.

    A unit of n blocks runs n + 1 rows of windows, and at the end all workers but one wait for half
    a unit on average. With N blocks and W workers, N / n + (W - 1) n / 2 is least at
    n = sqrt(2 N / (W - 1)). Blocks are divided into narrower ones where a unit would have few
    blocks, or there are too few for the workers.

    Args:
        blocks: In the order of `segformer.raster.tiling.plan_blocks`; some may be missing.
        workers: Number of workers.

    Returns:
        The blocks of each unit, which lie one below the other.
    """
    largest = max(block.pixels.height * block.pixels.width for block in blocks)
    parts = max(
        math.ceil(2 * workers / len(blocks)) if workers > 1 else 1,
        math.ceil(largest * _USUAL_BLOCKS / UNIT_PIXELS),
    )
    tiling = blocks[0].tiling
    runs = _runs([block.pixels for block in blocks])
    narrow = [part for run in runs for part in _divided(tiling, run, parts)]
    best = math.sqrt(2 * len(narrow) / (workers - 1)) if workers > 1 else _LONGEST
    length = max(1, min(round(best), _LONGEST))
    units = []
    for run in _runs(narrow):
        fitting = max(1, UNIT_PIXELS // max(block.height * block.width for block in run))
        step = min(length, fitting)
        units += [tuple(run[i : i + step]) for i in range(0, len(run), step)]
    return units


def _runs(blocks: Sequence[Window]) -> Iterator[list[Window]]:
    """Blocks that lie one below the other."""
    if not blocks:
        return
    run = [blocks[0]]
    for above, block in pairwise(blocks):
        below = (block.left, block.right, block.top) == (above.left, above.right, above.bottom)
        if not below:
            yield run
            run = []
        run.append(block)
    yield run


def _divided(tiling: Tiling, run: Sequence[Window], parts: int) -> Iterator[Window]:
    """The blocks of a run in columns that are so many times narrower, column by column."""
    columns = tiling.columns.cells(run[0].left, run[0].right)
    width = math.ceil(len(columns) / parts)
    for first in columns[::width]:
        left = tiling.columns.cuts[first]
        right = tiling.columns.cuts[min(first + width, columns[-1] + 1)]
        for block in run:
            yield Window(block.top, left, block.height, right - left).within(block)


class SceneWorker:
    """A model and the blocks that it is given.

    Args:
        model: What `Predictor` takes.
        config: How pixels are seen and run.
        memory: Bytes that the process may take in all.
        threads: Threads of the model.
    """

    def __init__(self, model: Any, config: Any, memory: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.predictor, self.memory = Predictor(model, config), memory
        self._opened: _Opened | None = None

    def ready(self) -> None:
        """Return when the model is loaded."""

    def run(self, unit: SceneUnit) -> SceneUnitResult:
        """Compute the blocks of a unit; errors of the scene are part of the result."""
        result = SceneUnitResult(unit)
        try:
            opened = self._open(unit)
            blocks = list(plan_blocks(unit.tiling, unit.pixels, cells=opened.plan.cells))
            with rasterio().Env(GDAL_CACHEMAX=opened.plan.cache):
                for block in compute_blocks(opened.predict, blocks):
                    result.blocks.append(block)
        except (ValueError, ModuleNotFoundError) as error:
            return SceneUnitResult(unit, result.blocks, f"on {socket.gethostname()}: {error}")
        return result

    def _open(self, unit: SceneUnit) -> _Opened:
        key = (unit.request, unit.tiling)
        if self._opened is None or self._opened.key != key:
            if self._opened is not None:
                self._opened.scene.close()
                self._opened = None
            scene = unit.request.open()
            if same_everywhere(scene) != unit.known:
                raise ValueError(
                    f"{scene.name} is not the file that the driver sees; all machines need the "
                    "same file under this path, as on a shared file system, or a URL"
                )
            self._opened = _Opened(key, scene, *self._prepare(scene, unit))
        return self._opened

    def _prepare(self, scene: Scene, unit: SceneUnit) -> tuple[BlockPredictor, MemoryPlan]:
        model = self.predictor.model
        pixels = ScenePixels(
            scene,
            model.preprocessing,
            model.config.in_channels,
            value_range=self.predictor.config.value_range,
            own_statistics=unit.request.own_statistics,
        )
        predict = BlockPredictor(self.predictor, pixels)
        pixel_bytes = np.dtype(predict.dtype).itemsize + self.predictor.config.confidence
        results = 2 * UNIT_PIXELS * pixel_bytes  # twice while they are sent
        plan = plan_memory(self.predictor, pixels, unit.tiling, self.memory - results)
        return predict, plan


@dataclass(frozen=True, eq=False)
class _Opened:
    """A scene that a worker has opened."""

    key: tuple[SceneRequest, Tiling]
    scene: Scene
    predict: BlockPredictor
    plan: MemoryPlan
