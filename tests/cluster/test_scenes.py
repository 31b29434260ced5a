"""Scenes on Ray clusters of two nodes on this machine. These tests take minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("ray_environment"),
    pytest.mark.filterwarnings("ignore"),  # of Ray and what it brings
]

ray = pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("rasterio", reason="scenes need the extra geo")

from cluster.scene_runs import CONFIG, run
from scene_samples import draw_pixels, write_scene
from segformer import SegFormer
from segformer.cli import main
from segformer.cluster import scenes
from segformer.cluster.options import ClusterOptions
from segformer.cluster.scene_work import SceneWorker
from segformer.cluster.scenes import SceneWorkers
from segformer.raster.computing import BlockFailed

HEIGHT, WIDTH = 4900, 150


@pytest.fixture
def scene_file(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", draw_pixels(HEIGHT, WIDTH))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder into which workers write the units that they begin."""
    (tmp_path / "log").mkdir()
    monkeypatch.setattr(Logged, "folder", str(tmp_path / "log"))  # sent with the class
    monkeypatch.setattr(scenes, "SceneWorker", Logged)
    return tmp_path / "log"


class Logged(SceneWorker):
    """A worker that notes each unit that it begins, waits for others, and may die at a row."""

    folder = ""
    together = 1
    deadly_row: int | None = None

    def run(self, unit: Any) -> Any:
        Path(self.folder, f"{time.time_ns()}-{os.getpid()}").write_text(json.dumps(unit.blocks))
        end = time.monotonic() + 120
        while len(processes(Path(self.folder))) < self.together and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
        row = self.deadly_row
        if row is not None and unit.pixels.top <= row < unit.pixels.bottom:
            os._exit(1)
        return super().run(unit)


def processes(log: Path) -> set[str]:
    """Those that have begun a unit."""
    return {file.name.split("-")[1] for file in log.iterdir()}


def begun(log: Path) -> Counter[tuple[int, ...]]:
    """How often each block was given to a worker."""
    units = [json.loads(file.read_text()) for file in log.iterdir()]
    return Counter(tuple(block) for unit in units for block in unit)


def test_a_killed_node_costs_the_unit_that_it_ran(
    two_nodes: Any,
    scene_file: Path,
    tmp_path: Path,
    model: SegFormer,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Logged, "together", 2)
    expected = run(scene_file, tmp_path / "one", model)
    killed: list[int] = []

    def kill_once(done: int, total: int) -> None:
        if not killed:
            killed.append(done)
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    with SceneWorkers(model, CONFIG, ClusterOptions("auto", workers=2)) as workers:
        found = run(scene_file, tmp_path / "many", model, workers.computer, on_pixels=kill_once)
        report = workers.report
    assert found == expected
    assert killed[0] < HEIGHT * WIDTH
    assert report.lost_workers >= 1
    blocks = begun(log)
    assert sum(height * width for _, _, height, width in blocks) == HEIGHT * WIDTH
    times = Counter(file.read_text() for file in log.iterdir())
    assert sum(times.values()) - len(times) <= 1  # the unit that was running, if there was one


DRIVER = """
import sys
from segformer import Predictor, SegFormer
from segformer.cluster.options import ClusterOptions
from segformer.cluster.scene_work import SceneRequest
from segformer.cluster.scenes import SceneWorkers
from segformer.prediction.config import PredictConfig
from segformer.raster.predicting import predict_scene
scene_file, folder, out, address = sys.argv[1:]
config = PredictConfig(device="cpu", confidence=True)
model = SegFormer.from_pretrained(folder)
request = SceneRequest(scene_file)
options = ClusterOptions(address, workers=1)
with request.open() as scene, SceneWorkers(model, config, options) as workers:
    predict_scene(Predictor(model, config), scene, out, window=64, overlap=16, max_memory=10**12,
                  compute=workers.computer(request, scene))
"""


def test_a_killed_driver_is_continued_with_and_without_a_cluster(
    two_nodes: Any, scene_file: Path, tmp_path: Path, model: SegFormer
) -> None:
    model.save_pretrained(tmp_path / "model")
    model = SegFormer.from_pretrained(tmp_path / "model")
    expected = run(scene_file, tmp_path / "one", model)
    out = tmp_path / "out"
    work = out / "scene.unfinished"
    words = [sys.executable, "-c", DRIVER, str(scene_file), str(tmp_path / "model"), str(out)]
    driver = subprocess.Popen([*words, two_nodes.address])
    end = time.monotonic() + 300
    while not list(work.glob("[0-9]*")) and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert [file.name for file in out.iterdir()] == [work.name]
    (tmp_path / "copy").mkdir()
    subprocess.run(["cp", "-a", str(work), str(tmp_path / "copy")], check=True)
    for folder, cluster in ((out, True), (tmp_path / "copy", False)):
        done: list[int] = []
        with SceneWorkers(model, CONFIG, ClusterOptions("auto", workers=2)) as workers:
            given = workers.computer if cluster else None
            found = run(
                scene_file, folder, model, given, on_pixels=lambda n, _, done=done: done.append(n)
            )
        assert found == expected
        assert 0 < done[0] < HEIGHT * WIDTH


@pytest.mark.usefixtures("one_node")
def test_a_block_that_kills_workers_ends_its_scene_only(
    scene_file: Path,
    tmp_path: Path,
    model: SegFormer,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = run(scene_file, tmp_path / "one", model)
    small = write_scene(tmp_path / "small.tif", draw_pixels(200, 200))
    monkeypatch.setattr(Logged, "deadly_row", 1000)
    with SceneWorkers(model, CONFIG, ClusterOptions("auto", workers=2)) as workers:
        with pytest.raises(BlockFailed) as failed:
            run(scene_file, tmp_path / "many", model, workers.computer)
        assert workers.report.lost_workers >= 2
        lost = workers.report.lost_workers
        found = run(small, tmp_path / "small", model, workers.computer)
        assert workers.report.lost_workers == lost
    assert found == run(small, tmp_path / "small-one", model)
    message = str(failed.value)
    assert "scene.tif, rows 980 to 1220, columns 0 to 150: the worker was lost each" in message
    assert "what is done is kept in" in message
    assert "run the same command again to continue" in message
    monkeypatch.setattr(Logged, "deadly_row", None)
    for file in log.iterdir():
        file.unlink()
    with SceneWorkers(model, CONFIG, ClusterOptions("auto", workers=2)) as workers:
        done: list[int] = []

        def show(count: int, _: int) -> None:
            done.append(count)

        found = run(scene_file, tmp_path / "many", model, workers.computer, on_pixels=show)
        assert found == expected
    assert done[0] > 0
    again = begun(log)
    assert sum(height * width for _, _, height, width in again) == HEIGHT * WIDTH - done[0]


@pytest.mark.usefixtures("one_node")
def test_the_command_gives_the_same_files(
    scene_file: Path, tmp_path: Path, model: SegFormer, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    words = ["predict", str(scene_file), "--model", str(tmp_path / "model"), "--confidence"]
    words += ["--window", "64"]
    assert main([*words, "--out", str(tmp_path / "one"), "--max-memory", "100GB"]) == 0
    many = [*words, "--out", str(tmp_path / "many"), "--cluster", "auto", "--workers", "2"]
    assert main([*many, "--max-memory", "100GB"]) == 0
    assert "1 of 1 scenes segmented" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert {"scene.tif", "scene_confidence.tif", "scene.stac.json", "summary.json"} <= names
    assert {file.name for file in (tmp_path / "many").iterdir()} == names
    for name in names - {"scene.stac.json"}:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert main(many) == 1
    assert "already exist" in capsys.readouterr().err
    assert main([*many, "--skip-existing"]) == 0
