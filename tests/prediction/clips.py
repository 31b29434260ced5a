"""Small videos, written and read by PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

TICKS = 12800
"""Ticks per second of the clips."""


def pan(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Iterator[NDArray[Any]]:
    """Frames (H, W, 3) that move to the right over blocks of random colors, two pixels each."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 4, 3), np.uint8)
    scene = blocks.repeat(8, 0).repeat(8, 1)[:height]
    for i in range(count):
        left = 2 * i % (scene.shape[1] - width)
        yield np.ascontiguousarray(scene[:, left : left + width])


def write_clip(
    path: Path,
    frames: Iterator[NDArray[Any]] | Sequence[NDArray[Any]],
    *,
    ticks: Sequence[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    audio: str | None = None,
    rotation: int = 0,
    colorspace: int | None = None,
    full_range: bool = False,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """A video of 25 frames per second, or with frames at ``ticks``; with a tone if wanted."""
    encoder = {"crf": "10"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=options or {}) as file:
        video: Any = file.add_stream(codec, rate=25, options=encoder)
        sound: Any = file.add_stream(audio, rate=48000, layout="mono") if audio else None
        base = Fraction(1, TICKS)
        for number, pixels in enumerate(frames):
            if number == 0:
                video.height, video.width, video.pix_fmt = *pixels.shape[:2], pix_fmt
                video.codec_context.time_base = base
                video.codec_context.gop_size = 10
                if aspect:
                    video.codec_context.sample_aspect_ratio = aspect
                if colorspace is not None:
                    video.codec_context.colorspace = colorspace
                    video.codec_context.color_range = 2 if full_range else 1
                if rotation:
                    video.set_display_rotation(rotation)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=colorspace, dst_color_range=2 if full_range else 1
            )
            frame.pts = number * TICKS // 25 if ticks is None else ticks[number]
            frame.time_base = base
            file.mux(video.encode(frame))
            if sound:
                file.mux(sound.encode(_tone(number, sound.codec_context.format.name)))
        for stream in filter(None, (video, sound)):
            file.mux(stream.encode(None))
    return path


def _tone(number: int, kind: str, samples: int = 1920) -> av.AudioFrame:
    """The sound of one frame."""
    wave = np.sin(np.arange(number * samples, (number + 1) * samples) / 20)[None]
    values = (wave * 9000).astype(np.int16) if kind.startswith("s16") else wave.astype(np.float32)
    frame = av.AudioFrame.from_ndarray(values, format=kind, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, number * samples, Fraction(1, 48000)
    return frame


def read_clip(path: Path, pixel_format: str = "rgb24") -> tuple[list[NDArray[Any]], list[float]]:
    """All frames of a video, as they are stored, and their times."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        return [f.to_ndarray(format=pixel_format) for f in frames], [float(f.time) for f in frames]


def audio_packets(path: Path) -> list[tuple[float, bytes]]:
    """Time and content of the packets of audio."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        base = stream.time_base
        assert base is not None
        return [
            (float(packet.pts * base), bytes(packet))
            for packet in file.demux(stream)
            if packet.pts is not None and packet.size
        ]


def cut(path: Path, fraction: float) -> Path:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path
