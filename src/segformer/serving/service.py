"""The work of a request: its place in the service, its deadline, its images, its predictions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from fastapi import Request

from segformer.image import UnreadableImage
from segformer.machine import available_cpus
from segformer.prediction.prediction import Prediction
from segformer.serving.access_log import Record
from segformer.serving.decoding import check_image
from segformer.serving.metrics import Metrics
from segformer.serving.models import ServedModel
from segformer.serving.options import ServeOptions
from segformer.serving.problems import CLIENT_GONE, Problem, unreadable
from segformer.serving.queue import Job, Places, Queue

_MOST_READERS = 8

T = TypeVar("T")


class Service:
    """Models, their queue, and the limits.

    Args:
        models: Name -> model; the first is the default.
        options: Limits.
    """

    def __init__(self, models: Mapping[str, ServedModel], options: ServeOptions):
        self.models, self.options = dict(models), options
        self.metrics = Metrics()
        self.places = Places(options.queue_size)
        readers = min(_MOST_READERS, max(2, available_cpus()))
        largest = max(model.staged.batch_size for model in self.models.values())
        ahead = readers + 2 * largest
        self.queue = Queue(options.batch_wait, readers, self.metrics, ahead)
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="serving")
        self.metrics.watch("places_taken", "Images in the service.", lambda: self.places.taken)
        self.metrics.watch(
            "places", "Images that may be in the service.", lambda: options.queue_size
        )
        self.metrics.watch(
            "queue_length", "Images that wait for the model.", lambda: len(self.queue)
        )

    def close(self) -> None:
        """End the threads."""
        self.queue.close()
        self._pool.shutdown()

    def model(self, name: str | None) -> ServedModel:
        """A model by its name; without one, the first.

        Raises:
            Problem: There is none of this name (422).
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Problem(
                422, "unknown-model", f"there is no such model; there are: {', '.join(self.models)}"
            )
        return self.models[name]

    @asynccontextmanager
    async def admit(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold a place for an image, and give up what is done meanwhile at the deadline.

        Args:
            seconds: Until the deadline; the service's own is never exceeded.

        Raises:
            Problem: All places are taken (429), or the deadline has passed (504).
        """
        limit = min(seconds or self.options.deadline, self.options.deadline)
        try:
            with self.places.take(1):
                async with asyncio.timeout(limit):
                    yield
        except TimeoutError:
            self.metrics.rejected.labels("deadline").inc()
            raise Problem(
                504,
                "deadline-exceeded",
                f"the request was not done within {limit:g} s; try again when there is less to do, "
                "or send smaller images",
            ) from None
        except Problem as problem:
            if problem.status != 504:
                self.metrics.rejected.labels(problem.code).inc()
            raise

    async def segment(
        self,
        images: Sequence[bytes],
        model: ServedModel,
        record: Record,
        *,
        confidence: bool = False,
    ) -> list[Prediction]:
        """Predictions of encoded images. The caller holds a place, which is one for the first.

        Raises:
            Problem: An image is above the limits or cannot be read.
        """
        record.more.update(model=model.name, images=len(images))
        with self.places.take(len(images) - 1):
            for number, image in enumerate(images):
                try:
                    await self.in_thread(partial(check_image, image, self.options))
                except Problem as problem:
                    raise _of_image(problem, number, len(images)) from None
            jobs = [Job(model, image, confidence=confidence) for image in images]
            try:
                for job in jobs:
                    self.queue.submit(job)
                return [
                    await self._result(job, number, len(jobs)) for number, job in enumerate(jobs)
                ]
            finally:
                for job in jobs:
                    self.queue.abandon(job)
                self._note(jobs, record)

    async def _result(self, job: Job, number: int, count: int) -> Prediction:
        try:
            return await asyncio.wrap_future(job.future)
        except UnreadableImage as error:
            raise _of_image(unreadable(error), number, count) from None
        except MemoryError:
            problem = Problem(
                413,
                "out-of-memory",
                "the image does not fit into the memory of the service; send it smaller or in "
                "parts",
            )
            raise _of_image(problem, number, count) from None

    def _note(self, jobs: Sequence[Job], record: Record) -> None:
        stages: dict[str, float] = {}
        for job in jobs:
            for stage, seconds in job.seconds.items():
                self.metrics.stage_seconds.labels(stage).observe(seconds)
                stages[stage] = max(stages.get(stage, 0), seconds)
            if "run" in job.seconds:
                self.places.measured(job.seconds["run"])
        record.more["stages"] = {stage: round(value, 4) for stage, value in stages.items()}

    async def in_thread(self, work: Callable[[], T], stage: str | None = None) -> T:
        """Do work that takes a while beside the event loop, and measure it as a stage."""
        if stage is None:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        with self.metrics.stage_seconds.labels(stage).time():
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Wait for work; it is cancelled when the client goes away. The body must have been read.

    Raises:
        Problem: The client has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Problem(CLIENT_GONE, "client-gone", "the client went away")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _of_image(problem: Problem, number: int, count: int) -> Problem:
    """The problem of one of several images, which it then names."""
    if count == 1:
        return problem
    detail = f"image {number}: {problem.detail}"
    return Problem(problem.status, problem.code, detail, problem.headers, image=number)
