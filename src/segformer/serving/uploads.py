"""The images of a request: its body, the parts of a form, or base64 in JSON."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import AsyncGenerator

import python_multipart  # noqa: F401  # Starlette imports it only when a form arrives
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from segformer.serving.options import ServeOptions
from segformer.serving.problems import CLIENT_GONE, Problem

_FIELD = "image"
"""Name of the parts of a form that hold images."""

_RAW = ("application/octet-stream", "")


class _InMemory(MultiPartParser):
    """Keeps files in memory: the size of the request is limited already."""

    spool_max_size = 1 << 62


async def read_images(request: Request, options: ServeOptions) -> tuple[list[bytes], bool]:
    """The encoded images of a request.

    Returns:
        The images, and whether the request is for a list, whatever its length.

    Raises:
        Problem: The body is too large (413), of another type (415), empty or broken (400, 422).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _read_form(request, options)
    if media_type == "application/json":
        return _from_json(await read_body(request, options)), True
    if media_type.startswith("image/") or media_type in _RAW:
        body = await read_body(request, options)
        if not body:
            raise Problem(400, "no-image", "the body is empty; send the bytes of an image")
        return [body], False
    raise Problem(
        415,
        "unknown-content-type",
        "send an image as multipart/form-data (curl -F image=@photo.jpg), its bytes with a "
        "Content-Type such as image/jpeg, or images in base64 as application/json",
        {"Accept-Post": "multipart/form-data, image/*, application/octet-stream, application/json"},
    )


async def read_body(request: Request, options: ServeOptions) -> bytes:
    """The body of a request.

    Raises:
        Problem: It is too large (413).
    """
    return b"".join([chunk async for chunk in _stream(request, options)])


def read_json(body: bytes) -> object:
    """The value of a JSON text.

    Raises:
        Problem: It is none.
    """
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "broken-json", "the body is not valid JSON") from None
    return value


async def _stream(request: Request, options: ServeOptions) -> AsyncGenerator[bytes, None]:
    """The body in pieces, up to the limit."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > options.max_bytes:
        raise _too_large(options)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > options.max_bytes:
                raise _too_large(options)
            yield chunk
    except ClientDisconnect:
        raise Problem(CLIENT_GONE, "client-gone", "the client went away") from None


def _too_large(options: ServeOptions) -> Problem:
    return Problem(
        413,
        "too-many-bytes",
        f"the request is above the limit of {options.max_megabytes:g} MB; send images smaller, or "
        "compressed as JPEG",
    )


async def _read_form(request: Request, options: ServeOptions) -> tuple[list[bytes], bool]:
    parser = _InMemory(
        request.headers,
        _stream(request, options),
        max_files=options.queue_size + 1,
        max_fields=8,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, AssertionError):
        raise Problem(
            400, "broken-form", "the form cannot be read; send it with curl -F image=@photo.jpg"
        ) from None
    try:
        images = []
        for name, part in form.multi_items():
            if name != _FIELD or not isinstance(part, UploadFile):
                raise Problem(
                    422,
                    "unknown-field",
                    f"a form has files called {_FIELD} and nothing else; parameters such as format "
                    "belong into the URL: /v1/segment?format=overlay",
                )
            images.append(await part.read())
    finally:
        await form.close()
    if not images:
        raise Problem(422, "no-image", f"the form has no file called {_FIELD}")
    return images, len(images) > 1


def _from_json(body: bytes) -> list[bytes]:
    content = read_json(body)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images or set(content) != {"images"}:  # type: ignore[call-overload]
        raise Problem(
            422, "no-image", 'the JSON must be {"images": [...]}, a list of images in base64'
        )
    return [_from_base64(image, number) for number, image in enumerate(images)]


def _from_base64(text: object, number: int) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(re.sub(r"^data:[^,]{0,99},", "", text), validate=True)
    except (ValueError, binascii.Error):
        raise Problem(
            422, "broken-base64", f"images[{number}] is not a text in base64", image=number
        ) from None
