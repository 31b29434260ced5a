"""The way of an image through the service: wait, be read, wait for others of its size, be run.

Threads read images ahead of the model; one thread runs it. The number of images in the service, and
that of decoded ones, are bounded.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from segformer.image import ImageSource
from segformer.prediction.prediction import Prediction
from segformer.prediction.staged import PreparedImage
from segformer.serving.metrics import Metrics
from segformer.serving.models import ServedModel
from segformer.serving.problems import Problem

logger = logging.getLogger(__name__)

_MOST_RETRY_AFTER = 60
"""Largest "Retry-After" of a refusal, in seconds."""


class Abandoned(Exception):
    """Nobody waits for the result any more."""


class Places:
    """The places for images in the service. Used by the thread of the event loop only.

    Args:
        count: Number of places.
    """

    def __init__(self, count: int):
        self.count, self.taken = count, 0
        self.seconds_per_image = 0.1

    @property
    def free(self) -> int:
        """Number of places that are not taken."""
        return self.count - self.taken

    @contextmanager
    def take(self, images: int) -> Iterator[None]:
        """Hold places for images.

        Raises:
            Problem: There are not enough free places (429), or not as many at all (413).
        """
        if images > self.count:
            raise Problem(413, "too-many-images", f"a request may have at most {self.count} images")
        if images > self.free:
            seconds = math.ceil(self.taken * self.seconds_per_image)
            wait = str(min(max(seconds, 1), _MOST_RETRY_AFTER))
            raise Problem(
                429,
                "queue-full",
                f"all {self.count} places for images are taken; try again after {wait} s, as the "
                "header Retry-After says",
                {"Retry-After": wait},
            )
        self.taken += images
        try:
            yield
        finally:
            self.taken -= images

    def measured(self, seconds: float) -> None:
        """Note how long the model took for an image."""
        self.seconds_per_image += 0.1 * (seconds - self.seconds_per_image)


class Job:
    """An image to segment.

    Args:
        model: What segments it.
        data: The image, encoded or as an array.
        confidence: Whether probabilities are wanted.

    Attributes:
        future: Gets the prediction.
        prepared: The image once it has been read.
        abandoned: Whether nobody waits for the result any more.
        seconds: Duration of each stage that is over.
    """

    def __init__(self, model: ServedModel, data: ImageSource, *, confidence: bool):
        self.model, self.data, self.confidence = model, data, confidence
        self.future: Future[Prediction] = Future()
        self.prepared: PreparedImage | None = None
        self.abandoned = False
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    @property
    def kind(self) -> Hashable:
        """Jobs of one kind can be run together."""
        assert self.prepared is not None
        return self.model.name, self.confidence, self.prepared.shapes

    def end_stage(self, stage: str) -> None:
        """Note how long the stage took that is over now."""
        now = time.monotonic()
        self.seconds[stage] = now - self._since
        self._since = now

    def fail(self, error: BaseException) -> None:
        """Give the error instead of a prediction, unless nobody waits for it any more."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Queue:
    """Jobs, the threads that read their images, and the thread that runs the model.

    Args:
        batch_wait: Seconds that an image waits at most for others of its kind that are coming.
        readers: Number of threads that read images.
        metrics: Where batches and stages are counted.
        ahead: Images that are read ahead of the model.
    """

    def __init__(self, batch_wait: float, readers: int, metrics: Metrics, ahead: int):
        self.batch_wait, self.metrics, self.ahead = batch_wait, metrics, ahead
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._ready: list[Job] = []
        self._reading = 0
        self._closing = False
        targets = [self._read] * readers + [self._run]
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._waiting) + self._reading + len(self._ready)

    def submit(self, job: Job) -> None:
        """Add a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def abandon(self, job: Job) -> None:
        """Take a job out wherever it is; what runs in windows stops after the next window."""
        with self._changed:
            job.abandoned = True
            job.future.cancel()
            if job in self._waiting:
                self._waiting.remove(job)
            if job in self._ready:
                self._ready.remove(job)
            self._changed.notify_all()

    @property
    def works(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """End the threads once the jobs are done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        while (job := self._next_to_read()) is not None:
            prepared: PreparedImage | None = None
            try:
                prepared = job.model.staged.prepare(job.data)
            except Exception as error:
                job.fail(error)
            job.end_stage("decode")
            with self._changed:
                self._reading -= 1
                if prepared is not None and not job.abandoned:
                    job.prepared = prepared
                    self._ready.append(job)
                self._changed.notify_all()
            del job, prepared  # while the thread waits for the next one

    def _next_to_read(self) -> Job | None:
        with self._changed:
            while not self._waiting or self._reading + len(self._ready) >= self.ahead:
                if self._closing and not self._waiting:
                    return None
                self._changed.wait()
            job = self._waiting.popleft()
            self._reading += 1
        job.end_stage("queue")
        return job

    def _run(self) -> None:
        while batch := self._next_batch():
            self._run_batch(batch)
            del batch

    def _next_batch(self) -> list[Job]:
        """The oldest job that has been read and others of its kind; none at the end."""
        with self._changed:
            since: dict[Job, float] = {}
            while True:
                if not self._ready:
                    if self._closing and not self._waiting and not self._reading:
                        return []
                    self._changed.wait()
                    continue
                first = self._ready[0]
                most = first.model.staged.batch_size
                batch = [job for job in self._ready if job.kind == first.kind][:most]
                left = since.setdefault(first, time.monotonic()) + self.batch_wait
                left -= time.monotonic()
                others_are_coming = bool(self._waiting or self._reading)
                if len(batch) == most or left <= 0 or not others_are_coming:
                    self._ready = [job for job in self._ready if job not in batch]
                    self._changed.notify_all()
                    return batch
                self._changed.wait(left)

    def _run_batch(self, batch: list[Job]) -> None:
        # From here on a future cannot be cancelled, so that setting its result cannot fail
        batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
        if not batch:
            return
        for job in batch:
            job.end_stage("batch")
        try:
            self._run_jobs(batch)
        finally:
            for job in batch:
                job.prepared = None

    def _run_jobs(self, batch: list[Job]) -> None:
        model = batch[0].model
        self.metrics.batch_size.labels(model.name).observe(len(batch))
        try:
            predictions = self._predict(batch)
        except MemoryError as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:  # one by one they need less
                self._finish_alone(job)
        except Exception as error:
            for job in batch:
                job.future.set_exception(error)
        else:
            for job, prediction in zip(batch, predictions, strict=True):
                self._finish(job, prediction)

    def _finish_alone(self, job: Job) -> None:
        try:
            (prediction,) = self._predict([job])
        except Exception as error:
            job.future.set_exception(error)
        else:
            self._finish(job, prediction)

    def _finish(self, job: Job, prediction: Prediction) -> None:
        job.end_stage("run")
        self.metrics.images.labels(job.model.name).inc()
        job.future.set_result(prediction)

    def _predict(self, batch: list[Job]) -> list[Prediction]:
        images = [job.prepared for job in batch if job.prepared is not None]
        return batch[0].model.staged.run(
            images, confidence=batch[0].confidence, on_windows=_stop_if_abandoned(batch)
        )


def _stop_if_abandoned(batch: list[Job]) -> Callable[[int, int], None]:
    def check(done: int, count: int) -> None:
        if all(job.abandoned for job in batch):
            raise Abandoned

    return check
