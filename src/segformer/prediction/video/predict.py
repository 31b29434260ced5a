"""Segmenting a video: frames are read, segmented and written at the same time."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from segformer.files import whole_file, whole_folder
from segformer.image import ImageArray
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor
from segformer.prediction.video.options import (
    Masks,
    VideoOptions,
    VideoPaths,
    incomplete,
    plan_video,
)
from segformer.prediction.video.reading import Frame, Step, VideoReader
from segformer.prediction.video.smoothing import LogitSmoothing
from segformer.prediction.video.writing import (
    CLASS_IDS,
    COLOR,
    MANY_CLASS_IDS,
    MaskFolder,
    VideoFile,
)

logger = logging.getLogger(__name__)

_WAITING_WRITES = 4
"""Frames that wait to be written, so that memory stays bounded."""


@dataclass(frozen=True)
class VideoProgress:
    """Where in a video a frame is.

    Attributes:
        index: Number of the frame in the video, from 0.
        seconds: Its time from the start of the video.
        total: Number of frames that will be segmented, about; None if it is unknown.
    """

    index: int
    seconds: float
    total: int | None


@dataclass(frozen=True)
class VideoResult:
    """What became of a video.

    Attributes:
        files: The files and folders that were written.
        frames: Number of frames that were segmented.
        seconds: Time of the last of them.
        broken: Why the results end before the video does; None if they do not. Their names then
            have ``.incomplete`` in them.
        damaged: Frames and packets of audio that could not be decoded, or only in part.
        dropped: Frames of a live source for which the model was too slow.
    """

    files: list[Path]
    frames: int
    seconds: float
    broken: str | None
    damaged: int
    dropped: int


def predict_video(
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    every: int = 1,
    smoothing: float = 0.0,
    masks: Masks = "none",
    duration: float | None = None,
    overlay: bool = True,
    opacity: float = 0.55,
    overwrite: bool = False,
    on_frame: Callable[[Prediction, VideoProgress], None] | None = None,
) -> VideoResult:
    """Segment a video and write it with the classes in color, or its class ids.

    Frames keep their times, also where these are irregular, and their rotation is applied. Audio is
    kept without being encoded again, where the format of ``out`` can store it. Memory does not grow
    with the length of the video.

    If the video ends before it should, or the work is interrupted, what was segmented is kept under
    a name with ``.incomplete`` in it, and can be played.

    Args:
        predictor: Model and options.
        source: A file, an address such as rtsp://..., or the number of a camera.
        out: A video file (.mp4, .mkv, .mov, .m4v, .webm) or a folder; see `plan_video`.
        every: See `VideoOptions`, as for ``smoothing``, ``masks`` and ``duration``.
        smoothing: Weight of the past, from 0 to below 1.
        masks: "none", "frames" or "video".
        duration: Seconds after which to stop.
        overlay: Write the overlay.
        opacity: Opacity of the colors in the overlay, 0..1.
        overwrite: Replace existing results.
        on_frame: Called with each prediction, in order.

    Returns:
        What was written; check ``broken``.

    Raises:
        OutputExists: A result exists, and ``overwrite`` is False.
        ValueError: The video cannot be opened, has no frame that can be read, or cannot be written
            as asked; or an option is out of range.
        OSError: The results cannot be written, as on a full disk; nothing is kept.
        KeyboardInterrupt: Ctrl-C, after the results have been finished.
    """
    options = VideoOptions(every, smoothing, masks, duration)
    paths = plan_video(source, out, options, overlay=overlay)
    paths.check(source, overwrite=overwrite)
    _check_model(predictor)
    reader = VideoReader(source, every=every, duration=duration)
    failure: BaseException | None = None
    with reader, ExitStack() as stack:
        results = _Results(paths, reader, predictor, opacity, stack)
        try:
            _run(_for_video(predictor, smoothing), reader, results, on_frame)
        except BaseException as error:
            if not results.frames or isinstance(error, OSError):
                raise
            failure = error  # what was segmented so far is kept
        results.close()
        if not results.frames:
            raise ValueError(f"{reader.name}: no frame can be read: {reader.broken}")
    broken = "interrupted" if failure is not None else reader.broken
    files = [incomplete(path) for path in paths.all]
    if broken is None:
        files = [_complete(path) for path in paths.all]
    else:
        logger.warning(
            f"{reader.name}: ends at {results.seconds:.2f} s, after {results.frames} frames: "
            f"{broken}; what there is was written to {', '.join(map(str, files))}"
        )
    if reader.damaged:
        logger.warning(f"{reader.name}: {reader.damaged} frames are damaged")
    if failure is not None:
        raise failure
    return VideoResult(
        files, results.frames, results.seconds, broken, reader.damaged, reader.dropped
    )


def _check_model(predictor: Predictor) -> None:
    channels = predictor.model.config.in_channels
    if channels not in (1, 3):
        raise ValueError(f"the model takes {channels} channels, the frames of a video have 3")


def _for_video(predictor: Predictor, smoothing: float) -> Predictor:
    """The predictor for arrays of frames; the model and what runs it are shared."""
    own = copy.copy(predictor)
    own.reader = own.on_logits = None
    own.logits_filter = LogitSmoothing(smoothing) if smoothing else None
    return own


def _run(
    predictor: Predictor,
    reader: VideoReader,
    results: _Results,
    on_frame: Callable[[Prediction, VideoProgress], None] | None,
) -> None:
    """Read, segment and write all frames; the predictor reads a few frames ahead."""
    frames: deque[Frame] = deque()

    def images() -> Iterator[ImageArray]:
        for step in reader:
            results.add_audio(step)
            if step.frame is not None:
                frames.append(step.frame)
                yield step.frame.image

    with closing(predictor.stream(images(), progress=False)) as predictions:  # type: ignore[type-var]
        for prediction in predictions:
            frame = frames.popleft()
            results.add(prediction, frame)
            if on_frame is not None:
                on_frame(prediction, VideoProgress(frame.index, frame.seconds, reader.total))


class _Results:
    """The files of one video, written by a thread of their own, under their incomplete names.

    Args:
        paths: Where to.
        reader: The video.
        predictor: Model and options.
        opacity: Of the colors.
        stack: Where the files become whole, when it is left without an error.
    """

    def __init__(
        self,
        paths: VideoPaths,
        reader: VideoReader,
        predictor: Predictor,
        opacity: float,
        stack: ExitStack,
    ):
        self.frames, self.seconds, self.opacity = 0, 0.0, opacity
        self._overlay = self._video = self._folder = None
        if paths.overlay is not None:
            partial = stack.enter_context(whole_file(incomplete(paths.overlay)))
            self._overlay = VideoFile(partial, COLOR, reader, audio=True)
        if paths.mask_video is not None:
            partial = stack.enter_context(whole_file(incomplete(paths.mask_video)))
            many = len(predictor.model.classes) > 256
            self._video = VideoFile(partial, MANY_CLASS_IDS if many else CLASS_IDS, reader)
        if paths.mask_folder is not None:
            folder = stack.enter_context(whole_folder(incomplete(paths.mask_folder)))
            self._folder = MaskFolder(folder)
        self._writing: deque[Future[None]] = deque()
        self._pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="writer"))

    def add(self, prediction: Prediction, frame: Frame) -> None:
        """Write a frame's results, later."""
        self._submit(self._write, prediction, frame)
        self.frames, self.seconds = self.frames + 1, frame.seconds

    def add_audio(self, step: Step) -> None:
        """Write a step's audio, later."""
        if step.audio and self._overlay is not None:
            self._submit(self._overlay.add_audio, step.audio)

    def close(self) -> None:
        """Write what is left and finish the files."""
        while self._writing:
            self._writing.popleft().result()
        for file in (self._overlay, self._video, self._folder):
            if file is not None:
                self._pool.submit(file.close).result()

    def _submit(self, work: Callable[..., None], *values: Any) -> None:
        while len(self._writing) > _WAITING_WRITES or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()
        self._writing.append(self._pool.submit(work, *values))

    def _write(self, prediction: Prediction, frame: Frame) -> None:
        if self._overlay is not None:
            drawn = prediction.overlay(opacity=self.opacity, legend=False, max_side=1 << 20)
            self._overlay.add(np.asarray(drawn), frame)
        if self._video is not None:
            self._video.add(prediction.label_map, frame)
        if self._folder is not None:
            self._folder.add(prediction, frame)


def _complete(path: Path) -> Path:
    """Give a result its own name, now that it is complete."""
    if path.is_dir():
        rmtree(path)
    return incomplete(path).replace(path)
