"""A machine learning backend for Label Studio: brush masks for the tasks of a project.

Legend: H W pixels.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Field

from segformer.classes import ClassSet
from segformer.data.brush_masks import encode_brush
from segformer.prediction.prediction import Prediction
from segformer.serving.access_log import Record, record_of
from segformer.serving.label_matching import LabelsDiffer, match_labels
from segformer.serving.models import ServedModel
from segformer.serving.problems import Problem
from segformer.serving.routes import error_answers, service_of
from segformer.serving.schemas import Status
from segformer.serving.service import Service, while_connected
from segformer.serving.task_images import TaskImages, image_of

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/label-studio", tags=["Label Studio"])

_AT_ONCE = 8
"""Tasks that are worked on at once, so that others have places in the service too."""

_ERRORS = error_answers(400, 404, 422)

_PREDICT_ERRORS = error_answers(400, 404, 413, 422, 429, 504)

_TRIES = 30
"""How often a task asks for a place in the service before the deadline has passed."""

_LATER = (429, 504)
"""Statuses that say nothing about the task: trying again can help."""

_HOW = (
    ', or say which classes a label stands for: <Label value="Car" predicted_values="car,bus"/>, '
    "none if it is empty"
)


@dataclass(frozen=True)
class BrushControl:
    """What of a labeling interface takes brush masks.

    Attributes:
        from_name: Name of the tag BrushLabels.
        to_name: Name of the tag Image.
        data_key: Where a task's data has the image.
        labels: Class id -> label.
    """

    from_name: str
    to_name: str
    data_key: str
    labels: dict[int, str]


class Setup(BaseModel):
    """What Label Studio sends when a project is connected."""

    label_config: Annotated[
        str, Field(alias="schema", description="The labeling interface, XML.")
    ] = ""


class Tasks(BaseModel):
    """What Label Studio sends for predictions."""

    tasks: Annotated[list[Any], Field(max_length=1000)]
    label_config: Annotated[str, Field(description="The labeling interface, XML.")]


class Health(BaseModel):
    """The state of the backend."""

    status: str
    model_class: str


class Version(BaseModel):
    """The name under which predictions are kept."""

    model_version: str


class Predictions(BaseModel):
    """A prediction for each task, in their order."""

    results: list[dict[str, Any]]


def read_label_config(text: str, classes: ClassSet) -> BrushControl:
    """The brush labels of a labeling interface.

    Raises:
        ValueError: The XML is broken, there are no brush labels on an image, or a label has no
            class (`LabelsDiffer`).
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"the labeling interface is not valid XML: {error}") from None
    images = {tag.get("name"): tag for tag in root.iter("Image")}
    controls = [tag for tag in root.iter("BrushLabels") if tag.get("toName") in images]
    if not controls:
        raise ValueError(
            "the labeling interface has no brush labels for an image; it needs <Image> and "
            "<BrushLabels>, as in the template Semantic Segmentation with Masks"
        )
    control = controls[0]
    to_name = control.get("toName", "")
    tags = [(tag.get("value", ""), tag.get("predicted_values")) for tag in control.iter("Label")]
    predicted = {
        label: [name.strip() for name in names.split(",") if name.strip()]
        for label, names in tags
        if names is not None
    }
    labels = match_labels([label for label, _ in tags], classes, predicted=predicted, how=_HOW)
    key = images[to_name].get("value", "").lstrip("$")
    return BrushControl(control.get("name", ""), to_name, key, labels)


def brush_result(prediction: Prediction, control: BrushControl, version: str) -> dict[str, Any]:
    """A prediction as Label Studio keeps it; labels of several classes have one mask."""
    height, width = prediction.label_map.shape
    confidence, names = prediction.pixel_confidence, prediction.classes.names
    regions = []
    for label in dict.fromkeys(control.labels.values()):
        ids = [class_id for class_id, name in control.labels.items() if name == label]
        mask = np.any([prediction.mask(names[class_id]) for class_id in ids], axis=0)
        if not mask.any():
            continue
        region = {
            "id": uuid4().hex[:10],
            "type": "brushlabels",
            "from_name": control.from_name,
            "to_name": control.to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": list(encode_brush(mask)),
                "brushlabels": [label],
            },
        }
        if confidence is not None:
            region["score"] = float(confidence[mask].mean())
        regions.append(region)
    score = 0.0 if confidence is None else float(confidence.mean())
    return {"model_version": version, "score": score, "result": regions}


@router.get("/health", response_model=Health, responses=_ERRORS)
@router.get("/{model:path}/health", response_model=Health, responses=_ERRORS)
async def health(request: Request, model: str | None = None) -> Any:
    """Whether the backend runs."""
    service_of(request).model(model)
    return {"status": "UP", "model_class": "SegFormer"}


@router.post("/setup", response_model=Version, responses=_ERRORS)
@router.post("/{model:path}/setup", response_model=Version, responses=_ERRORS)
async def setup(request: Request, project: Setup, model: str | None = None) -> Any:
    """Connect a project; its labels must be classes of the model."""
    served = service_of(request).model(model)
    if project.label_config.strip():
        _control(project.label_config, served)
    return {"model_version": served.version}


@router.post("/webhook", response_model=Status, responses=_ERRORS)
@router.post("/{model:path}/webhook", response_model=Status, responses=_ERRORS)
async def webhook(model: str | None = None) -> Any:
    """Take the events that Label Studio sends to each backend; they are not used."""
    return {"status": "ok"}


@router.post("/predict", response_model=Predictions, responses=_PREDICT_ERRORS)
@router.post("/{model:path}/predict", response_model=Predictions, responses=_PREDICT_ERRORS)
async def predict(
    request: Request, project: Annotated[Tasks, Body()], model: str | None = None
) -> Any:
    """Brush masks for tasks. A task whose image cannot be loaded gets none, with score 0.

    If there is no such image at all, the request fails, so that nothing is stored.
    """
    service = service_of(request)
    served = service.model(model)
    work = _Work(
        service,
        served,
        _control(project.label_config, served),
        TaskImages(service.options),
        record_of(request),
    )
    found = await while_connected(request, work.all(project.tasks))
    problems = [answer for answer in found if isinstance(answer, Problem)]
    for problem in problems:
        if problem.status in _LATER or len(problems) == len(found):
            raise problem
    empty = {"model_version": served.version, "score": 0.0, "result": []}
    return {"results": [empty if isinstance(answer, Problem) else answer for answer in found]}


@dataclass(frozen=True)
class _Work:
    """Predictions for the tasks of one request."""

    service: Service
    model: ServedModel
    control: BrushControl
    images: TaskImages
    record: Record

    async def all(self, tasks: list[Any]) -> list[dict[str, Any] | Problem]:
        """The prediction of each task, or what is wrong with it."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(task: Any) -> dict[str, Any] | Problem:
            async with gate:
                try:
                    return await self._predict(task)
                except Problem as problem:
                    identity = task.get("id") if isinstance(task, dict) else None
                    logger.warning("Label Studio task %s: %s", identity, problem.detail)
                    return problem

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(task)) for task in tasks]
        return [task.result() for task in running]

    async def _predict(self, task: Any) -> dict[str, Any]:
        value = image_of(task, self.control.data_key)
        for _ in range(_TRIES):
            if self.service.places.free:
                break
            await asyncio.sleep(self.service.options.deadline / _TRIES)
        async with self.service.admit():
            data = await self.service.in_thread(lambda: self.images.load(value))
            (prediction,) = await self.service.segment(
                [data], self.model, self.record, confidence=True
            )
            return await self.service.in_thread(
                lambda: brush_result(prediction, self.control, self.model.version), "encode"
            )


def _control(label_config: str, model: ServedModel) -> BrushControl:
    """The brush labels of a project.

    Raises:
        Problem: There are none, or they are not classes of the model (422).
    """
    try:
        return read_label_config(label_config, model.predictor.model.classes)
    except ValueError as error:
        # Label Studio shows only the status of the answer
        logger.warning("Label Studio project: %s", error)
        code = "labels-differ" if isinstance(error, LabelsDiffer) else "label-config"
        raise Problem(422, code, str(error)) from None
