"""Video files that are written frame by frame, each frame at its own time.

Legend: H W pixels.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segformer.prediction.prediction import Prediction, output_paths
from segformer.prediction.video.opening import pyav
from segformer.prediction.video.options import TIMES
from segformer.prediction.video.pixels import BT_709, FULL, LIMITED
from segformer.prediction.video.reading import Frame, VideoReader

if TYPE_CHECKING:
    from av import Packet
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_MPEG4_TICKS = 60000
"""Ticks per second, where a codec takes no more than 65535."""

_WAITING_AUDIO = 4096
"""Packets of audio that wait for the first frame; earlier ones are left out."""


@dataclass(frozen=True)
class Coding:
    """How frames are stored.

    Attributes:
        codecs: Encoders; the first that is installed and that the file format takes is used.
        source: Pixel format of the arrays.
        stored: Pixel format in the file.
        options: Of the encoder.
    """

    codecs: tuple[str, ...]
    source: str
    stored: str
    options: dict[str, dict[str, str]]


COLOR = Coding(
    ("libx264", "libvpx-vp9", "mpeg4"),
    "rgb24",
    "yuv420p",
    {
        "libx264": {"crf": "20", "preset": "veryfast"},
        "libvpx-vp9": {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "6"},
        "mpeg4": {"qscale": "3", "flags": "+qscale"},
    },
)
"""For viewing."""

CLASS_IDS = Coding(("ffv1",), "gray", "gray", {})
"""Lossless, for class ids up to 255."""

MANY_CLASS_IDS = Coding(("ffv1",), "gray16le", "gray16le", {})
"""Lossless, for class ids of 16 bits."""


class VideoFile:
    """A video that is being written. Frames are encoded at their own times.

    Args:
        path: The file; its suffix chooses the format.
        coding: How frames are stored.
        reader: Where times, and audio if it is kept, come from.
        audio: Keep the audio of the reader, without encoding it again.

    Raises:
        ValueError: No codec for this format is installed.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, coding: Coding, reader: VideoReader, *, audio: bool = False):
        self.path, self.coding, self.reader = path, coding, reader
        self._audio = audio
        self._container = pyav().open(str(path), "w")
        self._codec = self._choose_codec()
        self._stream: VideoStream | None = None
        self._tracks: dict[int, Any] = {}
        self._written: dict[int, int] = {}
        self._early: list[Packet[Any]] = []

    def add(self, pixels: NDArray[np.integer], frame: Frame) -> None:
        """Encode (H, W) or (H, W, 3) of the coding's type at the time of a frame."""
        if self._stream is None:
            self._stream = self._begin(pixels)
        if self.coding.stored == "yuv420p":  # needs even sides
            height, width = pixels.shape[:2]
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        image = pyav().VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels), format=self.coding.source
        )
        if self.coding.source == "rgb24":
            image = image.reformat(
                format=self.coding.stored, dst_colorspace=BT_709, dst_color_range=LIMITED
            )
        image.pts, image.time_base = frame.pts, self.reader.time_base
        self._container.mux(self._stream.encode(image))

    def add_audio(self, packets: Sequence[Packet[Any]]) -> None:
        """Store packets of the reader's audio streams."""
        if not self._audio:
            return
        if self._stream is None:  # the header of the file needs the size of the frames
            self._early = [*self._early, *packets][-_WAITING_AUDIO:]
            return
        for packet in packets:
            track = self._tracks.get(packet.stream_index)
            assert packet.dts is not None
            # Where a stream starts again its times go back, which formats do not allow
            if track is None or packet.dts <= self._written.get(packet.stream_index, -(1 << 62)):
                continue
            self._written[packet.stream_index] = packet.dts
            packet.stream = track
            self._container.mux(packet)

    def close(self) -> None:
        """Write what is left, and the index of the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def _choose_codec(self) -> str:
        av = pyav()
        possible = self._container.supported_codecs
        for codec in self.coding.codecs:
            if codec in av.codecs_available and codec in possible:
                return codec
        raise ValueError(
            f"{self.path.suffix}: this build of FFmpeg has no encoder for this format; it needs "
            f"{' or '.join(self.coding.codecs)}"
        )

    def _begin(self, pixels: NDArray[np.integer]) -> VideoStream:
        """Add the streams, now that the size of the frames is known."""
        height, width = pixels.shape[:2]
        stream: VideoStream = self._container.add_stream(
            self._codec, rate=self.reader.rate, options=self.coding.options.get(self._codec, {})
        )
        even = self.coding.stored == "yuv420p"
        stream.width, stream.height = (side + (side % 2 if even else 0) for side in (width, height))
        stream.pix_fmt = self.coding.stored
        base = self.reader.time_base
        if self._codec == "mpeg4" and base.denominator > _MPEG4_TICKS:
            base = Fraction(1, _MPEG4_TICKS)
        context = stream.codec_context
        context.time_base = stream.time_base = base
        if self.reader.pixel_aspect:
            context.sample_aspect_ratio = self.reader.pixel_aspect
        if even:
            context.color_range, context.colorspace = LIMITED, BT_709
            context.color_primaries = context.color_trc = BT_709
        else:
            context.color_range = FULL
        self._stream = stream
        if self._audio:
            self._add_audio_streams()
            self.add_audio(self._early)
            self._early = []
        return stream

    def _add_audio_streams(self) -> None:
        for source in self.reader.audio_streams:
            try:
                track = self._container.add_stream_from_template(source)
            except ValueError:
                logger.warning(
                    f"{self.reader.name}: its audio ({source.codec_context.name}) cannot be stored "
                    f"as {self.path.suffix} without encoding it again, and is left out; .mkv takes "
                    "every kind"
                )
            else:
                track.metadata.update(source.metadata)
                self._tracks[source.index] = track


class MaskFolder:
    """Class ids as a PNG for each frame, ``000000.png``, and their times in a table.

    The number is that of the frame in the video.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._table = (folder / TIMES).open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._table)
        self._rows.writerow(("frame", "seconds"))

    def add(self, prediction: Prediction, frame: Frame) -> None:
        """Write the class ids of a frame."""
        paths = output_paths(
            self.folder,
            f"{frame.index:06}",
            overlay=False,
            confidence=False,
            multilabel=prediction.multilabel,
        )
        prediction.write(paths)
        self._rows.writerow((frame.index, f"{frame.seconds:.6f}"))

    def close(self) -> None:
        """Finish the table."""
        self._table.close()
