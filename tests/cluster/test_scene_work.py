"""How a scene is divided among workers, and what a worker does. Ray itself is not started."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("rasterio", reason="scenes need the extra geo")

from cluster.scene_runs import CONFIG, Workers, run
from scene_samples import draw_pixels, write_scene
from segformer import SegFormer
from segformer.cli import main
from segformer.cluster import scene_work
from segformer.cluster.scene_work import (
    UNIT_PIXELS,
    SceneRequest,
    SceneUnit,
    SceneWorker,
    plan_units,
    same_everywhere,
)
from segformer.image.scene import Scene
from segformer.image.scene_grid import Window
from segformer.raster.computing import BlockFailed, ComputeBlocks, EncodedBlock
from segformer.raster.memory import MemoryPlan
from segformer.raster.tiling import Block, Tiling, plan_blocks


def covered(windows: Sequence[Window], height: int, width: int) -> np.ndarray:
    """(H, W) how often each pixel is in one of the windows."""
    counts = np.zeros((height, width), int)
    for window in windows:
        counts[window.slices] += 1
    return counts


@pytest.mark.parametrize("workers", [1, 2, 7, 40])
@pytest.mark.parametrize("cells", [(1, 99), (1, 3), (2, 2)])
def test_units_cover_every_block_once(workers: int, cells: tuple[int, int]) -> None:
    tiling = Tiling(900, 700, 64, 16)
    blocks = list(plan_blocks(tiling, Window(30, 50, 850, 600), cells=cells))
    missing = blocks[:4] + blocks[6:]  # an earlier run has done two of them
    units = plan_units(missing, workers)
    counts = covered([block for unit in units for block in unit], 900, 700)
    assert (counts == covered([block.pixels for block in missing], 900, 700)).all()
    for unit in units:
        for above, below in pairwise(unit):
            assert (below.left, below.right, below.top) == (above.left, above.right, above.bottom)
        assert len(unit) <= 16
    assert len(units) >= min(workers, len(missing) * 3)


def test_units_of_wide_scenes_are_narrow_and_not_flat() -> None:
    tiling = Tiling(20_000, 60_000, 512, 128)
    blocks = list(plan_blocks(tiling, Window(0, 0, 20_000, 60_000), cells=(1, 999)))
    units = plan_units(blocks, 2)
    sizes = [sum(block.height * block.width for block in unit) for unit in units]
    assert max(sizes) <= UNIT_PIXELS
    assert sum(len(unit) for unit in units) / len(units) >= 6


@pytest.fixture
def scene_file(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", draw_pixels(230, 260))


def fake_workers(worker: SceneWorker, fail_at: int | None = None) -> Workers:
    """Workers that are one object here; they give units back in the opposite order."""

    def workers(request: SceneRequest, scene: Scene) -> ComputeBlocks:
        known = same_everywhere(scene)

        def compute(blocks: Sequence[Block]) -> Generator[EncodedBlock, None, None]:
            planned = plan_units(blocks, 3)
            units = [SceneUnit(request, known, blocks[0].tiling, unit) for unit in planned]
            assert len(units) > 3
            for number, unit in enumerate(reversed(units)):
                if number == fail_at:
                    raise BlockFailed(unit.stem)
                result = worker.run(unit)
                assert result.error is None
                yield from result.blocks

        return compute

    return workers


def test_workers_give_the_same_bytes_as_one_process(
    model: SegFormer, scene_file: Path, tmp_path: Path
) -> None:
    expected = run(scene_file, tmp_path / "one", model)
    files = {"scene.tif", "scene.tif.aux.xml", "scene.qml", "scene_confidence.tif"}
    assert set(expected) == files
    worker = SceneWorker(model, CONFIG, 10**12, 1)
    assert run(scene_file, tmp_path / "many", model, workers=fake_workers(worker)) == expected


def test_little_memory_of_a_worker_makes_its_blocks_narrow(
    model: SegFormer, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(scene_file, tmp_path / "one", model)
    monkeypatch.setattr(scene_work, "plan_memory", lambda *_: MemoryPlan((1, 2), 1 << 24, 0))
    worker = SceneWorker(model, CONFIG, 10**12, 1)
    assert run(scene_file, tmp_path / "many", model, workers=fake_workers(worker)) == expected


def test_one_process_continues_what_workers_began_and_the_other_way_round(
    model: SegFormer, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(scene_file, tmp_path / "one", model)
    worker = SceneWorker(model, CONFIG, 10**12, 1)
    with monkeypatch.context() as patch:
        # Blocks of half the width, which a plan of whole rows then has to continue
        patch.setattr(scene_work, "UNIT_PIXELS", 8 * 48 * 140)
        with pytest.raises(BlockFailed, match=r"rows .* to .*; what is done is kept in .*same com"):
            run(scene_file, tmp_path / "a", model, workers=fake_workers(worker, fail_at=2))
    seen: list[int] = []
    found = run(scene_file, tmp_path / "a", model, on_pixels=lambda done, _: seen.append(done))
    assert found == expected
    assert 0 < seen[0] < seen[-1] == 230 * 260

    def stop(done: int, total: int) -> None:
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scene_file, tmp_path / "b", model, on_pixels=stop)
    again: list[int] = []
    found = run(
        scene_file,
        tmp_path / "b",
        model,
        workers=fake_workers(worker),
        on_pixels=lambda done, _: again.append(done),
    )
    assert found == expected
    assert again[0] >= 230 * 260 / 3


def test_errors_of_a_scene_are_part_of_the_result(
    model: SegFormer, scene_file: Path, tmp_path: Path
) -> None:
    request = SceneRequest(str(scene_file))
    tiling = Tiling(230, 260, 64, 16)
    with request.open() as scene:
        known = same_everywhere(scene)
    (blocks, *_) = plan_units(list(plan_blocks(tiling, Window(0, 0, 230, 260), cells=(1, 9))), 1)
    unit = SceneUnit(request, known, tiling, blocks)
    assert SceneWorker(model, CONFIG, 10**12, 1).run(unit).error is None

    write_scene(scene_file, draw_pixels(230, 262))
    result = SceneWorker(model, CONFIG, 10**12, 1).run(unit)
    assert result.error is not None
    assert "is not the file that the driver sees" in result.error
    scene_file.unlink()
    result = SceneWorker(model, CONFIG, 10**12, 1).run(unit)
    assert result.error is not None
    assert "scene.tif: no such file" in result.error
    write_scene(scene_file, draw_pixels(230, 260))
    result = SceneWorker(model, CONFIG, 50_000_000, 1).run(unit)
    assert result.error is not None
    assert "is too little" in result.error


def test_scenes_and_images_are_told_apart(
    model: SegFormer, scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(scene_file), "--cluster", "auto", "--model", str(tmp_path / "model")]
    assert main([*words, "--out", "s3://bucket/out"]) == 1
    assert "scenes are written into a folder of this machine" in capsys.readouterr().err
    words.insert(2, "s3://bucket/photos")
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "s3://bucket/photos: georeferenced scenes" in capsys.readouterr().err
