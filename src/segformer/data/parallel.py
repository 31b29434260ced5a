"""Reading many files on all CPUs in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from segformer.machine import available_cpus

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2
"""Items per thread that are begun before their results are taken."""


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None
) -> Iterator[Result]:
    """Results of a function in the order of the items, computed by threads.

    Only a few items are begun ahead of the result that is taken, so that memory does not grow with
    their number. Where the loop over the results ends early, also by Ctrl-C, items that have not
    begun are dropped.

    Args:
        function: What to compute. Decoding and writing of images run in parallel.
        items: What to compute it of.
        threads: Number of threads. Default: one for each CPU that this process may use, and one
            more that waits for files.
    """
    threads = threads or available_cpus() + 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
