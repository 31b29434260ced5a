"""The page at /, without a browser: results, limits, what is reached and what is kept."""

from __future__ import annotations

import base64
import io
import logging
import os
import re
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("gradio", reason="the extra serve is not installed")

from conftest import TINY, randomize
from segformer import Predictor, SegFormer
from segformer.image import read_image
from segformer.serving import server
from segformer.serving.models import serve_model
from segformer.serving.options import ServeOptions
from segformer.serving.page.mount import mount_page
from segformer.serving.page.results import done
from segformer.serving.page.storage import clean
from serving.live import Gate, Live, encoded, named, photo, running, wait_until
from serving.test_limits import empty_png
from serving.visitor import Visitor

# Gradio 6.31 beside pandas 3
pytestmark = pytest.mark.filterwarnings(
    "ignore:'future.no_silent_downcasting'", "ignore:The copy keyword is deprecated"
)

PAGE = (mount_page,)
IMAGE = encoded(photo())


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(named(randomize(SegFormer(TINY)).eval()), device="cpu")


@pytest.fixture(scope="module")
def paged(predictor: Predictor) -> Iterator[Live]:
    with running(serve_model("tiny", predictor), mounts=PAGE) as service:
        yield service


@pytest.fixture
def visitor(paged: Live) -> Visitor:
    return Visitor(paged)


def test_results_are_those_of_the_service_and_of_predict(
    visitor: Visitor, paged: Live, tmp_path: Path
) -> None:
    (result,) = visitor.segment(("street.png", IMAGE))
    assert (result["state"], result["name"]) == ("done", "street.png")
    assert (result["height"], result["width"]) == (40, 56)
    (tmp_path / "street.png").write_bytes(IMAGE)
    saved, overlay = paged.predictor(tmp_path / "street.png").save(tmp_path / "out")
    assert visitor.fetch(result["label_map"]).body == saved.read_bytes()
    assert visitor.fetch(result["label_map"]).body == paged.segment(IMAGE, "?format=label_map").body
    assert visitor.fetch(result["overlay"]).body == overlay.read_bytes()
    assert visitor.fetch(result["summary"]).json == paged.segment(IMAGE).json
    for key, name in (
        ("label_map", "street.png"),
        ("overlay", "street_overlay.jpg"),
        ("summary", "street.json"),
    ):
        assert result[key]["url"].endswith("/" + name)


def test_what_the_page_shows(visitor: Visitor, paged: Live) -> None:
    (result,) = visitor.segment(("street.png", IMAGE))
    prediction = paged.predictor(IMAGE)
    ids = np.asarray(Image.open(io.BytesIO(visitor.fetch(result["ids"]).body)))
    np.testing.assert_array_equal(ids[..., 0] + 256 * ids[..., 1].astype(int), prediction.label_map)
    shown = read_image(visitor.fetch(result["image"]).body)
    assert np.abs(shown.astype(int) - photo()).mean() < 16  # of JPEG
    found = {entry["name"]: entry["fraction"] for entry in result["classes"] if entry["fraction"]}
    assert found == prediction.class_fractions
    assert list(found) == list(prediction.class_fractions)
    names = {entry["id"]: entry["name"] for entry in result["classes"]}
    assert names == dict(enumerate(prediction.classes.names))


def test_large_images_are_shown_smaller(predictor: Predictor, tmp_path: Path) -> None:
    """With the nearest class ids; the label map keeps its size."""
    prediction = predictor(photo(40, 4100))
    result = done("wide.png", prediction, "tiny", tmp_path / "result")
    with Image.open(result["image"]["path"]) as shown, Image.open(result["ids"]["path"]) as ids:
        assert shown.size == ids.size == (2048, 20)
        low = np.asarray(ids)[..., 0]
    assert (low == prediction.label_map[::2, (np.arange(2048) * 4100) // 2048]).all()
    with Image.open(result["label_map"]["path"]) as label_map:
        assert label_map.size == (4100, 40)


def test_many_classes_need_two_bytes(tmp_path: Path) -> None:
    from segformer import ClassSet
    from segformer.prediction.prediction import Prediction

    label_map = np.arange(24 * 25, dtype=np.uint16).reshape(24, 25)
    classes = ClassSet(tuple(f"class {i}" for i in range(600)), ignore_index=65535)
    result = done("many.png", Prediction(label_map, classes, photo(24, 25)), "m", tmp_path / "r")
    ids = np.asarray(Image.open(result["ids"]["path"])).astype(int)
    np.testing.assert_array_equal(ids[..., 0] + 256 * ids[..., 1], label_map)


def test_errors_are_sentences(visitor: Visitor) -> None:
    files = [
        ("text.jpg", b"no image"),
        ("cut.png", IMAGE[: len(IMAGE) // 2]),
        ("bomb.png", empty_png(20_000, 20_000)),
        ("moving.gif", encoded(photo(), "GIF")),
        ("street.png", IMAGE),
    ]
    found = visitor.segment(*files)
    assert [result["name"] for result in found] == [name for name, _ in files]
    assert [result["state"] for result in found] == ["failed"] * 4 + ["done"]
    problems = [result["problem"] for result in found[:4]]
    assert "not an image" in problems[0]
    assert "cannot be decoded" in problems[1]
    assert "megapixels" in problems[2]
    assert "gif are not read here" in problems[3]
    assert not re.search(r"/tmp|Traceback|\.py\b|0x|PIL", " ".join(problems))


def test_the_example(visitor: Visitor) -> None:
    (result,) = visitor.trigger("segment_example")
    assert result["state"] == "done"


def test_results_are_added_to_earlier_ones(visitor: Visitor) -> None:
    visitor.segment(("a.png", IMAGE))
    found = visitor.segment(("b.png", IMAGE), ("a.png", IMAGE))
    assert [result["name"] for result in found] == ["a.png", "b.png", "a.png"]
    urls = [result["label_map"]["url"] for result in found]
    assert len(set(urls)) == 3
    assert len(Visitor(visitor.live).segment(("c.png", IMAGE))) == 1  # of another visitor


def test_images_go_through_the_queue(predictor: Predictor) -> None:
    gate = Gate()
    gate.opened.set()
    served = gate.of(predictor, batch_size=3)
    with running(served, mounts=PAGE, batch_wait=30.0, deadline=60.0) as live:
        Visitor(live).segment(*((f"{i}.png", IMAGE) for i in range(6)))
        assert gate.batches == [3, 3]
        assert live.service.places.taken == 0
        assert b'segformer_images_total{model="tiny"} 6.0' in live.ask("GET", "/metrics").body


def test_a_busy_service_and_its_deadline(predictor: Predictor) -> None:
    gate = Gate()
    with running(gate.of(predictor), mounts=PAGE, queue_size=1, deadline=1.0) as live:
        (late,) = Visitor(live).segment(("a.png", IMAGE))
        assert (late["state"], late["problem"].split(";")[0]) == (
            "failed",
            "the request was not done within 1 s",
        )
        busy = threading.Thread(target=live.segment, args=(IMAGE,))
        busy.start()
        wait_until(lambda: live.service.places.taken == 1)
        (refused,) = Visitor(live).segment(("a.png", IMAGE))
        assert re.fullmatch(r"the service is busy; try again in \d+ s", refused["problem"])
        gate.opened.set()
        busy.join()


def test_bytes_are_limited(predictor: Predictor) -> None:
    with running(serve_model("tiny", predictor), mounts=PAGE, max_megabytes=0.02) as live:
        visitor = Visitor(live)
        assert visitor.upload("large.png", bytes(30_000)).status == 413
        assert visitor.upload("small.png", IMAGE).status == 200


def test_paths_of_the_service_stay_its_own(paged: Live) -> None:
    assert b"gradio-app" in paged.ask("GET", "/").body
    for path in ("/docs", "/openapi.json", "/v1/models", "/metrics", "/healthz", "/readyz"):
        reply = paged.ask("GET", path)
        assert reply.status == 200
        assert "content-security-policy" not in reply.headers
    assert paged.segment(IMAGE).json["model"] == "tiny"
    assert not any("gradio" in path for path in paged.ask("GET", "/openapi.json").json["paths"])


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1/nowhere",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/call/segment_files/1",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file=//http://127.0.0.1/",
        "/login",
        "/monitoring",
    ],
)
def test_the_rest_of_gradio_is_not_reached(paged: Live, path: str) -> None:
    for method in ("GET", "POST"):
        reply = paged.ask(method, path)
        assert (reply.status, reply.json["code"]) == (404, "not-found")


def test_other_files_are_not_reached(paged: Live, visitor: Visitor) -> None:
    for path in (Path(__file__), Path("pyproject.toml").resolve(), Path("/etc/passwd")):
        assert paged.ask("GET", f"/gradio_api/file={path}").status == 403
        chosen = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}]
        with pytest.raises(AssertionError, match="process_completed") as caught:
            visitor.trigger("segment_files", chosen)
        assert str(path) not in str(caught.value)


def test_the_page_names_nothing_of_the_machine(paged: Live) -> None:
    text = paged.ask("GET", "/").body.decode() + paged.ask("GET", "/config").body.decode()
    folder = os.environ["GRADIO_TEMP_DIR"]
    for place in (folder, str(Path(__file__).parents[2]), str(Path.home()), "site-packages"):
        assert place not in text


def test_keys(predictor: Predictor, tmp_path: Path) -> None:
    """Browsers ask for the key as a password."""
    (tmp_path / "keys").write_text("the-key")
    served = serve_model("tiny", predictor)
    with running(served, mounts=PAGE, api_key_file=tmp_path / "keys") as live:
        for path in ("/", "/config", "/gradio_api/upload", "/gradio_api/file=/etc/passwd"):
            assert live.ask("GET", path).status == 401
        basic = base64.b64encode(b":the-key").decode()
        assert live.ask("GET", "/", Authorization=f"Basic {basic}").status == 200


def test_files_are_deleted(predictor: Predictor) -> None:
    with running(serve_model("tiny", predictor), mounts=PAGE) as live:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o777 == 0o700
        (result,) = Visitor(live).segment(("a.png", IMAGE))
        assert Path(result["label_map"]["path"]).is_relative_to(folder)
    assert not folder.exists()


def test_old_files_are_deleted_while_the_service_runs(tmp_path: Path) -> None:
    for name in ("old/deep/a", "old/b", "new/c", "mixed/d", "mixed/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for path in tmp_path.rglob("*"):
        if "old" in str(path.relative_to(tmp_path)) or path.name == "d":
            os.utime(path, (0, 0))
    clean(tmp_path, 60)
    # Folders whose files have just been deleted are new, and go the next time
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"c", "e"}
    for path in (tmp_path / "old/deep", tmp_path / "old"):
        os.utime(path, (0, 0))
    clean(tmp_path, 60)
    clean(tmp_path, 0)
    assert tmp_path.is_dir()
    assert not (tmp_path / "old").exists()


def test_open_pages_do_not_delay_the_end(predictor: Predictor) -> None:
    with running(serve_model("tiny", predictor), mounts=PAGE) as live:
        connection = HTTPConnection("127.0.0.1", live.port, timeout=60)
        connection.request("GET", "/gradio_api/heartbeat/open")
        stream = connection.getresponse()
        assert stream.readline() == b"data: ALIVE\n"
    connection.close()  # `running` has waited for the end of the server


def test_the_page_is_optional(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert server.mounts_of(ServeOptions()) == PAGE
    assert server.mounts_of(ServeOptions(page=False)) == ()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with caplog.at_level(logging.INFO):
        assert server.mounts_of(ServeOptions()) == ()
    (record,) = caplog.records
    assert 'pip install "segformer[serve]"' in record.message
