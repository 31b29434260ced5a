"""What is raised for a data set that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

Color: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0..255."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message says what is wrong, where, and what to do."""


class ColoredMask(DatasetError):
    """A mask of colors in a data set that does not say what they mean.

    Args:
        message: What is wrong.
        colors: Pixels of each color that has no class.
    """

    def __init__(self, message: str, colors: Mapping[Color, int]):
        super().__init__(message)
        self.colors = Counter(colors)


class UnknownValues(DatasetError):
    """A mask with values that are neither a class nor ignored.

    Args:
        message: What is wrong.
        values: Pixels of each value of the mask file that has no class.
        known: The other values of the mask.
    """

    def __init__(self, message: str, values: Mapping[int, int], known: frozenset[int]):
        super().__init__(message)
        self.values, self.known = Counter(values), known
