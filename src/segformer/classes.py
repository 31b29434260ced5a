"""Classes: their names, their colors, and what the values of a mask mean."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_BACKGROUND = (40, 40, 40)
"""Color of a class 0 called background: darker than the others."""

_TABLE_VALUES = range(-(1 << 15), 1 << 16)
"""Mask values that are mapped by a table; others are searched for."""


@dataclass(frozen=True)
class ClassSet:
    """The classes of a data set or a model.

    Attributes:
        names: Name of each class; the position is the class id.
        palette: One (red, green, blue), 0..255, for each class. Default: distinct colors.
        ignore_index: Class id of unlabeled pixels, which are never trained on or scored.
        mapping: Value in a mask file -> class id, for values that are not class ids themselves.

    Raises:
        ValueError: There are no names, repeated names, too few or invalid colors, an
            ``ignore_index`` that is a class, or a mapping to a class that does not exist.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore_index: int = 255
    mapping: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        if not self.names:
            raise ValueError("a class set needs at least one class")
        if not self.palette:
            palette = default_palette(len(self.names))
            if self.names[0].lower() == "background":
                palette = (_BACKGROUND, *palette[1:])
            object.__setattr__(self, "palette", palette)
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise ValueError(f"two classes have the name {repeated[0]!r}")
        for color in self.palette:
            if len(color) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in color):
                raise ValueError(f"a color is three integers from 0 to 255, not {color}")
        if len(self.palette) < len(self.names):
            raise ValueError(f"{len(self.names)} classes but {len(self.palette)} colors")
        if 0 <= self.ignore_index < len(self.names):
            raise ValueError(
                f"ignore_index {self.ignore_index} is also the class "
                f"{self.names[self.ignore_index]!r}; choose a value that no class has"
            )
        if not -(1 << 31) <= self.ignore_index < 1 << 31:
            raise ValueError(f"ignore_index {self.ignore_index} does not fit into 32 bits")
        for value, class_id in self.mapping.items():
            if not -(1 << 63) <= value < 1 << 63:
                raise ValueError(f"label_mapping: the value {value} does not fit into 64 bits")
            if class_id != self.ignore_index and not 0 <= class_id < len(self.names):
                raise ValueError(
                    f"label_mapping sends the value {value} to class {class_id}, but classes are "
                    f"0..{len(self.names) - 1} and {self.ignore_index} for ignored pixels"
                )

    def __len__(self) -> int:
        return len(self.names)

    def entries(self) -> list[dict[str, Any]]:
        """Id, name and color [red, green, blue] of each class, for JSON."""
        colors = zip(self.names, self.palette, strict=False)
        return [
            {"id": i, "name": name, "color": list(color)} for i, (name, color) in enumerate(colors)
        ]

    @classmethod
    def numbered(cls, num_classes: int) -> ClassSet:
        """Classes called "class 0", "class 1", ...; one class: background and foreground."""
        if num_classes == 1:
            return cls(("background", "foreground"))
        ignore_index = 255 if num_classes <= 255 else 65535
        return cls(tuple(f"class {i}" for i in range(num_classes)), ignore_index=ignore_index)

    @classmethod
    def of(cls, value: Classes) -> ClassSet:
        """A class set from what callers pass: one already, a list of names, or ``{id: name}``.

        Raises:
            ValueError: The names or ids cannot be used.
            TypeError: ``value`` is something else.
        """
        if isinstance(value, ClassSet):
            return value
        if isinstance(value, (Mapping, Sequence)):
            return cls.from_names(value)
        raise TypeError(
            "classes must be a ClassSet, a list of names or {id: name}, "
            f"not {type(value).__name__}"
        )

    @classmethod
    def from_names(
        cls, names: Mapping[int, str] | Sequence[str], *, ignore_index: int = 255
    ) -> ClassSet:
        """From a list, or from ``{id: name}`` with ids 0, 1, 2, ... without a gap.

        Control characters in names are replaced (`printable`).

        Raises:
            ValueError: An id is missing, or a name is not a string or number.
        """
        if isinstance(names, str):
            raise ValueError(f"class names must be a list or {{id: name}}, not the word {names!r}")
        given: Iterable[object] = names.values() if isinstance(names, Mapping) else names
        for name in given:
            if not isinstance(name, (str, int, float)) or isinstance(name, bool):
                raise ValueError(f"a class name must be a word, not {name!r} (quote yes and no)")
        if isinstance(names, Mapping):
            try:
                ids = sorted(int(key) for key in names)
            except (TypeError, ValueError):
                raise ValueError(f"class ids must be numbers, not {list(names)[:5]}") from None
            if ids != list(range(len(ids))):
                missing = sorted(set(range(max(ids, default=0) + 1)) - set(ids))
                raise ValueError(f"class ids must be 0, 1, 2, ...; there is no name for {missing}")
            by_id = {int(key): name for key, name in names.items()}
            names = [by_id[i] for i in ids]
        shown = tuple(printable(str(name)) for name in names)
        return cls(shown, ignore_index=ignore_index)

    def to_class_ids(self, values: NDArray[np.integer]) -> NDArray[np.integer]:
        """Apply the mapping to the values of a mask file, (H, W).

        Returns:
            Class ids, (H, W). Values without a mapping are unchanged, also those that are no
            class (see `unknown_values`). The input itself where there is no mapping.
        """
        if not self.mapping:
            return values
        if values.dtype.itemsize > 2 or not all(value in _TABLE_VALUES for value in self.mapping):
            keys = np.array(sorted(self.mapping), np.int64)
            ids = np.array([self.mapping[int(key)] for key in keys], np.int64)
            wide = values.astype(np.int64)
            nearest = np.searchsorted(keys, wide).clip(max=len(keys) - 1)
            return np.where(keys[nearest] == wide, ids[nearest], wide)
        highest = max(int(values.max(initial=0)), *self.mapping, *self.mapping.values())
        lowest = min(int(values.min(initial=0)), *self.mapping)
        table = np.arange(lowest, highest + 1, dtype=np.int32)
        for value, class_id in self.mapping.items():
            table[value - lowest] = class_id
        return table[values.astype(np.int32) - lowest]

    def unknown_values(self, class_ids: NDArray[np.integer]) -> dict[int, int]:
        """Ids that are neither a class nor ignored, and how many pixels have each."""
        known = (class_ids < len(self)) | (class_ids == self.ignore_index)
        if class_ids.dtype.kind != "u":
            known &= (class_ids >= 0) | (class_ids == self.ignore_index)
        if known.all():  # many times as fast as counting
            return {}
        if class_ids.dtype.itemsize <= 2 and class_ids.dtype.kind == "u":
            counts = np.bincount(class_ids.ravel())  # ten times as quick as sorting
            values = np.flatnonzero(counts)
            counts = counts[values]
        else:
            values, counts = np.unique(class_ids, return_counts=True)
        return {
            int(value): int(count)
            for value, count in zip(values, counts, strict=True)
            if value != self.ignore_index and not 0 <= value < len(self)
        }

    def colors(self) -> NDArray[np.uint8]:
        """The palette as a (K, 3) array."""
        return np.asarray(self.palette[: len(self)], dtype=np.uint8)


def printable(name: str) -> str:
    """A name from a file without what a terminal would take for a command.

    White space becomes a space, other characters that cannot be printed become "?".
    """
    shown = (c if c.isprintable() else " " if c.isspace() else "?" for c in name)
    return "".join(shown).strip()


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colors: the hue steps by the golden ratio, brightness and depth alternate."""
    colors = []
    for i in range(num_classes):
        hue = (0.02 + i * 0.618034) % 1.0
        value, saturation = ((0.95, 0.75), (0.7, 0.9), (1.0, 0.5))[i // 2 % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


Classes: TypeAlias = ClassSet | Sequence[str] | Mapping[int, str]
"""A class set, or class names as a list or as ``{id: name}``."""
