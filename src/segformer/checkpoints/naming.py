"""How the tensor names of one checkpoint format translate to ours and back.

A `Format` is a table with a row per module: its name here and its name in that format. Where one
side stores separately what the other stores as one tensor (keys and values, for example), the row
has several names, and the tensors of both sides are equal once concatenated along the first axis.
Numbers in names count from 0: ``{s}`` is the stage and ``{b}`` the block; ``{n}`` is the stage
counted from 1, ``{r}`` the stage counted from the last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segformer.config import NormEps

_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_SPLIT_NAME = re.compile(rf"(.*?[._]|)({'|'.join(_LEAVES)})")
"""A tensor's name as its module, with the separator, and the leaf."""


@dataclass(frozen=True)
class Row:
    """Names of one module, or of several that one of the sides stores as one tensor.

    Attributes:
        ours: Names in this package; ``key_value`` holds two tensors of the other sizes.
        theirs: Names in the format, of equal sizes. A name that ends in ``_`` takes no dot.
        pointwise: A linear in this package is a 1x1 convolution in the format.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    pointwise: bool = False


@dataclass(frozen=True)
class Match:
    """The same tensors, by their names in this package and in the format."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    pointwise: bool


@dataclass(frozen=True)
class Format:
    """A checkpoint format: the tensor names of one codebase.

    Attributes:
        name: On the command line.
        title: In messages.
        encoder: Prefix of the encoder's names in whole models; files of an encoder alone lack it.
        eps: Epsilons of its LayerNorms where no configuration states them.
        rows: The table. A second row for the same modules is read but never written.
        decoders: Which decoders its models have; see `SegFormerConfig`.
        unused: Patterns of names that its files hold and inference does not use.
        hidden_act: Activation of its Mix-FFN; see `SegFormerConfig`.
        written: Whether models can be converted to it.
    """

    name: str
    title: str
    encoder: str
    eps: NormEps
    rows: tuple[Row, ...]
    decoders: tuple[str, ...] = ("original",)
    unused: tuple[str, ...] = ()
    hidden_act: str = "gelu"
    written: bool = True

    def from_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename, split and join tensors of this package into those of the format.

        Raises:
            ValueError: A tensor has no name in the format.
        """
        renamed: dict[str, Tensor] = {}
        for match in self._matches(tensors, here=True):
            if any(name not in tensors for name in match.ours):
                continue
            stack = [tensors[name] for name in match.ours]
            if match.pointwise and stack[0].ndim == 2:
                stack = [tensor[:, :, None, None] for tensor in stack]
            renamed.update(zip(match.theirs, _recut(stack, [1] * len(match.theirs)), strict=True))
        unknown = self._unknown(tensors, here=True)
        if unknown:
            raise ValueError(f"{unknown[0]}: the {self.name} format has no name for this tensor")
        return renamed

    def to_ours(
        self, names: Collection[str], read: Callable[[str], Tensor], part: str = ""
    ) -> Iterator[tuple[str, Tensor]]:
        """Read, rename, split and join tensors of the format into those of this package.

        Names that are in no row are skipped, and so are rows of which a tensor is missing.

        Args:
            names: The tensors there are, by their names in the format.
            read: Reads a tensor by its name in the format; called once for each.
            part: Only tensors whose names in this package begin with this, such as ``encoder.``.

        Yields:
            Name in this package and tensor, a few at a time.

        Raises:
            ValueError: The shapes of tensors to be joined do not match.
        """
        for match in self._matches(names, here=False):
            if not match.ours[0].startswith(part) or any(n not in names for n in match.theirs):
                continue
            stack = [read(name) for name in match.theirs]
            if match.pointwise and stack[0].ndim == 4 and stack[0].shape[2:] == (1, 1):
                stack = [tensor.flatten(1) for tensor in stack]
            counts = [2 if "key_value." in name else 1 for name in match.ours]
            try:
                yield from zip(match.ours, _recut(stack, counts), strict=True)
            except (RuntimeError, ValueError):
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in stack)
                raise ValueError(
                    f"{', '.join(match.theirs)}: shapes {shapes} do not fit together"
                ) from None

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Names that are neither in a row nor known to be unused."""
        unused = re.compile("|".join(self.unused) or r"(?!)")
        return [n for n in self._unknown(names, here=False) if not unused.match(n)]

    def knows(self, name: str) -> bool:
        """Whether a name of the format is in a row."""
        return self._find(name, here=False) is not None

    def _matches(self, names: Iterable[str], *, here: bool) -> Iterator[Match]:
        seen = set()
        for name in names:
            match = self._find(name, here=here)
            if match is not None and match.ours not in seen:
                seen.add(match.ours)
                yield match

    def _unknown(self, names: Iterable[str], *, here: bool) -> list[str]:
        return [name for name in names if self._find(name, here=here) is None]

    def _find(self, name: str, *, here: bool) -> Match | None:
        split = _SPLIT_NAME.fullmatch(name)
        if split is None:
            return None
        module, leaf = split.groups()
        for pattern, row in self._index[here].get(_shape_of(module), ()):
            found = pattern.fullmatch(module)
            if found:
                numbers = _stage_numbers(found.groupdict())
                ours, theirs = (
                    tuple(_with_separator(name).format(**numbers) + leaf for name in side)
                    for side in (row.ours, row.theirs)
                )
                return Match(ours, theirs, row.pointwise and leaf == "weight")
        return None

    @cached_property
    def _index(self) -> tuple[dict[str, list[tuple[re.Pattern[str], Row]]], ...]:
        """Rows by names without numbers, theirs and ours: a model has a thousand names to find."""
        indices: tuple[dict[str, list[tuple[re.Pattern[str], Row]]], ...] = ({}, {})
        for row in self.rows:
            for index, names in zip(indices, (row.theirs, row.ours), strict=True):
                for name in map(_with_separator, names):
                    shape = _shape_of(re.sub(r"\{\w\}", "0", name))
                    index.setdefault(shape, []).append((_pattern(name), row))
        return indices


def _with_separator(name: str) -> str:
    return name if name.endswith("_") else name + "."


def _shape_of(module: str) -> str:
    """A name with its numbers replaced by #."""
    return re.sub(r"\d+", "#", module)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(name)))


def _stage_numbers(found: Mapping[str, str]) -> dict[str, int]:
    """The stage in every way of counting, from the one that a name uses."""
    numbers = {key: int(value) for key, value in found.items()}
    if "n" in numbers:
        numbers["s"] = numbers["n"] - 1
    elif "r" in numbers:
        numbers["s"] = 3 - numbers["r"]
    if "s" in numbers:
        numbers |= {"n": numbers["s"] + 1, "r": 3 - numbers["s"]}
    return numbers


def _recut(stack: list[Tensor], counts: list[int]) -> list[Tensor]:
    """Tensors joined along the first axis and split again in these proportions."""
    if len(stack) == len(counts):
        return stack
    joined = _joined(stack)
    if len(counts) == 1:
        return [joined]
    unit, rest = divmod(joined.shape[0], sum(counts))
    if rest:
        raise ValueError("the first axis cannot be split evenly")
    sizes = [unit * count for count in counts]
    return [part.clone() for part in torch.split(joined, sizes)]


def _joined(stack: list[Tensor]) -> Tensor:
    """Tensors concatenated along the first axis."""
    if len(stack) == 1:
        return stack[0]
    if not stack[0].is_meta:
        return torch.cat(stack)
    # On the meta device torch.cat would import PyTorch's compiler, which takes a second
    rest = stack[0].shape[1:]
    if any(tensor.shape[1:] != rest for tensor in stack):
        raise ValueError(f"{[tuple(tensor.shape) for tensor in stack]} cannot be joined")
    return stack[0].new_empty(sum(map(len, stack)), *rest)
