"""Errors as answers: problem details of RFC 9457, without anything about the machine."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from segformer.image import UnreadableImage, WrongChannels

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

CLIENT_GONE = 499
"""Status in the log of a request whose client went away; nobody receives it."""


class ProblemDetails(BaseModel):
    """What an error answer says (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("about:blank", description="Always about:blank; see code.")
    title: str = Field(description="Name of the status.")
    status: int = Field(description="HTTP status.")
    code: str = Field(description="What is wrong, for programs.")
    detail: str = Field(description="What is wrong and what to do, for people.")


class Problem(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        code: What is wrong, for programs.
        detail: What is wrong and what to do, for people.
        headers: Of the answer.
        **more: Further members of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: dict[str, str] | None = None,
        **more: Any,
    ):
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.more = headers, more

    def answer(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(
            {
                "type": "about:blank",
                "title": _title(self.status),
                "status": self.status,
                "code": self.code,
                "detail": self.detail,
                **self.more,
            },
            self.status,
            self.headers,
            MEDIA_TYPE,
        )


def internal_error() -> Problem:
    """The answer to a request that has met an error of the service; the log has the details."""
    return Problem(
        500,
        "internal-error",
        "the service has met an error of its own; its log has the details under the request id "
        "in the header X-Request-ID",
    )


def unreadable(error: UnreadableImage) -> Problem:
    """The answer to an image that cannot be read, without the decoder's own words."""
    if isinstance(error, WrongChannels):
        return Problem(422, "wrong-channels", _without_name(str(error)))
    text = _without_name(str(error))
    if "value_range" in text:
        return Problem(
            422,
            "unknown-value-range",
            "the model expects 8-bit values, the image has others and does not say which of them "
            "mean black and white; convert it to 8 bits, or start the service with --value-range",
        )
    if text.startswith(("the model takes", "an array must")):
        return Problem(422, "unreadable-image", text)
    return Problem(
        422,
        "unreadable-image",
        "the image cannot be decoded: the file is damaged, cut off or of a kind that is not "
        "supported",
    )


def handle_problems(app: FastAPI) -> None:
    """Answer all errors of an application as problem details."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        return error.answer()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"parameter": ".".join(map(str, item["loc"][1:])) or "body", "message": item["msg"]}
            for item in error.errors()
        ]
        detail = "; ".join(f"{item['parameter']}: {item['message']}" for item in errors)
        return Problem(422, "invalid-parameters", detail, errors=errors).answer()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        title = _title(error.status_code)
        code = title.lower().replace(" ", "-")
        details = {
            400: "the body cannot be read; send what /docs describes",
            404: "there is no such page; /docs lists what there is",
        }
        if error.status_code == 405 and error.headers:
            details[405] = f"this page is asked with {error.headers.get('Allow', 'another method')}"
        detail = details.get(error.status_code, title)
        headers = dict(error.headers) if error.headers else None
        return Problem(error.status_code, code, detail, headers).answer()


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _without_name(message: str) -> str:
    return re.sub(r"^image in memory: ", "", message)
