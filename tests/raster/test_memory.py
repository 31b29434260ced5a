"""The bound of memory holds for one scene after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the extra geo")

from segformer import Predictor, SegFormer
from segformer.image.scene import open_scene
from segformer.raster import memory
from segformer.raster.job import scene_tiling
from segformer.raster.memory import MemoryPlan, plan_memory
from segformer.raster.pixels import ScenePixels

MIB = 1 << 20


def test_the_memory_of_the_scene_before_is_used_again(
    scene_model: SegFormer, draw_scene: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw_scene(200, 900)
    predictor = Predictor(scene_model, device="cpu")

    def plan(peak: int, limit: int, window: int = 64, by: Predictor = predictor) -> MemoryPlan:
        monkeypatch.setattr(memory, "peak_memory", lambda: peak)
        with open_scene(path) as scene:
            tiling = scene_tiling(by, scene, window, 16)
            pixels = ScenePixels(scene, scene_model.preprocessing, 3)
            return plan_memory(by, pixels, tiling, limit)

    first = plan(300 * MIB, 10**12)
    # The peak is now what the first scene was expected to take
    assert plan(first.expected, limit=first.expected).cells == first.cells
    # Other things took more meanwhile
    assert plan(first.expected + 5 * MIB, 10**12).expected > first.expected
    # Nothing is known of another predictor, or of other windows
    other = Predictor(scene_model, device="cpu")
    assert plan(first.expected, 10**12, by=other).expected > first.expected
    before = plan(300 * MIB, 10**12, window=96, by=other).expected
    assert plan(310 * MIB, 10**12, window=128, by=other).expected > before
