"""A service on a port of its own, in a thread, and plain requests to it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import uvicorn
from PIL import Image

from segformer import ClassSet, Predictor, SegFormer
from segformer.prediction.prediction import Prediction
from segformer.prediction.staged import StagedPredictor
from segformer.serving.app import create_app
from segformer.serving.models import ServedModel
from segformer.serving.options import ServeOptions
from segformer.serving.service import Service

NAMES = ("background", "road", "car", "tree", "sky")


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Live:
    """A running service."""

    port: int
    service: Service
    predictor: Predictor

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            connection.close()

    def segment(self, data: bytes, query: str = "", **headers: str) -> Reply:
        return self.ask(
            "POST", f"/v1/segment{query}", data, **{"Content_Type": "image/png", **headers}
        )


@dataclass
class Gate:
    """Holds the model until it is opened; knows what has been run."""

    opened: threading.Event = field(default_factory=threading.Event)
    running: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)

    def of(self, predictor: Predictor, batch_size: int | None = None) -> ServedModel:
        gate = self

        class Gated(StagedPredictor):
            @property
            def batch_size(self) -> int:
                return batch_size or super().batch_size

            def run(self, images: Any, **options: Any) -> list[Prediction]:
                gate.running.set()
                assert gate.opened.wait(60)
                gate.batches.append(len(images))
                return super().run(images, **options)

        return ServedModel("tiny", "tiny", predictor, Gated(predictor))


def named(model: SegFormer) -> SegFormer:
    """The small model with names of classes."""
    model.classes = ClassSet(NAMES)
    return model


@contextmanager
def running(model: ServedModel, *more: ServedModel, **options: Any) -> Iterator[Live]:
    """A service in a thread of this process."""
    models = {served.name: served for served in (model, *more)}
    app = create_app(models, ServeOptions(**options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started)
            port = listening.getsockname()[1]
            yield Live(port, app.state.service, model.predictor)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def photo(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """(H, W, 3) blocks of colors, for which a model with random weights finds several classes."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


def encoded(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def form(*parts: tuple[str, bytes], filename: str | None = "a.png") -> tuple[bytes, str]:
    """A multipart body and its content type."""
    boundary = uuid4().hex
    file = f'; filename="{filename}"' if filename else ""
    pieces = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in parts
    ]
    body = b"".join(pieces) + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"
