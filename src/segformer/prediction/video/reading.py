"""Frames of a video, decoded by a thread ahead of the model, and its audio as it is stored."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segformer.prediction.video.opening import has_no_end, main_stream, open_input, pyav
from segformer.prediction.video.pixels import display_matrix, is_sideways, to_rgb
from segformer.prediction.video.source import shown_name

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.audio.stream import AudioStream

logger = logging.getLogger(__name__)

_AHEAD = 4
"""Frames that wait for the model."""

_MOST_AUDIO = 256
"""Packets of audio that wait for a frame."""

_MISSING = 0.5
"""Seconds by which a file may end before the time that its header says."""

_TRANSPORT_PACKETS = (188, 192, 204)
"""Bytes of a packet in the kinds of MPEG transport streams."""

_JUMP = 1.0
"""Seconds by which time goes back where a stream has started again."""

_END = object()


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        index: Number of the frame in the video, from 0.
        pts: Time in units of the reader's ``time_base``, from the start of the video.
        seconds: The same in seconds.
    """

    image: NDArray[np.uint8]
    index: int
    pts: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """A frame, if there is one, and the packets of audio that come before it."""

    audio: tuple[Packet[Any], ...]
    frame: Frame | None


class VideoReader:
    """Reads a video in a thread. It is a context, and is iterated over once.

    Where the model is slower than a live source, frames are left out; files are read at the speed
    of the model. What ends too early, or is damaged, is noted and raises no error.

    Args:
        source: A file, an address such as rtsp://..., or the number of a camera.
        every: Read every n-th frame.
        duration: Seconds after which to stop; None: the whole video.

    Attributes:
        live: The source has no end.
        time_base: Unit of the times of frames, seconds.
        rate: Frames per second, on average.
        pixel_aspect: Width of a pixel divided by its height, as the frames are, from the first
            frame on; None if it is unknown.
        total: Number of frames that will be read, about; None if it is unknown.
        dropped: Frames of a live source that were left out.
        damaged: Frames and packets that could not be decoded, or only in part.
        broken: Why the video ends too early; None if it does not. Known at the end.

    Raises:
        ValueError: The source cannot be opened, or has no video.
    """

    def __init__(self, source: str | Path, *, every: int = 1, duration: float | None = None):
        self.name = shown_name(source)
        self._path = Path(source)
        self.every, self.duration = every, duration
        self._container = open_input(source)
        self._stream = main_stream(self._container)
        self._stream.thread_type = "AUTO"
        self.live = has_no_end(source, self._container)
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 90000)
        self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.pixel_aspect: Fraction | None = self._stream.sample_aspect_ratio
        self.total = self._count_frames()
        self.dropped = self.damaged = 0
        self.broken: str | None = None
        self._size: tuple[int, int] | None = None
        start: int | None = self._container.start_time
        self._start: Fraction | None = None if start is None else Fraction(start, 1_000_000)
        self._last_pts = -1
        self._end = 0.0  # of the packets so far, seconds
        self._ends_damaged = False
        self._steps: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="video", daemon=True)

    @property
    def audio_streams(self) -> list[AudioStream]:
        """Streams whose packets the steps have."""
        return list(self._container.streams.audio)

    def __enter__(self) -> VideoReader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2)
        # The thread of a source that sends nothing ends with the time limit of the source
        if not self._thread.is_alive():
            self._container.close()

    def __iter__(self) -> Iterator[Step]:
        while (step := self._steps.get()) is not _END:
            if isinstance(step, BaseException):
                raise step
            yield step

    def _read(self) -> None:
        """What the thread does."""
        try:
            for step in self._decode():
                self._put(step)
                if self._stop.is_set():
                    return
            self._put(_END)
        except Exception as error:
            self._put(error)

    def _put(self, step: object) -> None:
        while not self._stop.is_set():
            try:
                return self._steps.put(step, timeout=0.1)
            except queue.Full:
                pass

    def _decode(self) -> Iterator[Step]:
        audio: list[Packet[Any]] = []
        index = -1
        for packet in self._packets():
            if packet.stream.type == "audio" and packet.dts is not None:
                self._shift(packet)
                audio.append(packet)
                if len(audio) == _MOST_AUDIO:
                    yield Step(tuple(audio), None)
                    audio = []
            if packet.stream_index != self._stream.index:
                continue
            for decoded in self._frames(packet):
                index += 1
                pts = self._time(decoded)
                seconds = float(pts * self.time_base)
                if self.duration is not None and seconds >= self.duration:
                    yield Step(tuple(audio), None)
                    return
                if index % self.every:
                    continue
                if self.live and self._steps.full():
                    self.dropped += 1
                    continue
                if self._size is None:
                    self._size = decoded.width, decoded.height
                    if self.pixel_aspect and is_sideways(display_matrix(decoded)):
                        self.pixel_aspect = 1 / self.pixel_aspect
                image = to_rgb(decoded, *self._size)
                yield Step(tuple(audio), Frame(image, index, pts, seconds))
                audio = []
        yield Step(tuple(audio), None)
        self._check_end()

    def _packets(self) -> Iterator[Packet[Any]]:
        """Packets of all streams, until the end or an error."""
        av = pyav()
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError) as error:
                self.broken = f"{error.strerror or error}"
                return
            if packet.pts is not None and packet.time_base is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                self._end = max(self._end, float(end - (self._start or 0)))
            yield packet

    def _frames(self, packet: Packet[Any]) -> list[VideoFrame]:
        """The frames that a packet completes; damage is noted."""
        av = pyav()
        try:
            frames: list[VideoFrame] = packet.decode()
        except av.error.FFmpegError:
            self.damaged += 1
            self._ends_damaged = True
            return []
        damaged = packet.is_corrupt or any(frame.is_corrupt for frame in frames)
        self.damaged += damaged
        if damaged or frames:
            self._ends_damaged = damaged
        return frames

    def _time(self, frame: VideoFrame) -> int:
        """The time of a frame from the start, in ticks; later than that of the frame before."""
        step = max(1, round(1 / (self.rate * self.time_base)))
        if frame.pts is None or frame.time_base is None:
            pts = self._last_pts + step if self._last_pts >= 0 else 0
        else:
            seconds = frame.pts * frame.time_base
            if self._start is None:
                self._start = seconds
            pts = round((seconds - self._start) / self.time_base)
            if pts < self._last_pts - _JUMP / self.time_base:
                self._start = seconds - (self._last_pts + step) * self.time_base
                pts = self._last_pts + step
        self._last_pts = max(pts, self._last_pts + 1, 0)
        return self._last_pts

    def _shift(self, packet: Packet[Any]) -> None:
        """Make the times of a packet of audio count from the start."""
        assert packet.time_base is not None and packet.dts is not None
        start = round((self._start or 0) / packet.time_base)
        packet.dts -= start
        if packet.pts is not None:
            packet.pts -= start

    def _check_end(self) -> None:
        """Find out whether the video ends where it should."""
        duration = (self._container.duration or 0) / 1e6
        if self.broken is None and (self._ends_damaged or self._ends_inside_packet()):
            self.broken = "the last frame is cut off"
        if self.broken is None and self.live:
            self.broken = "the stream has ended"
        timed = self._last_pts >= 0 and not self.live
        if self.broken is None and timed and 0 < self._end < duration - _MISSING:
            self.broken = f"the file says that it is {duration:.2f} s long"

    def _ends_inside_packet(self) -> bool:
        """Whether the file is an MPEG transport stream, which has no length, and cut off."""
        if self.live or "mpegts" not in self._container.format.name or not self._path.is_file():
            return False
        size = self._path.stat().st_size
        return all(size % packet for packet in _TRANSPORT_PACKETS)

    def _count_frames(self) -> int | None:
        """About how many frames will be read."""
        if self.live:
            return None
        seconds = (self._container.duration or 0) / 1e6
        count = self._stream.frames or round(seconds * self.rate)
        if self.duration is not None:
            count = min(count, round(self.duration * self.rate)) if count else 0
        return -(-count // self.every) or None
