"""Keys, other origins, request ids, the log and the metrics."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi import FastAPI, Response

from segformer import Client, Predictor, SegFormer
from segformer.serving.api_key import read_keys
from segformer.serving.app import create_app
from segformer.serving.client import ServiceError
from segformer.serving.models import ServedModel, serve_model
from segformer.serving.options import ServeOptions
from segformer.serving.service import Service
from serving.live import Live, encoded, named, photo, running, wait_until

IMAGE = encoded(photo())


@pytest.fixture
def served(tiny_model: SegFormer) -> ServedModel:
    return serve_model("tiny", Predictor(named(tiny_model), device="cpu"))


def test_keys(served: ServedModel, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("old key\n\nnew-key\n")
    with running(served, api_key_file=tmp_path / "keys") as live:
        basic = base64.b64encode(b"anyone:new-key").decode()
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer "}, 401),
            ({"Authorization": "Basic !!"}, 401),
            ({"Authorization": "Basic \xe9"}, 401),
            ({"Authorization": "Basic bm9jb2xvbg=="}, 401),
            ({"X_API_Key": "old"}, 401),
            ({"Authorization": "Bearer new-key"}, 200),
            ({"Authorization": "bearer old key"}, 200),
            ({"Authorization": f"Basic {basic}"}, 200),
            ({"X_API_Key": "new-key"}, 200),
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/docs", "/nowhere"):
                reply = live.ask("GET", path, **headers)
                assert reply.status == (404 if path == "/nowhere" and status == 200 else status)
            assert live.segment(IMAGE, **headers).status == status
        reply = live.ask("GET", "/v1/models")
        assert "Bearer" in reply.headers["www-authenticate"]
        assert reply.json["code"] == "no-valid-key"
        assert live.ask("GET", "/healthz").status == live.ask("GET", "/readyz").status == 200
        schema = live.ask("GET", "/openapi.json", X_API_Key="new-key").json
        assert set(schema["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}
        assert Client(live.url, api_key="new-key").answer(IMAGE)["model"] == "tiny"
        with pytest.raises(ServiceError, match="Authorization: Bearer") as caught:
            Client(live.url).answer(IMAGE)
        assert caught.value.status == 401


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGFORMER_API_KEY", raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv("SEGFORMER_API_KEY", " a ")
    assert read_keys(None) == ("a",)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(tmp_path / "empty")
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_other_origins(served: ServedModel, live: Live) -> None:
    page = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in live.ask("GET", "/healthz", **page).headers
    ask = {**page, "Access_Control_Request_Method": "POST"}
    assert live.ask("OPTIONS", "/v1/segment", **ask).status == 405
    with running(served, cors_origins=("https://example.org",)) as allowed:
        reply = allowed.segment(IMAGE, **page)
        assert reply.headers["access-control-allow-origin"] == "https://example.org"
        assert allowed.ask("OPTIONS", "/v1/segment", **ask).status == 200
        other = {**ask, "Origin": "https://example.com"}
        assert allowed.ask("OPTIONS", "/v1/segment", **other).status == 400


def test_loopback_is_the_default() -> None:
    assert ServeOptions().host == "127.0.0.1"
    assert ServeOptions().cors_origins == ()


def test_request_ids(live: Live) -> None:
    assert live.ask("GET", "/healthz", X_Request_ID="a.B-3").headers["x-request-id"] == "a.B-3"
    for bad in ("a b", 'a"}', "x" * 65, "\xe9"):
        found = live.ask("GET", "/healthz", X_Request_ID=bad).headers["x-request-id"]
        assert len(found) == 32
    ids = {live.ask("GET", path).headers["x-request-id"] for path in ("/healthz", "/nowhere")}
    assert len(ids) == 2


def test_the_access_log(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "segformer.serving.access_log"):
        live.segment(IMAGE, "?format=label_map", X_Request_ID="one")
        live.ask("GET", "/nowhere%0a", X_Request_ID="two")
        wait_until(lambda: '"two"' in caplog.text)  # a line is written after the answer
    lines = {}
    for record in caplog.records:
        if record.name == "segformer.serving.access_log":
            assert "\n" not in record.getMessage()
            line = json.loads(record.getMessage())
            lines[line["request_id"]] = line
    one = lines["one"]
    assert (one["method"], one["path"], one["status"]) == ("POST", "/v1/segment", 200)
    assert (one["model"], one["images"], one["format"]) == ("tiny", 1, "label_map")
    assert set(one["stages"]) == {"queue", "decode", "batch", "run"}
    assert one["seconds"] >= one["stages"]["run"]
    assert lines["two"]["status"] == 404


def test_metrics(live: Live) -> None:
    def value(name: str) -> float:
        text = live.ask("GET", "/metrics").body.decode()
        return next(
            (float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0
        )

    counted = 'segformer_requests_total{method="POST",path="/v1/segment",status="200"}'
    before = value(counted), value('segformer_stage_seconds_count{stage="run"}')
    live.segment(IMAGE)
    assert value(counted) == before[0] + 1
    assert value('segformer_stage_seconds_count{stage="run"}') == before[1] + 1
    for stage in ("receive", "queue", "decode", "batch", "encode"):
        assert value(f'segformer_stage_seconds_count{{stage="{stage}"}}') > 0
    assert value("segformer_places ") == 64
    assert value("segformer_places_taken ") == 0
    assert value("segformer_queue_length ") == 0
    live.ask("GET", "/some/path/nobody/asked/for")
    text = live.ask("GET", "/metrics").body.decode()
    assert "nobody" not in text


def test_a_page_can_be_mounted(served: ServedModel) -> None:
    def page(app: FastAPI, service: Service) -> None:
        @app.get("/")
        def root() -> Response:
            return Response(f"{', '.join(service.models)}")

    app = create_app({"tiny": served}, ServeOptions(), mounts=(page,))
    assert any(getattr(route, "path", "") == "/" for route in app.routes)
    app.state.service.close()


def test_the_client_gives_predictions(live: Live, tmp_path: Path) -> None:
    client = Client(live.url, retries=0)
    array = photo()
    (tmp_path / "a.png").write_bytes(IMAGE)
    expected = live.predictor(array)
    for source in (IMAGE, tmp_path / "a.png", str(tmp_path / "a.png"), array):
        found = client(source)
        assert (found.label_map == expected.label_map).all()
        assert found.classes.names == expected.classes.names
        assert (found.image == expected.image).all()
        assert found.class_fractions == expected.class_fractions
    assert found.overlay().tobytes() == expected.overlay().tobytes()
    sure = client(array, confidence=True).confidence
    assert sure is not None
    assert 0 < sure.min() <= sure.max() <= 1
    assert client.answer(array, "polygons", simplify=1)["type"] == "FeatureCollection"
    assert [model["name"] for model in client.models()] == ["tiny"]


def test_errors_of_the_client(live: Live) -> None:
    with pytest.raises(ServiceError, match="cut off") as caught:
        Client(live.url).answer(IMAGE[:60])
    assert (caught.value.status, caught.value.code) == (422, "unreadable-image")
    with pytest.raises(ServiceError, match="there are tiny"):
        Client(live.url, "other")(IMAGE)
    with pytest.raises(ServiceError, match="does not answer"):
        Client("http://127.0.0.1:1").models()
    with pytest.raises(ValueError, match="begins with http"):
        Client("127.0.0.1:8000")
    with pytest.raises(ValueError, match="one file"):
        Client(live.url).answer(["a.tif", "b.tif"])
