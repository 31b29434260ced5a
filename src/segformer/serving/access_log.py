"""A line of JSON and the metrics for each request, and its id."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segformer.serving.metrics import Metrics
from segformer.serving.problems import CLIENT_GONE, internal_error

logger = logging.getLogger(__name__)

_KEY = "segformer.record"

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
"""Request ids that are taken over from a client; others could forge lines of a log."""


@dataclass
class Record:
    """What becomes known of a request while it is worked on.

    Attributes:
        request_id: Its id.
        status: Of the answer, once there is one.
        sent: Bytes of the answer's body.
        more: Further members of the log line.
    """

    request_id: str
    status: int = CLIENT_GONE
    sent: int = 0
    more: dict[str, Any] = field(default_factory=dict)


def record_of(request: Request) -> Record:
    """The record of a request that came through `AccessLog`."""
    record: Record = request.scope[_KEY]
    return record


class AccessLog:
    """Middleware that gives each request an id, logs and counts it, and answers its errors.

    Args:
        app: What answers.
        metrics: Where requests are counted.
        log: Whether requests are logged.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log: bool):
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        record = Record(_request_id(scope))
        scope[_KEY] = record
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                record.status = message["status"]
                headers = [*message.get("headers", []), _id_header(record.request_id)]
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                record.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", record.request_id)
            if started:
                raise
            await internal_error().answer()(scope, receive, send_with_id)
        finally:
            self._note(scope, record, time.monotonic() - began)

    def _note(self, scope: Scope, record: Record, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self.metrics.requests.labels(path, scope["method"], record.status).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        if not self.log:
            return
        client = scope.get("client")
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": record.request_id,
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"],
            "status": record.status,
            "seconds": round(seconds, 4),
            "bytes": record.sent,
            **record.more,
        }
        logger.info("%s", json.dumps(line, ensure_ascii=True))


def _request_id(scope: MutableMapping[str, Any]) -> str:
    """The id that the client gives, if it is a plain one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return uuid4().hex


def _id_header(request_id: str) -> tuple[bytes, bytes]:
    return b"x-request-id", request_id.encode("latin-1")
