"""Which layers of an int8 graph cost the most accuracy, and how many go back to float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.export.graph_runner import open_runner
from segformer.export.int8_restore import groups, restore
from segformer.prediction.runtimes.graphs import GraphFormat
from segformer.progress import ProgressBar

Pixels = NDArray[np.float32]


def rank(
    quantized: Any, original: Any, format: GraphFormat, examples: Sequence[Pixels]
) -> dict[frozenset[str], float]:
    """How much each group of int8 layers changes the logits, largest first.

    Args:
        quantized: The graph, as NNCF returns it.
        original: The float32 graph that it was made from.
        format: Format of the graphs.
        examples: Inputs (1, C, H, W) to compare the logits on.

    Returns:
        By the names of the layers of a group: the root mean square change of the logits if this
        group alone is int8, relative to their standard deviation.
    """
    expected = _logits(original, format, examples)
    spread = float(np.mean([logits.var() for logits in expected])) or 1.0
    found = groups(quantized, format)
    names = frozenset().union(*found)
    errors = {}
    with ProgressBar("comparing layers", len(found), "layers") as bar:
        for group in found:
            alone = restore(quantized, original, names - group, format)
            changes = [
                float(np.square(logits - wanted).mean())
                for logits, wanted in zip(_logits(alone, format, examples), expected, strict=True)
            ]
            errors[group] = float(np.sqrt(np.mean(changes) / spread))
            bar.advance()
    return dict(sorted(errors.items(), key=lambda entry: -entry[1]))


def fewest(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from 1 to ``most`` with which a bound holds.

    It is assumed to hold with ``most``, and with all numbers above one with which it holds. About
    2 log2 of the result are tried.
    """
    low, high = 0, 1
    while high < most and not holds(high):
        low, high = high, min(most, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _logits(model: Any, format: GraphFormat, examples: Sequence[Pixels]) -> list[Pixels]:
    """What a graph in memory computes, (1, K, h, w) for each input."""
    run = open_runner(model, format)
    return [run(pixels)[0] for pixels in examples]
