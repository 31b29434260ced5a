"""Images that threads read and prepare ahead of the model.

Legend: H W pixels of the image as it is, h w of what the model sees, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from segformer.image import ImageArray, ImageSource

_LARGE_IMAGE = 1 << 24
"""Pixels of an image beside which few others are read ahead, so that memory stays bounded."""


@dataclass(frozen=True)
class PreparedImage:
    """An image, and its views: the image at the sizes at which the model sees it.

    Views are normalized, except for images of integers that are run in windows: normalized as
    float32, they would take four times the memory.

    Attributes:
        source: Where it was read from.
        image: (H, W, C).
        views: Each (h, w, C).
    """

    source: ImageSource
    image: ImageArray
    views: list[ImageArray]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the views."""
        return [view.shape for view in self.views]


def read_ahead(
    sources: Iterable[ImageSource],
    prepare: Callable[[ImageSource], PreparedImage],
    on_error: Callable[[ImageSource, Exception], None] | None,
    *,
    readers: int,
    at_once: int,
) -> Generator[PreparedImage, None, None]:
    """Prepared images, in order.

    Args:
        sources: Images; only as many as the readers need are held.
        prepare: Reads and prepares one; runs in threads.
        on_error: Called with an image and the error if it cannot be read or does not fit into
            memory; the image is then skipped. None: the error is raised.
        readers: Number of threads.
        at_once: Images that the model takes at once.
    """
    waiting: deque[tuple[ImageSource, Future[PreparedImage]]] = deque()
    upcoming = iter(sources)
    ahead = readers + at_once
    with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
        try:
            while True:
                for source in islice(upcoming, max(0, ahead - len(waiting))):
                    waiting.append((source, pool.submit(prepare, source)))
                if not waiting:
                    return
                source, future = waiting.popleft()
                try:
                    prepared = future.result()
                except (ValueError, MemoryError) as error:
                    if on_error is None:
                        raise
                    on_error(source, error)
                else:
                    del future  # it holds the image
                    height, width = prepared.image.shape[:2]
                    ahead = 1 if height * width > _LARGE_IMAGE else readers + at_once
                    yield prepared
                    del prepared
        finally:
            for _, future in waiting:
                future.cancel()
