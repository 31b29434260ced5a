"""Opening files, streams and cameras with PyAV."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer.prediction.runtimes.graphs import require
from segformer.prediction.video.source import is_address, is_camera, shown_name

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds until a stream or camera that sends nothing has ended."""

_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""FFmpeg's input format, and the name of a camera, by system."""


def pyav() -> Any:
    """PyAV.

    Raises:
        ValueError: It is not installed; the message names the extra.
    """
    return require("av", "video")


def open_input(source: str | Path) -> InputContainer:
    """Open a video for reading.

    Args:
        source: A file, an address such as rtsp://..., or the number of a camera.

    Raises:
        ValueError: It cannot be opened, or has no video; the message says why.
    """
    av, text = pyav(), str(source)
    options: dict[str, Any] = {}
    if is_camera(text):
        if sys.platform not in _CAMERAS:
            raise ValueError(f"{shown_name(text)}: cameras have no numbers on this system")
        options["format"], pattern = _CAMERAS[sys.platform]
        text = pattern.format(int(text))
    elif is_address(text):
        options["timeout"] = _PATIENCE
        if text.lower().startswith("rtsp"):
            options["options"] = {"rtsp_transport": "tcp"}  # UDP loses packets
    elif not Path(source).is_file():
        raise ValueError(f"{source}: there is no such file")
    try:
        container: InputContainer = av.open(text, **options)
    except av.error.InvalidDataError:
        raise ValueError(
            f"{shown_name(source)}: cannot be read as a video; if it is an MP4 or MOV file, its "
            "index may be missing because the recording was not finished or the file was cut off"
        ) from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{shown_name(source)}: cannot be opened: {reason}") from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"{shown_name(source)}: there is no video in it")
    return container


def main_stream(container: InputContainer) -> VideoStream:
    """The video stream that a player would show."""
    best = container.streams.best("video")
    found: VideoStream = best if best is not None else container.streams.video[0]  # type: ignore[assignment]
    return found


def has_no_end(source: str | Path, container: InputContainer) -> bool:
    """Whether a source is live: a camera, or a stream whose length is unknown."""
    text = str(source)
    return is_camera(text) or (is_address(text) and not container.duration)
