"""A client of the service. It needs the base dependencies only, not the extra ``serve``."""

from __future__ import annotations

import io
import json
import time
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import tifffile
from PIL import Image

from segformer.classes import ClassSet
from segformer.image import ImageSource, read_image, read_mask
from segformer.prediction.prediction import Prediction

_LONGEST_WAIT = 60.0
"""Seconds that a client waits at most between two tries."""


class ServiceError(RuntimeError):
    """The service has refused a request or cannot be reached.

    Args:
        status: HTTP status; 0 if there was no answer.
        code: What is wrong, for programs; see the service's documentation.
        detail: What is wrong and what to do.
    """

    def __init__(self, status: int, code: str, detail: str):
        super().__init__(f"{detail} ({status} {code})" if status else detail)
        self.status, self.code, self.detail = status, code, detail


class Client:
    """Segments images with a service, as `Predictor` does with a model.

    It can be used by several threads at once.

    Args:
        url: Address of the service.
        model: Name of a model. Default: the first one of the service.
        api_key: Key of the service, if it needs one.
        timeout: Seconds that a request may take.
        retries: How often a request is sent again while the service is full, at the times that it
            names.

    Example:
        >>> client = segformer.Client("http://127.0.0.1:8000")
        >>> client("street.jpg").class_fractions
        >>> client.answer("street.jpg", "polygons", simplify=1.5)["features"]
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        model: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address of a service; it begins with http://")
        self.url, self.model = url.rstrip("/"), model
        self.api_key, self.timeout, self.retries = api_key, timeout, retries
        self._models: list[dict[str, Any]] | None = None

    def __call__(self, source: ImageSource, *, confidence: bool = False) -> Prediction:
        """Segment one image.

        Args:
            source: Path, encoded bytes, PIL image or array (H, W, C).
            confidence: Also get the probability of each pixel's class, in steps of 1/255; the
                image is then sent twice.

        Raises:
            ServiceError: The service refuses the image or cannot be reached.
            UnreadableImage: The image cannot be read.
        """
        model = self._model()
        image = read_image(source, model["in_channels"], as_8_bit=model["expects_8_bit"])
        label_map = read_mask(self.answer(source, "label_map"))
        steps = read_mask(self.answer(source, "confidence")) if confidence else None
        rgb = model["rgb_channels"]
        names = tuple(entry["name"] for entry in model["classes"])
        palette = tuple(tuple(entry["color"]) for entry in model["classes"])
        return Prediction(
            label_map=label_map,
            classes=ClassSet(names, palette, model["ignore_index"]),
            image=image,
            source=Path(source) if isinstance(source, (str, Path)) else None,
            confidence=None if steps is None else steps.astype(np.float32) / np.float32(255),
            rgb_channels=None if rgb is None else (rgb[0], rgb[1], rgb[2]),
        )

    def answer(self, source: ImageSource, format: str = "json", **parameters: Any) -> Any:
        """The service's answer for one image.

        Args:
            source: Path, encoded bytes, PIL image or array (H, W, C).
            format: json, coco, polygons; label_map, overlay, confidence.
            **parameters: Other parameters, such as ``simplify=1.5`` for polygons.

        Returns:
            The JSON value, or the bytes of the image file.

        Raises:
            ServiceError: The service refuses the image or cannot be reached.
        """
        given = {"format": format, "model": self.model, **parameters}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        body, media_type = self._send(f"/v1/segment?{query}", _encoded(source))
        return json.loads(body) if media_type.endswith("json") else body

    def models(self) -> list[dict[str, Any]]:
        """The models of the service, the default one first, with their classes."""
        if self._models is None:
            self._models = json.loads(self._send("/v1/models", None)[0])["models"]
        return self._models

    def _model(self) -> dict[str, Any]:
        models = self.models()
        for model in models:
            if self.model in (None, model["name"]):
                return model
        names = ", ".join(model["name"] for model in models)
        raise ServiceError(0, "unknown-model", f"no model {self.model!r}; there are {names}")

    def _send(self, path: str, body: bytes | None) -> tuple[bytes, str]:
        """Body and media type of an answer."""
        headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = Request(self.url + path, body, headers)
        for left in range(self.retries, -1, -1):
            try:
                with urlopen(request, timeout=self.timeout) as response:
                    return response.read(), response.headers.get_content_type()
            except HTTPError as error:
                with error:
                    if error.code != 429 or not left:
                        raise _service_error(error.code, error) from None
                    wait = error.headers.get("Retry-After", "")
                time.sleep(min(float(wait) if wait.isdigit() else 1.0, _LONGEST_WAIT))
            except (URLError, OSError, HTTPException) as error:
                reason = getattr(error, "reason", error)
                raise ServiceError(
                    0, "no-answer", f"{self.url} does not answer: {reason}"
                ) from None
        raise AssertionError


def _service_error(status: int, body: IO[bytes]) -> ServiceError:
    try:
        problem = json.load(body)
        return ServiceError(status, problem["code"], problem["detail"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(status, "unknown", "the service gives no reason")


def _encoded(source: ImageSource) -> bytes:
    """The bytes of an image file."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    if isinstance(source, (list, tuple)):
        raise ValueError("the service takes images whose channels are in one file")
    buffer = io.BytesIO()
    values = np.asarray(source)
    if values.dtype == np.uint8 and (values.ndim == 2 or values.shape[2] in (3, 4)):
        image = source if isinstance(source, Image.Image) else Image.fromarray(values)
        image.save(buffer, "PNG")
    else:
        tifffile.imwrite(buffer, values, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()
