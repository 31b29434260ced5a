"""Wrong input: refused with what to do, and with nothing about the machine."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import segformer.serving.queue
from mangled import mangled_files, whole_files
from segformer import Predictor, SegFormer
from segformer.serving.decoding import check_image
from segformer.serving.models import name_models, serve_model
from segformer.serving.options import ServeOptions
from segformer.serving.problems import Problem
from serving.live import Gate, Live, Reply, encoded, form, named, photo, running


def is_clean(reply: Reply) -> bool:
    """Whether an answer is a problem that names neither files nor objects nor code."""
    text = reply.body.decode()
    assert reply.headers["content-type"] == "application/problem+json", text
    problem = json.loads(text)
    assert problem["status"] == reply.status
    assert len(problem["detail"]) > 20
    return not re.search(r"0x[0-9a-f]+|Traceback|\.py\b|site-packages|/tmp|/home|<_io|PIL\.", text)


def empty_png(height: int, width: int) -> bytes:
    """A PNG file that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(3000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def problem_of(data: bytes, **options: object) -> Problem:
    with pytest.raises(Problem) as caught:
        check_image(data, ServeOptions(**options))
    return caught.value


def test_pixels_are_limited_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tiff, array = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(tiff, np.zeros((3000, 3000), np.uint8), compression="zlib")
    np.save(array, np.zeros((3000, 3000), np.uint8))
    small = encoded(photo())
    monkeypatch.setattr(Image.Image, "load", None)  # decoding would be an error
    for data in (empty_png(3000, 3000), tiff.getvalue(), array.getvalue()):
        problem = problem_of(data, max_megapixels=8.0, formats=("png", "tiff", "npy"))
        assert (problem.status, problem.code) == (413, "too-many-pixels")
        assert "3000 x 3000" in problem.detail
        assert "8 megapixels" in problem.detail
    header = check_image(small, ServeOptions())
    assert (header.format, header.height, header.width) == ("png", 40, 56)


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_decompression_bombs(live: Live, side: int) -> None:
    reply = live.segment(empty_png(side, side))
    assert reply.status in (413, 422)
    assert is_clean(reply)


def test_many_channels_count_as_pixels() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.zeros((100, 100, 400), np.uint8), photometric="minisblack", compression="zlib"
    )
    assert problem_of(buffer.getvalue(), max_megapixels=0.5).code == "too-many-pixels"
    pages = io.BytesIO()
    tifffile.imwrite(
        pages, np.zeros((400, 100, 100), np.uint8), photometric="minisblack", compression="zlib"
    )
    assert problem_of(pages.getvalue(), max_megapixels=0.5).code == "too-many-pixels"


def test_formats_are_a_list(live: Live) -> None:
    reply = live.segment(encoded(photo(), "GIF"))
    assert (reply.status, reply.json["code"]) == (415, "format-not-accepted")
    assert "jpeg, png" in reply.json["detail"]
    assert check_image(encoded(photo(), "GIF"), ServeOptions(formats=("gif",))).format == "gif"
    assert problem_of(encoded(photo()), formats=("gif",)).status == 415


def test_bytes_are_limited(tiny_model: SegFormer) -> None:
    served = serve_model("tiny", Predictor(named(tiny_model), device="cpu"))
    with running(served, max_megabytes=0.02) as live:
        for body, headers in (
            (bytes(30_000), {"Content_Type": "image/png"}),
            (iter([bytes(15_000)] * 2), {"Content_Type": "image/png"}),  # its length is not known
            (form(("image", bytes(30_000)))[0], {"Content_Type": form()[1]}),
            (b'{"images": ["' + b"A" * 30_000 + b'"]}', {"Content_Type": "application/json"}),
        ):
            reply = live.ask("POST", "/v1/segment", body, **headers)
            assert (reply.status, reply.json["code"]) == (413, "too-many-bytes")
            assert is_clean(reply)
        assert live.segment(encoded(photo())).status == 200


def test_broken_images(live: Live) -> None:
    seen = set()
    files = list(whole_files().items()) + list(mangled_files(150, seed=1))
    for name, data in files:
        reply = live.segment(data)
        seen.add(reply.status)
        if reply.status != 200:
            assert reply.status in (400, 413, 415, 422), name
            assert is_clean(reply), (name, reply.body)
    assert {200, 415, 422} <= seen


def test_truncated_images(live: Live) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = encoded(photo(), kind)
        reply = live.segment(data[: len(data) // 2])
        assert reply.status == 422, kind
        assert reply.json["code"] == "unreadable-image"
        assert is_clean(reply)


def test_other_bodies(live: Live) -> None:
    image = encoded(photo())
    for body, media_type, status, code in (
        (b"", "image/png", 400, "no-image"),
        (b"words", "image/png", 415, "unknown-format"),
        (image, "text/plain", 415, "unknown-content-type"),
        (image, "application/x-www-form-urlencoded", 415, "unknown-content-type"),
        (b"{", "application/json", 400, "broken-json"),
        (b"[" * 10_000, "application/json", 400, "broken-json"),
        (b"{}", "application/json", 422, "no-image"),
        (b'{"images": [3]}', "application/json", 422, "broken-base64"),
        (b'{"images": ["!"]}', "application/json", 422, "broken-base64"),
        (b'{"images": [""]}', "application/json", 415, "unknown-format"),
        (b"x", "multipart/form-data", 400, "broken-form"),
        (b"x", "multipart/form-data; boundary=a", 400, "broken-form"),
        (*form(("file", image)), 422, "unknown-field"),
        (*form(("image", image), filename=None), 422, "unknown-field"),
        (*form(), 422, "no-image"),
        (b'{"images": [' + b'"",' * 80 + b'""]}', "application/json", 413, "too-many-images"),
    ):
        reply = live.ask("POST", "/v1/segment", body, Content_Type=media_type)
        assert (reply.status, reply.json["code"]) == (status, code), (body[:50], reply.body)
        assert is_clean(reply)


def test_the_image_of_a_list_is_named(live: Live) -> None:
    body, media_type = form(("image", encoded(photo())), ("image", encoded(photo())[:60]))
    reply = live.ask("POST", "/v1/segment", body, Content_Type=media_type)
    assert (reply.status, reply.json["image"]) == (422, 1)
    assert reply.json["detail"].startswith("image 1: ")


def test_wrong_parameters(live: Live) -> None:
    for query, word in (
        ("?fromat=json", "fromat"),
        ("?format=jpeg2000", "label_map"),
        ("?simplify=-1", "simplify"),
        ("?simplify=nan", "simplify"),
        ("?timeout=0", "timeout"),
        ("?model=other", "tiny"),
    ):
        reply = live.segment(encoded(photo()), query)
        assert reply.status == 422
        assert word in reply.json["detail"]
        assert is_clean(reply)


def test_other_pages(live: Live) -> None:
    reply = live.ask("GET", "/nowhere")
    assert (reply.status, reply.json["code"]) == (404, "not-found")
    assert is_clean(reply)
    reply = live.ask("GET", "/v1/segment")
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert is_clean(reply)


def test_channels_of_the_model(live: Live) -> None:
    buffer = io.BytesIO()
    values = np.zeros((40, 40, 5), np.uint8)
    tifffile.imwrite(buffer, values, photometric="minisblack", planarconfig="contig")
    reply = live.segment(buffer.getvalue())
    assert (reply.status, reply.json["code"]) == (422, "wrong-channels")
    assert reply.json["detail"] == "the model takes 3 channels, this has 5"


def test_errors_of_the_service_tell_nothing(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret in /home/me/model.safetensors")

    monkeypatch.setattr(segformer.serving.queue.Queue, "_predict", broken)
    reply = live.segment(encoded(photo()), X_Request_ID="find-me")
    assert reply.status == 500
    assert is_clean(reply)
    assert b"secret" not in reply.body
    assert reply.headers["x-request-id"] == "find-me"
    assert "request find-me failed" in caplog.text
    assert "secret" in caplog.text


def test_too_little_memory(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(segformer.serving.queue.Queue, "_predict", full)
    reply = live.segment(encoded(photo()))
    assert (reply.status, reply.json["code"]) == (413, "out-of-memory")


def test_options_are_checked() -> None:
    for options in (
        {"port": 70000},
        {"queue_size": 0},
        {"deadline": 0.0},
        {"deadline": -1.0},
        {"batch_wait": float("nan")},
        {"max_megapixels": 400.0},
        {"max_megabytes": 0.0},
        {"formats": ()},
        {"formats": ("exe",)},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            ServeOptions(**options)


def test_names_of_models(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_models(()) == {"human-parsing-b0": "human-parsing-b0"}
    assert name_models(("a/b", "mine=a/c")) == {"a/b": "a/b", "mine": "a/c"}
    with pytest.raises(ValueError, match="NAME=MODEL"):
        name_models(("x=a", "x=b"))
    with pytest.raises(ValueError, match="NAME=MODEL"):
        name_models(("=a",))


def test_models_of_runs_are_named_after_the_run(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path)) / "parts" / "best"
    folder.mkdir(parents=True)
    assert name_models((str(folder),)) == {"parts-best": str(folder)}


def test_several_models(tiny_model: SegFormer) -> None:
    predictor = Predictor(named(tiny_model), device="cpu")
    other = serve_model("other", Predictor(device="cpu"))
    gate = Gate()
    gate.opened.set()
    with running(gate.of(predictor), other) as live:
        assert live.segment(encoded(photo())).json["model"] == "tiny"
        reply = live.segment(encoded(photo()), "?model=other")
        assert reply.json["class_fractions"] == other.predictor(photo()).class_fractions
        models = live.ask("GET", "/v1/models").json["models"]
        assert [model["name"] for model in models] == ["tiny", "other"]
        assert models[0]["classes"][1]["name"] == "road"
        assert live.ask("GET", "/label-studio/other/health").json["status"] == "UP"
