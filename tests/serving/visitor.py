"""A visitor of the page without a browser: what the page's scripts ask of Gradio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from serving.live import Live, Reply, form


class Visitor:
    """A session.

    Args:
        live: The service.
    """

    def __init__(self, live: Live):
        self.live, self.session = live, uuid4().hex
        config = live.ask("GET", "/config").json
        self.components = {entry["id"]: entry for entry in config["components"]}
        self.listeners = {entry["api_name"]: entry for entry in config["dependencies"]}

    def upload(self, name: str, data: bytes) -> Reply:
        body, content_type = form(("files", data), filename=name)
        return self.live.ask("POST", "/gradio_api/upload", body, Content_Type=content_type)

    def segment(self, *files: tuple[str, bytes]) -> list[dict[str, Any]]:
        """The results of files that are dropped on the page."""
        chosen = []
        for name, data in files:
            (path,) = self.upload(name, data).json
            chosen.append({"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}})
        return self.trigger("segment_files", chosen)

    def trigger(self, name: str, *values: Any) -> Any:
        """The first output a function of the page; values are those of its first inputs."""
        listener = self.listeners[name]
        own = [self.components[i]["props"].get("value") for i in listener["inputs"]]
        body = {
            "data": [*values, *own[len(values) :]],
            "fn_index": listener["id"],
            "session_hash": self.session,
        }
        reply = self.live.ask(
            "POST",
            "/gradio_api/queue/join",
            json.dumps(body).encode(),
            Content_Type="application/json",
        )
        assert reply.status == 200, reply.body
        for message in self._messages():
            if message["msg"] == "process_completed":
                assert message["success"], message
                return message["output"]["data"][0]
        raise AssertionError("the stream ended without a result")

    def fetch(self, file: dict[str, Any]) -> Reply:
        """A file of a result."""
        return self.live.ask("GET", urlsplit(file["url"]).path)

    def _messages(self) -> Iterator[dict[str, Any]]:
        connection = HTTPConnection("127.0.0.1", self.live.port, timeout=60)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
            answer = connection.getresponse()
            while line := answer.readline():
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])
        finally:
            connection.close()
