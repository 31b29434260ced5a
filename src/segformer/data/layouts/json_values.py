"""Typed values out of JSON written by other tools."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.classes import printable

_LARGEST = 1e12
"""Numbers from here on are no coordinates."""


def as_dict(value: Any, what: str) -> dict[str, Any]:
    """The value, if it is an object.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected an object, not {_show(value)}")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """The value, if it is a list.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, list):
        raise ValueError(f"{what}: expected a list, not {_show(value)}")
    return value


def as_text(value: Any, what: str) -> str:
    """The value, if it is a string that is not empty.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what}: expected a text, not {_show(value)}")
    return value


def as_name(value: Any, what: str) -> str:
    """The value as a class name, without what a terminal would take for a command.

    Raises:
        ValueError: It is not a string, or nothing of it can be shown.
    """
    return as_text(printable(as_text(value, what)), what)


def as_number(value: Any, what: str) -> float:
    """The value, if it is a finite number.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise ValueError(f"{what}: expected a number, not {_show(value)}")
    return float(value)


def as_int(value: Any, what: str) -> int:
    """The value, if it is a whole number.

    Raises:
        ValueError: It is not.
    """
    number = as_number(value, what)
    if number != int(number):
        raise ValueError(f"{what}: expected a whole number, not {_show(value)}")
    return int(number)


def as_points(value: Any, what: str) -> NDArray[np.float64]:
    """(N, 2) of a list of pairs.

    Raises:
        ValueError: It is not.
    """
    try:
        points = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{what}: expected points [[x, y], ...], not {_show(value)}")
    if not (np.abs(points) < _LARGEST).all():
        raise ValueError(f"{what}: coordinates that are too large or not finite: {_show(value)}")
    return points


def _show(value: Any) -> str:
    return repr(value)[:60]
