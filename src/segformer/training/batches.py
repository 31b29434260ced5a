"""Batches of a training from worker processes that end with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader

Batches: TypeAlias = Iterator[tuple[Tensor, Tensor]]


@contextmanager
def open_batches(loader: DataLoader[Any]) -> Iterator[Batches]:
    """Iterate over a loader; its worker processes have ended when the context ends.

    After an exception the traceback keeps the iterator alive. Its workers, which ignore SIGTERM,
    would then wait for work while the program, at its exit, waits for them.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        shut_down = getattr(batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


def next_batch(batches: Batches) -> tuple[Tensor, Tensor]:
    """The next batch; errors of worker processes without the traceback in their message."""
    try:
        return next(batches)
    except (ValueError, OSError) as error:
        if str(error).startswith("Caught "):
            last = str(error).strip().splitlines()[-1]
            raise ValueError(re.sub(r"^[\w.]+: ", "", last)) from None
        raise
    except RuntimeError as error:
        if re.match(r"DataLoader worker \(pid.*\) (is killed|exited)", str(error)):
            raise MemoryError(
                "a process that loads images was killed, probably for lack of memory; use fewer "
                "--num-workers, or leave out --cache"
            ) from None
        raise


def batch_names(loader: DataLoader[Any]) -> list[list[str]]:
    """Names of the samples of each batch, without reading them.

    A sample that cannot be read is named here, not the one that takes its place.
    """
    dataset: Any = loader.dataset
    assert loader.batch_sampler is not None
    draws: Any = loader.batch_sampler
    return [[dataset.name(draw[0]) for draw in batch] for batch in draws]
