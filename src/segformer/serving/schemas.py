"""The answers of the service, as its OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from segformer.serving.formats import Format


class SegmentParameters(BaseModel):
    """Parameters of a segmentation."""

    model_config = ConfigDict(extra="forbid")

    format: Annotated[
        Format | None,
        Field(
            description="What to answer; by default by the header Accept. json: class fractions. "
            "label_map: PNG of class ids, 16-bit above 256 classes. overlay: JPEG with colors and "
            "a legend. confidence: PNG, 255 is a probability of 1. coco: COCO JSON with compressed "
            "run lengths. polygons: outlines as GeoJSON features, in pixels.",
            examples=["overlay"],
        ),
    ] = None
    model: Annotated[
        str | None,
        Field(description="Name of a model; by default the first.", examples=["human-parsing-b0"]),
    ] = None
    simplify: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            allow_inf_nan=False,
            description="Pixels by which polygons may be moved to save corners; 0 is exact.",
            examples=[1.0],
        ),
    ] = 0.0
    timeout: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Seconds after which to give up; the service has a deadline of its own.",
            examples=[10.0],
        ),
    ] = None


class Summary(BaseModel):
    """Which classes an image has."""

    model: str
    height: int
    width: int
    class_fractions: Annotated[
        dict[str, float],
        Field(description="Fraction of the image, 0..1, of each class that occurs, largest first."),
    ]


class CocoDocument(BaseModel):
    """COCO JSON of one image; category ids are class ids, the background has none."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


class FeatureCollection(BaseModel):
    """GeoJSON features in pixels: x to the right, y down, from the top left corner of the image."""

    type: Literal["FeatureCollection"]
    features: list[dict[str, Any]]
    model: str
    height: int
    width: int


class Encoded(BaseModel):
    """A file in base64."""

    media_type: str
    data: str


class Results(BaseModel):
    """The answers to several images, in their order."""

    results: list[Summary | CocoDocument | FeatureCollection | Encoded]


class ModelClass(BaseModel):
    """A class of a model."""

    id: int
    name: str
    color: Annotated[list[int], Field(min_length=3, max_length=3)]


class Model(BaseModel):
    """A model of the service."""

    name: str
    version: str
    classes: list[ModelClass]
    ignore_index: int
    in_channels: int
    rgb_channels: list[int] | None
    expects_8_bit: bool
    batch_size: int


class Models(BaseModel):
    """The models of the service; the first is the default."""

    models: list[Model]


class Status(BaseModel):
    """Whether the service runs."""

    status: str
