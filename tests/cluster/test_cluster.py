"""Prediction on Ray clusters of two nodes on this machine. These tests take minutes."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformer import Predictor, SegFormer
from segformer.prediction.batch import predict_files
from segformer.prediction.config import PredictConfig
from segformer.prediction.listing import find_images

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("ray_environment"),
    pytest.mark.filterwarnings("ignore"),  # of Ray and what it brings
]

ray = pytest.importorskip("ray", reason="ray is not installed")

from segformer.cluster import storage
from segformer.cluster.manifest import find_done, read_table
from segformer.cluster.options import ClusterOptions
from segformer.cluster.prediction import (
    ClusterResult,
    Worker,
    predict_on_cluster,
    read_failures,
)
from segformer.cluster.storage import STATE, StorageRefused, join
from segformer.cluster.work import Outputs

CONFIG = PredictConfig(size=(32, 32), device="cpu")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    (folder / "broken.jpg").write_text("broken")
    return folder


def run(model: SegFormer, source: str, out: str, **options: Any) -> ClusterResult:
    on_progress = options.pop("on_progress", None)
    return predict_on_cluster(
        model,
        model.classes.names,
        [source],
        Outputs(out, overlay=False, confidence=False, multilabel=False),
        CONFIG,
        ClusterOptions("auto", **{"images_per_unit": 10, **options}),
        on_progress=on_progress,
    )


def summaries(out: str) -> list[dict[str, Any]]:
    names, _ = storage.list_folder(join(out, f"{STATE}/summary"))
    return [
        row
        for name in names
        for row in read_table(join(out, f"{STATE}/summary/{name}")).to_pylist()
    ]


def test_a_killed_node_costs_nothing(
    two_nodes: Any, album: Path, tmp_path: Path, tiny_model: SegFormer
) -> None:
    out = str(tmp_path / "out")
    killed: list[int] = []

    def kill_once(result: ClusterResult) -> None:
        if not killed:
            killed.append(result.done)
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    result = run(tiny_model, str(album), out, on_progress=kill_once, workers=2)
    assert killed[0] < 60
    assert result.done + result.skipped == 60
    assert result.failed == 1
    assert result.lost_workers >= 1
    single = predict_files(
        Predictor(tiny_model, CONFIG), find_images([album]), tmp_path / "one", overlay=False
    )
    rows = summaries(out)
    assert set(Counter(row["image"] for row in rows).values()) == {1}
    found = {row["image"]: row for row in rows}
    for row in single.images:
        assert dict(found[row["image"]]["class_fractions"]) == row["class_fractions"]
        (file,) = row["files"]
        assert Path(out, file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    written = [path for path in Path(out).glob("*") if path.is_file()]
    assert len(written) == 60
    assert [row["image"] for row in read_failures(out)] == [str(album / "broken.jpg")]
    report = json.loads(Path(out, STATE, "report.json").read_text())
    assert report["failed"] == 1

    before = {path: path.stat().st_mtime_ns for path in written}
    Image.new("RGB", (40, 30)).save(album / "new.png")
    again = run(tiny_model, str(album), out, workers=1)
    assert again.done == 1  # the new image; the broken one is tried again
    assert again.failed == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ValueError, match="an earlier run had other overlay"):
        predict_on_cluster(
            tiny_model,
            tiny_model.classes.names,
            [str(album)],
            Outputs(out, overlay=True, confidence=False, multilabel=False),
            CONFIG,
            ClusterOptions("auto"),
        )


class Deadly(Worker):
    """A worker that dies at one image."""

    def run(self, unit: Any) -> Any:
        read = self.predictor.reader
        assert read is not None

        def deadly(source: Any) -> Any:
            if str(source).endswith("007.png"):
                os._exit(1)
            return read(source)

        self.predictor.reader = deadly
        return super().run(unit)


@pytest.mark.usefixtures("one_node")
def test_an_image_that_kills_workers_costs_itself(
    album: Path,
    tmp_path: Path,
    tiny_model: SegFormer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from segformer.cluster import prediction

    monkeypatch.setattr(prediction, "Worker", Deadly)
    out = str(tmp_path / "out")
    result = run(tiny_model, str(album / "00*.png"), out, workers=2, images_per_unit=2)
    assert (result.done + result.skipped, result.failed) == (9, 1)
    (failed,) = read_failures(out)
    assert "007.png: the worker was lost each time" in failed["error"]
    assert set(Counter(row["image"] for row in summaries(out)).values()) == {1}


class Refused(Worker):
    """A worker without credentials."""

    def run(self, unit: Any) -> Any:
        raise StorageRefused("s3://x: no credentials")


class Unloadable(Worker):
    """A worker that cannot be started."""

    def __init__(self, *_: Any) -> None:
        raise RuntimeError("no such device")


@pytest.mark.usefixtures("one_node")
def test_errors_of_all_workers_end_the_run(
    album: Path,
    tmp_path: Path,
    tiny_model: SegFormer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from segformer.cluster import prediction

    monkeypatch.setattr(prediction, "Worker", Refused)
    with pytest.raises(StorageRefused, match="s3://x: no credentials"):
        run(tiny_model, str(album), str(tmp_path / "out"))
    monkeypatch.setattr(prediction, "Worker", Unloadable)
    with pytest.raises(ValueError, match="workers cannot be started.*no such device"):
        run(tiny_model, str(album), str(tmp_path / "out"), workers=1)
    assert find_done(str(tmp_path / "out")) == {}
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in this folder"):
        run(tiny_model, str(tmp_path / "empty"), str(tmp_path / "other"), workers=1)
    with pytest.raises(ValueError, match="not empty"):
        run(tiny_model, str(tmp_path / "empty"), str(album), workers=1)


@pytest.mark.usefixtures("one_node")
def test_the_service_on_a_cluster(
    photograph: np.ndarray, tmp_path: Path, tiny_model: SegFormer
) -> None:
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    import urllib.request

    from segformer.cluster.serving import build

    tiny_model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="no such options: replicas"):
        build({"model": "x", "replicas": "2"})
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, "JPEG")
    try:
        port = _free_port()
        serve.start(http_options={"port": port, "host": "127.0.0.1"})
        arguments = {"model": str(tmp_path / "model"), "queue_size": "2", "max_replicas": "2"}
        serve.run(build({**arguments, "short_side": "512"}), name="segformer")
        url = f"http://127.0.0.1:{port}/v1/segment"
        answers: list[int] = []

        def ask() -> None:
            while time.monotonic() < end:
                request = urllib.request.Request(
                    url, buffer.getvalue(), {"Content-Type": "image/jpeg"}
                )
                try:
                    with urllib.request.urlopen(request) as answer:
                        answers.append(answer.status)
                        json.load(answer)
                except urllib.error.HTTPError as error:
                    answers.append(error.code)
                    time.sleep(0.05)

        end = time.monotonic() + 180
        clients = [threading.Thread(target=ask) for _ in range(6)]
        for client in clients:
            client.start()
        most = 1
        while time.monotonic() < end and most < 2:
            status = serve.status().applications["segformer"].deployments["segformer"]
            most = max(most, status.replica_states.get("RUNNING", 0))
            time.sleep(0.5)
        end = 0.0
        for client in clients:
            client.join()
        assert set(answers) <= {200, 429}
        assert answers.count(200) > 0
        assert most == 2  # a replica was added
    finally:
        serve.shutdown()


def test_images_and_results_on_s3(
    album: Path, tmp_path: Path, tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("photos")
    files.mkdir("masks")
    for path in sorted(album.iterdir())[:12]:
        files.put_file(str(path), f"photos/in/{path.name}")
    ray.shutdown()  # workers inherit the environment of their node
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        result = run(tiny_model, "s3://photos/in", "s3://masks/out", images_per_unit=5)
        assert (result.done, result.failed, result.images) == (12, 0, 12)
        again = run(tiny_model, "s3://photos/in", "s3://masks/out", images_per_unit=5)
        assert (again.done, again.earlier) == (0, 12)
    finally:
        ray.shutdown()
    label_map = Image.open(io.BytesIO(storage.read_bytes("s3://masks/out/000.png")))
    expected = Predictor(tiny_model, CONFIG)(album / "000.png").label_map
    assert np.array_equal(np.asarray(label_map), expected)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageRefused, match="no credentials .*set on each machine"):
        storage.read_bytes("s3://masks/out/000.png")
    running.stop()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
