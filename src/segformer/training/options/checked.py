"""Options whose types and ranges are checked, wherever their values come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from segformer.options import depends

Names: TypeAlias = Annotated[tuple[str, ...], depends("[NAME [NAME ...]]", "none")]


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have.

    Attributes:
        words: They, as the end of "must be ...".
        allows: Whether a number is one of them.
    """

    words: str
    allows: Callable[[float], bool]


POSITIVE = Range("positive", lambda value: value > 0)
NOT_NEGATIVE = Range("zero or positive", lambda value: value >= 0)
POSITIVE_FRACTION = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
FRACTION = Range("a fraction from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Range("at least 0 and below 1", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class Options:
    """A group of options.

    The type of a field is checked, and its numbers against the `Range` that annotates it.

    Raises:
        ValueError: A value has the wrong type or is out of range; the message names the option.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            expected, limits = _type_and_range(hints[field.name])
            value = _typed(field.name, getattr(self, field.name), expected)
            object.__setattr__(self, field.name, value)
            for number in value if isinstance(value, tuple) else (value,):
                if _is_number(number):
                    _check_range(field.name, number, limits)


def _type_and_range(hint: Any) -> tuple[Any, Range | None]:
    if get_origin(hint) is not Annotated:
        return hint, None
    expected, *extras = get_args(hint)
    return expected, next((extra for extra in extras if isinstance(extra, Range)), None)


def _check_range(name: str, value: float, limits: Range | None) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    if limits is not None and not limits.allows(value):
        raise ValueError(f"{name} must be {limits.words}, not {value}")


def _typed(name: str, value: Any, expected: Any) -> Any:
    """The value as the type of its field; a value of another type is an error that names it."""
    if get_origin(expected) is Literal:
        if isinstance(value, bool):  # YAML reads true and false as this
            value = str(value).lower()
        if value not in get_args(expected):
            choices = ", ".join(get_args(expected))
            raise ValueError(f"{name} must be one of {choices}, not {value!r}")
        return value
    kinds = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if (value is None and NoneType in kinds) or (isinstance(value, str) and value in words):
        return value
    if kinds[0] == tuple[str, ...]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ValueError(f"{name} must be a list of names, not {value!r}")
    if kinds[0] == tuple[float, ...]:
        if isinstance(value, (list, tuple)) and value and all(map(_is_number, value)):
            return tuple(float(v) for v in value)
        raise ValueError(f"{name} must be a list of numbers, not {value!r}")
    if float in kinds and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 6e-5, without a dot, as text
        except ValueError:
            pass
    kind = kinds[0]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        also = "".join(f" or {word}" for word in words)
        raise ValueError(f"{name} must be of type {kind.__name__}{also}, not {value!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
