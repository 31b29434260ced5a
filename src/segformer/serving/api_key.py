"""Access by key."""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from segformer.serving.problems import Problem

VARIABLE = "SEGFORMER_API_KEY"

OPEN_PATHS = ("/healthz", "/readyz")
"""What is answered without a key, for orchestrators that only ask whether the service runs."""


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys in a file, one in each line, or else in the environment.

    Raises:
        ValueError: The file cannot be read or holds none.
    """
    if file is None:
        key = os.environ.get(VARIABLE, "").strip()
        return (key,) if key else ()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: the keys cannot be read: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ValueError(f"{file}: holds no key; write one in each line")
    return keys


class RequireKey:
    """Middleware that refuses requests without one of the keys.

    A key is given as ``Authorization: Bearer KEY``, as ``X-API-Key: KEY``, or as the password of
    HTTP basic authentication, which browsers and Label Studio know.

    Args:
        app: What answers.
        keys: The keys.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        given = _given_key(Headers(scope=scope))
        # Each key is compared to its end, so that the time tells nothing about it
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        if any(matches):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        problem = Problem(
            401,
            "no-valid-key",
            "give a key of this service as Authorization: Bearer KEY",
            {"WWW-Authenticate": 'Basic realm="segformer", charset="UTF-8"'},
        )
        answer = problem.answer()
        # In a header of its own: Chromium reads one scheme of each
        answer.headers.append("WWW-Authenticate", "Bearer")
        await answer(scope, receive, send)


def _given_key(headers: Headers) -> bytes:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).partition(b":")[2]
        except ValueError:  # binascii.Error, or characters that are not ASCII
            return b""
    return headers.get("x-api-key", "").encode("latin-1")
