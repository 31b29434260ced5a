"""A progress bar for many predictions in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol

from segformer.image import ImageSource
from segformer.prediction.prediction import Prediction
from segformer.progress import ProgressBar

OnError = Callable[[ImageSource, Exception], None]


class Stream(Protocol):
    """`Predictor.stream`, with its other arguments given."""

    def __call__(
        self, sources: Iterable[ImageSource], *, on_error: OnError | None
    ) -> Iterator[Prediction]:
        """Segment images."""


def with_progress_bar(
    stream: Stream, sources: Iterable[ImageSource], on_error: OnError | None
) -> Iterator[Prediction]:
    """The predictions of a stream; a bar counts them, and the images that are skipped."""
    total = len(sources) if isinstance(sources, Sized) else None
    with ProgressBar("predicting", total, "images") as bar:

        def count_error(source: ImageSource, error: Exception) -> None:
            assert on_error is not None
            on_error(source, error)
            bar.advance()

        for prediction in stream(sources, on_error=on_error and count_error):
            bar.advance()
            yield prediction
