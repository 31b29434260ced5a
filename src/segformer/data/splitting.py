"""Dividing samples into training and validation, where a data set does not do it itself."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from segformer.data.errors import DatasetError

Parts = tuple[list[int], list[int]]
"""Positions of the samples for training and for validation, ascending."""


def split_fraction(
    names: Sequence[str],
    val_fraction: float,
    *,
    present: NDArray[np.bool_] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Parts:
    """Divide samples into training and validation by a fraction.

    Args:
        names: Names of the samples; the division depends on them, not on their order.
        val_fraction: Fraction of the samples for validation, between 0 and 1.
        present: (N, K) which classes occur in each mask; the parts get them in proportion.
        groups: Group of each sample; no group is in both parts.
        seed: Of the random choices.

    Raises:
        DatasetError: The fraction is not between 0 and 1, or a part would be empty.
    """
    if not 0 < val_fraction < 1:
        raise DatasetError(f"the validation fraction must lie between 0 and 1, not {val_fraction}")
    part = _divide(names, (1 - val_fraction, val_fraction), present, groups, seed)
    return _parts(part, 1, f"a validation fraction of {val_fraction}")


def split_fold(
    names: Sequence[str],
    fold: int,
    num_folds: int,
    *,
    present: NDArray[np.bool_] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Parts:
    """One of k folds for validation, the others for training.

    Each sample is in the validation part of exactly one fold, for the same names, groups and seed.

    Args:
        names: Names of the samples; the division depends on them, not on their order.
        fold: Which fold, from 1.
        num_folds: How many there are.
        present: (N, K) which classes occur in each mask; the folds get them in proportion.
        groups: Group of each sample; no group is in two folds.
        seed: Of the random choices.

    Raises:
        DatasetError: There is no such fold, or a fold would be empty.
    """
    if num_folds < 2 or not 1 <= fold <= num_folds:
        raise DatasetError(
            f"a fold must be 1/k to k/k with k of at least 2, not {fold}/{num_folds}"
        )
    part = _divide(names, (1 / num_folds,) * num_folds, present, groups, seed)
    return _parts(part, fold - 1, f"fold {fold}/{num_folds}")


def parse_fold(text: str) -> tuple[int, int]:
    """``"2/5"`` -> (2, 5).

    Raises:
        DatasetError: It is not of this form, or there is no such fold.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
        raise DatasetError(f"a fold is written like 2/5, the second of five; not {text!r}")
    return int(match[1]), int(match[2])


def split_lists(
    names: Sequence[str], val: Iterable[str], train: Iterable[str] | None = None
) -> Parts:
    """Divide samples by lists of their names.

    A line may be a name with or without suffix, or a path that ends with it.

    Args:
        names: Names of the samples.
        val: Lines of the list of validation.
        train: Lines of the list of training. Default: all other samples.

    Raises:
        DatasetError: A line fits no sample or several, a sample is in both lists, or a part is
            empty.
    """
    lookup: dict[str, set[int]] = {}
    for i, name in enumerate(names):
        parts = PurePosixPath(name).parts
        for start in range(len(parts)):
            tail = PurePosixPath(*parts[start:])
            for key in {tail.as_posix(), tail.with_suffix("").as_posix()}:
                lookup.setdefault(key, set()).add(i)
    val_ids = _listed(val, lookup, "validation")
    train_ids = (
        set(range(len(names))) - val_ids if train is None else _listed(train, lookup, "training")
    )
    both = sorted(names[i] for i in val_ids & train_ids)
    if both:
        raise DatasetError(f"{len(both)} samples are in both lists, the first is {both[0]}")
    if not val_ids or not train_ids:
        raise DatasetError(
            f"the lists leave no samples for {'training' if val_ids else 'validation'}"
        )
    return sorted(train_ids), sorted(val_ids)


def read_names(file: str | Path) -> list[str]:
    """The names of a list, one per line; empty lines and lines with # are skipped.

    Raises:
        DatasetError: The file cannot be read.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read as a list of names: {error}") from None
    stripped = (line.strip().replace("\\", "/") for line in lines)
    return [line for line in stripped if line and line[0] != "#"]


def group_samples(names: Sequence[str], by: str) -> list[str]:
    r"""The group of each sample.

    Args:
        names: Names of the samples, with their folders.
        by: "folder", or a regular expression; its first group, or all that it matches, is the
            group: ``patient(\d+)``.

    Raises:
        DatasetError: The expression is wrong, or does not match a name.
    """
    if by == "folder":
        return [PurePosixPath(name).parent.as_posix() for name in names]
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise DatasetError(f"{by!r} is not a regular expression: {error}") from None
    groups = []
    for name in names:
        match = pattern.search(name)
        if match is None:
            raise DatasetError(f"the expression {by!r} does not match the sample {name}")
        groups.append(match[1] or "" if pattern.groups else match[0])
    return groups


def _listed(lines: Iterable[str], lookup: dict[str, set[int]], part: str) -> set[int]:
    found: set[int] = set()
    for line in lines:
        parts = PurePosixPath(line.replace("\\", "/").removeprefix("./")).parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        ids = next((lookup[tail] for tail in tails if tail in lookup), set())
        if not ids:
            raise DatasetError(f"the list of {part} names {line!r}, but there is no such sample")
        if len(ids) > 1:
            raise DatasetError(
                f"the list of {part} names {line!r}, which fits {len(ids)} samples; write more of "
                "the path"
            )
        found |= ids
    return found


def _parts(part: NDArray[np.int64], val: int, what: str) -> Parts:
    train_ids, val_ids = np.flatnonzero(part != val), np.flatnonzero(part == val)
    if not len(train_ids) or not len(val_ids):
        raise DatasetError(
            f"{what} leaves no samples for {'training' if len(val_ids) else 'validation'}; there "
            "are too few samples or groups"
        )
    return train_ids.tolist(), val_ids.tolist()


def _divide(
    names: Sequence[str],
    fractions: Sequence[float],
    present: NDArray[np.bool_] | None,
    groups: Sequence[str] | None,
    seed: int,
) -> NDArray[np.int64]:
    """Part of each sample, by iterative stratification (Sechidis et al., ECML 2011) of groups.

    The class with the fewest undivided units comes first; each of its units goes to the part that
    still lacks most of this class, then to the one that lacks most samples.
    """
    if not names:
        raise DatasetError("there are no samples to divide")
    keys = list(names) if groups is None else list(groups)
    members: dict[str, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        members.setdefault(keys[i], []).append(i)
    units = sorted(members)
    random.Random(seed).shuffle(units)
    sizes = np.array([len(members[unit]) for unit in units])
    counts = np.zeros((len(units), 0))
    if present is not None:
        counts = np.stack([present[members[unit]].sum(0) for unit in units]).astype(np.float64)
    of_part = np.asarray(fractions)[:, None]
    wanted_classes = of_part * counts.sum(0)  # (parts, K)
    wanted_samples = of_part[:, 0] * len(names)
    part_of_unit = np.full(len(units), -1)

    def assign(unit: int, lack: NDArray[np.float64]) -> None:
        best = np.lexsort((-wanted_samples, -lack))[0]
        part_of_unit[unit] = best
        wanted_classes[best] -= counts[unit]
        wanted_samples[best] -= sizes[unit]

    while True:
        open_units = part_of_unit < 0
        occurrences = (counts[open_units] > 0).sum(0)
        if not occurrences.any():
            break
        rarest = int(np.argmin(np.where(occurrences > 0, occurrences, len(units) + 1)))
        of_class = np.flatnonzero(open_units & (counts[:, rarest] > 0))
        for unit in of_class[np.argsort(-counts[of_class, rarest], kind="stable")]:
            assign(int(unit), wanted_classes[:, rarest])
    rest = np.flatnonzero(part_of_unit < 0)
    for unit in rest[np.argsort(-sizes[rest], kind="stable")]:
        assign(int(unit), wanted_samples)
    part = np.zeros(len(names), np.int64)
    for unit, name in enumerate(units):
        part[members[name]] = part_of_unit[unit]
    return part
