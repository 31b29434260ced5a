"""What the service answers with: a prediction in each of the formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.data.coco_writer import is_background, mask_annotation
from segformer.prediction.prediction import Prediction
from segformer.serving.polygons import area, outline
from segformer.serving.problems import Problem

Format: TypeAlias = Literal["json", "label_map", "overlay", "confidence", "coco", "polygons"]
"""Names of the formats."""

RUN_LENGTHS = 3
"""zlib's strategy Z_RLE: label maps become smaller and are written faster."""

_OVERLAY_QUALITY = 90


@dataclass(frozen=True)
class Answer:
    """A format.

    Attributes:
        media_type: Of the answer; asking for it with ``Accept`` gives the first format of it.
        encode: The prediction, the name of the model and the distance in pixels by which polygons
            are simplified -> bytes of the media type.
        confidence: Whether the prediction needs its confidence.
    """

    media_type: str
    encode: Callable[[Prediction, str, float], bytes]
    confidence: bool = False

    @property
    def is_json(self) -> bool:
        """Whether the bytes are JSON."""
        return self.media_type.endswith("json")


def _summary(prediction: Prediction, model: str, simplify: float) -> bytes:
    height, width = prediction.label_map.shape
    fractions = prediction.class_fractions
    content = {"model": model, "height": height, "width": width, "class_fractions": fractions}
    return _json(content)


def _label_map(prediction: Prediction, model: str, simplify: float) -> bytes:
    return encode_image(prediction.label_map, "PNG", compress_type=RUN_LENGTHS)


def _overlay(prediction: Prediction, model: str, simplify: float) -> bytes:
    return encode_image(prediction.overlay(), "JPEG", quality=_OVERLAY_QUALITY)


def _confidence(prediction: Prediction, model: str, simplify: float) -> bytes:
    assert prediction.pixel_confidence is not None
    return encode_image(np.rint(255 * prediction.pixel_confidence).astype(np.uint8), "PNG")


def _coco(prediction: Prediction, model: str, simplify: float) -> bytes:
    height, width = prediction.label_map.shape
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": class_id,
            **mask_annotation(prediction.mask(name)),
        }
        for number, (class_id, name) in enumerate(_labeled(prediction), 1)
    ]
    categories = [
        {"id": i, "name": name}
        for i, name in enumerate(prediction.classes.names)
        if not is_background(name)
    ]
    image = {"id": 1, "file_name": "image", "height": height, "width": width}
    return _json({"images": [image], "annotations": annotations, "categories": categories})


def _polygons(prediction: Prediction, model: str, simplify: float) -> bytes:
    features = []
    for class_id, name in _labeled(prediction):
        for polygon in outline(prediction.mask(name), simplify=simplify):
            rings = [polygon.exterior, *polygon.holes]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {
                        "type": "Polygon",
                        "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings],
                    },
                    "properties": {
                        "class_id": class_id,
                        "class": name,
                        "area": sum(area(ring) for ring in rings),
                    },
                }
            )
    height, width = prediction.label_map.shape
    collection = {"type": "FeatureCollection", "features": features}
    return _json({**collection, "model": model, "height": height, "width": width})


ANSWERS: dict[Format, Answer] = {
    "json": Answer("application/json", _summary),
    "label_map": Answer("image/png", _label_map),
    "overlay": Answer("image/jpeg", _overlay),
    "confidence": Answer("image/png", _confidence, confidence=True),
    "coco": Answer("application/json", _coco),
    "polygons": Answer("application/geo+json", _polygons),
}


def choose_format(asked: Format | None, accept: str) -> Format:
    """The format that a request asks for, by parameter or else by its header ``Accept``.

    Raises:
        Problem: None of the formats is acceptable (406).
    """
    if asked is not None:
        return asked
    by_type: dict[str, Format] = {}
    for name in get_args(Format):
        by_type.setdefault(ANSWERS[name].media_type, name)
    for accepted in _accepted_types(accept):
        main, _, sub = accepted.partition("/")
        for media_type, name in by_type.items():
            if accepted in (media_type, "*/*") or (sub == "*" and media_type.startswith(main)):
                return name
    raise Problem(
        406,
        "not-acceptable",
        f"there is no answer of the types in the header Accept; ask for {', '.join(by_type)}, or "
        f"give the parameter format: {', '.join(get_args(Format))}",
    )


def _accepted_types(accept: str) -> list[str]:
    """Media types of a header ``Accept``, the preferred ones first."""
    found = []
    for item in (accept or "*/*").lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if quality > 0:
            found.append((quality, media_type))
    return [media_type for _, media_type in sorted(found, key=lambda pair: -pair[0])]


def _labeled(prediction: Prediction) -> list[tuple[int, str]]:
    """Ids and names of the classes that occur, without the background."""
    found = prediction.class_fractions
    return [
        (i, name)
        for i, name in enumerate(prediction.classes.names)
        if name in found and not is_background(name)
    ]


def encode_image(
    image: Image.Image | NDArray[np.integer], kind: Literal["JPEG", "PNG"], **options: Any
) -> bytes:
    """An image as the bytes of a file.

    Args:
        image: Image, or array (H, W) or (H, W, 3).
        kind: Format of the file.
        **options: Of `PIL.Image.Image.save`.
    """
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
