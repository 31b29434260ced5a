"""What counts as a video: files, addresses of streams, cameras. Nothing here imports PyAV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from segformer.image import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .wmv .flv .3gp .ogv".split()
)

_ADDRESS = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt|rtp)://", re.IGNORECASE)

_HEADER = 377
"""Bytes that are read to recognize a file: two packets of an MPEG transport stream, and one."""

_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
"""Brands of ISO media files that are images."""


def is_video(source: str | Path) -> bool:
    """Whether a source is a video: by its suffix, else by the first bytes of the file.

    Args:
        source: A file, an address such as rtsp://..., or the number of a camera.
    """
    text, path = str(source), Path(source)
    if is_camera(text) or _ADDRESS.match(text):
        return True
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return not path.is_dir()
    if path.suffix.lower() in IMAGE_SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as file:
        return _starts_like_video(file.read(_HEADER))


def is_camera(source: str) -> bool:
    """Whether a source is the number of a camera, and not a file of that name."""
    return re.fullmatch(r"[0-9]{1,2}", source) is not None and not Path(source).exists()


def is_address(source: str) -> bool:
    """Whether a source is the address of a stream."""
    return _ADDRESS.match(source) is not None


def shown_name(source: str | Path) -> str:
    """A source as messages name it: without the password of an address."""
    text = str(source)
    if is_camera(text):
        return f"camera {text}"
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", text)


def result_name(source: str | Path) -> str:
    """The name of the results of a source, without a suffix."""
    text = str(source)
    if is_camera(text):
        return f"camera{text}"
    if not is_address(text):
        return Path(text).stem
    address = re.sub(r"^[a-z]+://([^/@]*@)?", "", text.partition("?")[0], flags=re.IGNORECASE)
    last = Path(address.rstrip("/")).name
    stem = Path(last).stem if Path(last).suffix.lower() in VIDEO_SUFFIXES else last
    return re.sub(r"[^\w.-]+", "_", stem) or "stream"


def only_videos(sources: Sequence[str]) -> bool:
    """Whether the sources are videos and not images.

    Raises:
        ValueError: Some are videos, others are not.
    """
    videos = [source for source in sources if is_video(source)]
    if videos and len(videos) < len(sources):
        other = next(source for source in sources if source not in videos)
        raise ValueError(
            f"{shown_name(videos[0])} is a video and {other} is not; predict them one after the "
            "other"
        )
    return bool(videos)


def _starts_like_video(header: bytes) -> bool:
    """Whether a file begins as MP4, QuickTime, Matroska, WebM, AVI or an MPEG stream."""
    if header[4:8] == b"ftyp":
        return header[8:12] not in _STILL_BRANDS
    if header[:4] == b"RIFF":
        return header[8:12] == b"AVI "
    transport = len(header) == _HEADER and header[::188] == b"GGG"
    return transport or header.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba"))
