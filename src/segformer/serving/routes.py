"""What the service answers under /v1, and how it is watched."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from segformer.serving import metrics, problems
from segformer.serving.access_log import record_of
from segformer.serving.formats import ANSWERS, Answer, choose_format
from segformer.serving.schemas import (
    CocoDocument,
    FeatureCollection,
    Models,
    Results,
    SegmentParameters,
    Status,
    Summary,
)
from segformer.serving.service import Service, while_connected
from segformer.serving.uploads import read_images

router = APIRouter()

_ERRORS = {
    400: "The body is empty or broken.",
    404: "There is no such page.",
    406: "There is no answer of the type that Accept asks for.",
    413: "The request has too many bytes, images or pixels.",
    415: "The body or an image is of a type that is not accepted.",
    422: "A parameter is wrong or an image cannot be read.",
    429: "All places are taken; Retry-After says when to try again.",
    504: "The deadline has passed.",
}

_FILE = {"type": "string", "format": "binary"}

_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAKElEQVR42u3NMQEAAAjDMMC/52ECvlRA00nqs3m9"
    "AwAAAAAAAAAAgMMWx+kBP1D9MlcAAAAASUVORK5CYII="
)
"""An image of 32 x 32 pixels, as an example."""

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": _FILE},
                "required": ["image"],
                "additionalProperties": False,
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "images": {
                        "type": "array",
                        "items": {"type": "string", "format": "byte"},
                        "minItems": 1,
                    }
                },
                "required": ["images"],
                "additionalProperties": False,
            },
            "example": {"images": [_PNG]},
        },
        "image/jpeg": {"schema": _FILE},
        "image/png": {"schema": _FILE},
    },
}


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a page, for OpenAPI."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status: {
            "description": _ERRORS[status],
            "content": {problems.MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def service_of(request: Request) -> Service:
    """The service that answers a request."""
    service: Service = request.app.state.service
    return service


@router.post(
    "/v1/segment",
    summary="Segment an image, or several",
    response_class=Response,
    responses={
        200: {
            "description": "The answer in the format that was asked for.",
            "content": {
                "application/json": {
                    "example": {
                        "model": "human-parsing-b0",
                        "height": 427,
                        "width": 640,
                        "class_fractions": {"background": 0.7, "clothes": 0.2, "person": 0.1},
                    },
                },
                "application/geo+json": {
                    "schema": {"$ref": "#/components/schemas/FeatureCollection"}
                },
                "image/png": {"schema": _FILE},
                "image/jpeg": {"schema": _FILE},
            },
            "model": Summary | CocoDocument | FeatureCollection | Results,
        },
        **error_answers(400, 406, 413, 415, 422, 429, 504),
    },
    openapi_extra={"requestBody": _BODY},
)
async def segment(request: Request, parameters: Annotated[SegmentParameters, Query()]) -> Response:
    """Send an image as a form (`image`), as the body, or several in base64 as JSON."""
    service = service_of(request)
    model = service.model(parameters.model)
    chosen = choose_format(parameters.format, request.headers.get("accept", ""))
    answer = ANSWERS[chosen]
    record = record_of(request)
    record.more["format"] = chosen
    async with service.admit(parameters.timeout):
        with service.metrics.stage_seconds.labels("receive").time():
            images, is_list = await read_images(request, service.options)

        async def work() -> bytes:
            found = await service.segment(images, model, record, confidence=answer.confidence)
            parts = [
                await service.in_thread(
                    partial(answer.encode, prediction, model.name, parameters.simplify),
                    "encode",
                )
                for prediction in found
            ]
            return _listed(parts, answer) if is_list else parts[0]

        body = await while_connected(request, work())
    media_type = "application/json" if is_list else answer.media_type
    return Response(body, media_type=media_type, headers={"Vary": "Accept"})


def _listed(parts: list[bytes], answer: Answer) -> bytes:
    """Several answers as one JSON text."""
    if not answer.is_json:
        parts = [
            json.dumps(
                {"media_type": answer.media_type, "data": base64.b64encode(part).decode()}
            ).encode()
            for part in parts
        ]
    return b'{"results":[' + b",".join(parts) + b"]}"


@router.get("/v1/models", response_model=Models, summary="List the models and their classes")
async def models(request: Request) -> Any:
    """The first model is the default."""
    return {"models": [model.describe() for model in service_of(request).models.values()]}


@router.get("/healthz", response_model=Status, summary="Whether the process runs")
async def healthz() -> Any:
    """Answered without a key."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=Status,
    summary="Whether images are accepted",
    responses={503: {"description": "Not now.", "model": Status}},
)
async def readyz(request: Request, response: Response) -> Any:
    """Answered without a key."""
    if service_of(request).queue.works:
        return {"status": "ready"}
    response.status_code = 503
    return {"status": "not ready"}


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {metrics.CONTENT_TYPE.partition(";")[0]: {}}}},
)
async def read_metrics(request: Request) -> Response:
    """Requests, time by stage, queue, batch sizes, rejections, memory."""
    return Response(service_of(request).metrics.text(), media_type=metrics.CONTENT_TYPE)
