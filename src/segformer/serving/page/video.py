"""Videos on the page: frame by frame through the queue of the service."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from segformer.image import ImageArray
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor
from segformer.prediction.video.opening import main_stream, open_input
from segformer.prediction.video.predict import predict_video
from segformer.serving.models import ServedModel
from segformer.serving.problems import Problem
from segformer.serving.queue import Job, Queue
from segformer.serving.service import Service

MOST_SECONDS = 60.0
"""Length up to which a video is segmented."""

_DEADLINES = 20
"""Deadlines of an image after which a video is given up."""

_MATROSKA = b"\x1aE\xdf\xa3"


def can_segment_videos() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


async def segment_video(service: Service, path: Path, model: ServedModel, out: Path) -> None:
    """Segment the beginning of a video; it takes one place in the service.

    Args:
        service: What segments.
        path: The video.
        model: One of the service's models.
        out: The video to write, with the classes in color.

    Raises:
        Problem: There is no free place (429), the video cannot be read (422) or is too large (413),
            or takes too long (504).
    """
    with service.places.take(1):
        await asyncio.to_thread(_segment_video, service, path, model, out)


def _segment_video(service: Service, path: Path, model: ServedModel, out: Path) -> None:
    unreadable = Problem(
        422,
        "unreadable-video",
        "the video cannot be read: the file is damaged or of a kind that is not supported; send "
        "MP4, WebM, MKV, MOV or AVI",
    )
    # What only refers to other files, such as a playlist, is never opened
    if not _is_container(path):
        raise unreadable
    limit = _DEADLINES * service.options.deadline
    until = time.monotonic() + limit

    def check_time(*_: object) -> None:
        if time.monotonic() > until:
            raise Problem(
                504,
                "deadline-exceeded",
                f"the video was not done within {limit:g} s; send a shorter or a smaller one",
            )

    try:
        with open_input(path) as container:
            stream = main_stream(container)
            if stream.width * stream.height > service.options.max_pixels:
                raise Problem(
                    413,
                    "too-many-pixels",
                    f"the video has more than {service.options.max_megapixels:g} megapixels",
                )
        frames = cast(Predictor, QueuedFrames(service.queue, model))
        predict_video(frames, path, out, duration=MOST_SECONDS, on_frame=check_time)
    except ValueError:
        raise unreadable from None


class QueuedFrames:
    """What `predict_video` uses of a predictor; frames wait for others as images of requests do.

    Args:
        queue: The queue of the service.
        served: The model.
    """

    def __init__(self, queue: Queue, served: ServedModel):
        self.queue, self.served, self.model = queue, served, served.predictor.model
        self.reader = self.on_logits = self.logits_filter = None

    def stream(self, images: Iterable[ImageArray], **_: Any) -> Iterator[Prediction]:
        """Predictions of frames, in order."""
        for image in images:
            job = Job(self.served, image, confidence=False)
            self.queue.submit(job)
            try:
                yield job.future.result()
            finally:
                self.queue.abandon(job)


def _is_container(path: Path) -> bool:
    """Whether a file begins as MP4, QuickTime, Matroska, WebM or AVI."""
    with path.open("rb") as file:
        header = file.read(12)
    is_avi = header[:4] == b"RIFF" and header[8:] == b"AVI "
    return header[4:8] == b"ftyp" or header.startswith(_MATROSKA) or is_avi
