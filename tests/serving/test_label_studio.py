"""The backend for Label Studio: what it answers is decoded to the same masks again."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from layout_samples import class_ids, read_split
from segformer import Predictor, SegFormer
from segformer.data.brush_masks import encode_brush
from segformer.data.layouts.label_studio import decode_brush
from segformer.serving.label_matching import LabelsDiffer, match_labels
from segformer.serving.label_studio import read_label_config
from segformer.serving.models import serve_model
from segformer.serving.options import ServeOptions
from segformer.serving.problems import Problem
from segformer.serving.task_images import TaskImages
from serving.live import NAMES, Live, encoded, named, photo, running

CONFIG = """
<View>
  <Image name="photo" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="photo">
    <Label value="Car" background="#FF0000"/><Label value="road"/>
    <Label value="nature" predicted_values="tree, sky"/><Label value="dog" predicted_values=""/>
  </BrushLabels>
  <Choices name="quality" toName="photo"><Choice value="blurred"/></Choices>
</View>
"""


def data_url(image: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded(image)).decode()}"


def post(live: Live, path: str, **content: Any) -> Any:
    body = json.dumps(content).encode()
    return live.ask("POST", f"/label-studio/{path}", body, Content_Type="application/json")


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (60, 80), (300, 400)])
def test_brush_masks_round_trip(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for density in (0, 0.01, 0.5, 1):
        mask = rng.random(size) < density
        assert (decode_brush(encode_brush(mask), *size, "mask") == mask).all()


def test_brush_masks_as_label_studio_reads_them() -> None:
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    rng = np.random.default_rng(0)
    for mask in (rng.random((20, 30)) < 0.3, np.ones((300, 90), bool), np.zeros((4, 4), bool)):
        values = brush.decode_rle(list(encode_brush(mask))).reshape(*mask.shape, 4)
        assert ((values[:, :, 3] == 255) == mask).all()
        assert np.isin(values, (0, 255)).all()


def test_pre_annotation(live: Live) -> None:
    images = [photo(), photo(64, 48, seed=1)]
    tasks = [{"id": i, "data": {"image": data_url(image)}} for i, image in enumerate(images)]
    reply = post(live, "predict", tasks=tasks, label_config=CONFIG, project="1.1", params={})
    assert reply.status == 200
    staged = live.service.models["tiny"].staged
    for result, image in zip(reply.json["results"], images, strict=True):
        (expected,) = staged.run([staged.prepare(image)], confidence=True)
        assert expected.confidence is not None
        assert result["model_version"] == "tiny"
        assert result["score"] == pytest.approx(expected.confidence.mean())
        found = {}
        for region in result["result"]:
            assert region["type"] == "brushlabels"
            assert (region["from_name"], region["to_name"]) == ("brush", "photo")
            height, width = region["original_height"], region["original_width"]
            assert (height, width) == image.shape[:2]
            (label,) = region["value"]["brushlabels"]
            rle = bytes(region["value"]["rle"])
            found[label] = decode_brush(rle, height, width, label)
        ids = {"Car": [2], "road": [1], "nature": [3, 4]}
        for label, members in ids.items():
            mask = np.isin(expected.label_map, members)
            assert (found.pop(label, np.zeros_like(mask)) == mask).all()
        assert not found


def test_what_is_corrected_comes_back_as_a_data_set(live: Live, tmp_path: Path) -> None:
    """Predictions as Label Studio exports them once they have been accepted."""
    labels = "".join(f'<Label value="{name}"/>' for name in NAMES[1:])
    config = f'<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i">{labels}'
    config += "</BrushLabels></View>"
    image = photo()
    Image.fromarray(image).save(tmp_path / "a.png")
    task = {"id": 1, "data": {"image": data_url(image)}}
    (result,) = post(live, "predict", tasks=[task], label_config=config).json["results"]
    annotations = [{"id": 1, "was_cancelled": False, "result": result["result"]}]
    exported = [{"id": 1, "annotations": annotations, "data": {"image": "/data/upload/1/a.png"}}]
    (tmp_path / "export.json").write_text(json.dumps(exported))
    split = read_split(tmp_path, "label-studio", "all")
    expected = live.predictor(image).label_map
    found = np.array(split.classes.names)[class_ids(split)]
    assert (found == np.array(NAMES)[expected]).all()


def test_setup(live: Live) -> None:
    assert live.ask("GET", "/label-studio/health").json["status"] == "UP"
    reply = post(live, "setup", project="1.2", schema=CONFIG, hostname="x", access_token="y")
    assert (reply.status, reply.json) == (200, {"model_version": "tiny"})
    assert post(live, "tiny/setup", schema=CONFIG).json == {"model_version": "tiny"}
    assert post(live, "webhook", action="TASKS_CREATED").status == 200


def test_labels_that_the_model_does_not_know(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG.replace('"dog" predicted_values=""', '"dog"')
    reply = post(live, "setup", schema=config)
    assert (reply.status, reply.json["code"]) == (422, "labels-differ")
    detail = reply.json["detail"]
    assert "no class 'dog'" in detail
    assert "'Car', 'road', 'nature', 'dog'" in detail
    assert "'background', 'road', 'car', 'tree', 'sky'" in detail
    assert "predicted_values" in detail
    assert "no class 'dog'" in caplog.text
    assert post(live, "predict", tasks=[], label_config=config).status == 422


def test_matching_by_name(live: Live) -> None:
    classes = live.predictor.model.classes
    assert match_labels(["CAR ", "sky"], classes) == {2: "CAR ", 4: "sky"}
    for labels, message in (
        ([], "no label of the project is a class"),
        (["car", "Car"], "several labels stand for the class 'car'"),
        (["car", "auto"], "no class 'auto'"),
    ):
        with pytest.raises(LabelsDiffer, match=message):
            match_labels(labels, classes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("<View>", "not valid XML"),
        ("<View/>", "no brush labels"),
        (CONFIG.replace("BrushLabels", "PolygonLabels"), "no brush labels"),
    ],
)
def test_other_labeling_interfaces(live: Live, config: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label_config(config, live.predictor.model.classes)
    assert post(live, "setup", schema=config).status == 422


def test_an_unreadable_image_has_no_regions(live: Live) -> None:
    broken = f"data:image/png;base64,{base64.b64encode(encoded(photo())[:70]).decode()}"
    tasks = [{"id": 1, "data": {"image": value}} for value in (data_url(photo()), broken)]
    good, bad = post(live, "predict", tasks=tasks, label_config=CONFIG).json["results"]
    assert good["result"]
    assert bad == {"model_version": "tiny", "score": 0.0, "result": []}
    for task in ({"data": {"image": broken}}, {"data": {"text": "a"}}, {}, 3):
        reply = post(live, "predict", tasks=[task], label_config=CONFIG)
        assert reply.status == 422, task


class FakeLabelStudio(BaseHTTPRequestHandler):
    """Uploads that need a token; one redirects to another host."""

    elsewhere = ""
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        self.server.seen.append((self.path, token))  # type: ignore[attr-defined]
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere)  # type: ignore[attr-defined]
            self.end_headers()
            return
        self.send_response(200 if token in ("Token abc", "Bearer short") else 401)
        self.end_headers()
        self.wfile.write(encoded(photo()))

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert given == {"refresh": "a.b.c"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"access": "short"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def label_studio() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), FakeLabelStudio) as server:
        server.seen = []  # type: ignore[attr-defined]
        server.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        server.elsewhere = f"http://localhost:{server.server_port}/a"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("token", ["abc", "a.b.c"])
def test_uploads_are_loaded_with_the_token(label_studio: Any, token: str) -> None:
    options = ServeOptions(label_studio_url=label_studio.url)
    images = TaskImages(options, {"LABEL_STUDIO_API_KEY": token})
    assert images.load("/data/upload/1/a.png") == encoded(photo())
    assert images.load(f"{label_studio.url}/data/upload/1/a.png") == encoded(photo())


def test_the_token_stays_with_label_studio(label_studio: Any) -> None:
    images = TaskImages(
        ServeOptions(label_studio_url=label_studio.url), {"LABEL_STUDIO_API_KEY": "abc"}
    )
    with pytest.raises(Problem, match="401"):
        images.load("/moved.png")
    assert label_studio.seen == [("/moved.png", "Token abc"), ("/a", None)]
    with pytest.raises(Problem, match="LABEL_STUDIO_API_KEY"):
        TaskImages(ServeOptions(label_studio_url=label_studio.url), {}).load("/a.png")


def test_nothing_else_is_loaded(label_studio: Any, tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    (root / "a b.png").write_bytes(b"image")
    (tmp_path / "secret").write_bytes(b"secret")
    images = TaskImages(
        ServeOptions(label_studio_url=label_studio.url, label_studio_files=root), {}
    )
    assert images.load("/data/local-files/?d=a%20b.png") == b"image"
    for value in (
        "/data/local-files/?d=../secret",
        f"/data/local-files/?d={tmp_path}/secret",
        "/data/local-files/?d=none.png",
        f"http://localhost:{label_studio.server_port}/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "//example.org/a.png",
        "data:text/plain,abc",
        "http://[::1/a.png",
        f"{label_studio.url.rpartition(':')[0]}:port/a.png",
        "/data/upload/1/a b.png",
    ):
        with pytest.raises(Problem) as caught:
            images.load(value)
        assert caught.value.status == 422
    assert label_studio.seen == []
    with pytest.raises(Problem, match="--label-studio-url"):
        TaskImages(ServeOptions(), {}).load("/data/upload/1/a.png")


def test_large_images_of_tasks(label_studio: Any) -> None:
    options = ServeOptions(label_studio_url=label_studio.url, max_megabytes=0.0001)
    with pytest.raises(Problem, match="above the limit"):
        TaskImages(options, {"LABEL_STUDIO_API_KEY": "abc"}).load("/a.png")


def test_versions_change_with_the_weights(tiny_model: SegFormer, tmp_path: Path) -> None:
    import os

    tiny_model.save_pretrained(tmp_path)
    predictor = Predictor(named(tiny_model), device="cpu")
    versions = set()
    for time in (1_700_000_000, 1_700_000_100):
        for file in tmp_path.iterdir():
            os.utime(file, (time, time))
        served = serve_model("parts", predictor, str(tmp_path))
        versions.add(served.version)
    assert versions == {"parts 2023-11-14 22:13:20", "parts 2023-11-14 22:15:00"}
    with running(served) as live:
        assert post(live, "setup", schema="").json["model_version"] in versions
