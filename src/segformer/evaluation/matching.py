"""Match the classes of a model with the classes of a data set."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet

logger = logging.getLogger(__name__)

MatchClasses: TypeAlias = Literal["name", "position"]

_NUMBERED = re.compile(r"(?:(?:class|label)[ _]?)?(\d+)", re.IGNORECASE)
"""Names that only repeat the class id, such as "class 3" and "LABEL_3"."""

_SHOWN = 12
"""Class names that an error message lists at most."""


class ClassesDiffer(ValueError):
    """A model and a data set have different classes; the message lists both."""


@dataclass(frozen=True)
class ClassMatch:
    """Classes that predictions and masks have in common.

    Attributes:
        classes: How to read the masks, and the classes that are scored.
        ids: (K,) for each class id of the model, the class id in ``classes``; None if the ids are
            the same.
    """

    classes: ClassSet
    ids: NDArray[np.int64] | None = None

    def map_ids(self, class_ids: NDArray[np.integer]) -> NDArray[np.integer]:
        """Class ids of the model, any shape -> class ids in ``classes``, same shape."""
        return class_ids if self.ids is None else self.ids[class_ids]


def match_classes(
    dataset: ClassSet,
    model: ClassSet,
    by: MatchClasses = "name",
    *,
    reduce_labels: bool = False,
) -> ClassMatch:
    """Find the class of the data set for each class of the model.

    Names are compared without regard to case and extra white space. If the data set or the model
    has only placeholder names ("class 0", "LABEL_0"), classes are compared by position, which is
    logged.

    Args:
        dataset: Classes of the data set.
        model: Classes of the model.
        by: "name", or "position" to take equal class ids for equal classes.
        reduce_labels: The model was trained with mask value 0 ignored and the other values shifted
            down by 1. If the data set still has that class 0, it is dropped in the same way.

    Raises:
        ClassesDiffer: A class has no counterpart, or it cannot be decided which one.
        ValueError: ``by`` is neither "name" nor "position".
    """
    if by not in ("name", "position"):
        raise ValueError(f"match_classes must be 'name' or 'position', not {by!r}")
    if reduce_labels:
        dataset = _reduce(dataset, model, by)
    if dataset.names == model.names:
        return ClassMatch(dataset)
    if by == "position" or has_placeholder_names(dataset) or has_placeholder_names(model):
        if len(dataset) != len(model):
            raise ClassesDiffer(_difference(dataset, model))
        if by == "name":
            logger.info(
                "the %s has no class names; classes are matched by position",
                "data set" if has_placeholder_names(dataset) else "model",
            )
        return ClassMatch(_named_by(dataset, model))
    for ours, theirs in (
        (dataset.names, model.names),
        (_folded(dataset.names), _folded(model.names)),
    ):
        if len(set(ours)) == len(ours) == len(theirs) and set(ours) == set(theirs):
            ids = np.array([ours.index(name) for name in theirs], np.int64)
            return ClassMatch(dataset, None if (ids == np.arange(len(ids))).all() else ids)
    raise ClassesDiffer(_difference(dataset, model))


def has_placeholder_names(classes: ClassSet) -> bool:
    """Whether names only count the classes; class 0 may be called background."""
    if classes.names == ClassSet.numbered(1).names:
        return True
    for i, name in enumerate(classes.names):
        number = _NUMBERED.fullmatch(name.strip())
        if not (number and int(number[1]) == i) and not (i == 0 and name == "background"):
            return False
    return True


def _reduce(dataset: ClassSet, model: ClassSet, by: MatchClasses) -> ClassSet:
    """The data set's classes without class 0, if it has one more class than the model."""
    placeholders = has_placeholder_names(dataset)
    if len(dataset) == len(model) + 1:
        same = set(_folded(dataset.names[1:])) == set(_folded(model.names))
        if same or by == "position" or placeholders or has_placeholder_names(model):
            logger.info(
                "the model was trained with reduced labels: mask value 0 (%s) is ignored, the "
                "other values are shifted down by 1",
                dataset.names[0],
            )
            reduced = _without_class_0(dataset)
            return replace(reduced, names=model.names) if placeholders else reduced
    elif (
        len(dataset) == len(model)
        and by == "name"
        and placeholders
        and dataset.names != model.names
    ):
        raise ClassesDiffer(
            "the model was trained with reduced labels (mask value 0 ignored, the others shifted "
            f"down by 1). This data set has {len(dataset)} classes without names, so its masks may "
            "or may not be shifted already. Name the classes in dataset.yaml, with a label_mapping "
            'if 0 means "not labeled"; or, if the values are the class ids of the model, match by '
            "position (--match-classes position)"
        )
    return dataset


def _without_class_0(classes: ClassSet) -> ClassSet:
    """Masks whose class 0 is ignored and whose other classes are shifted down by 1."""
    shifted = {class_id: class_id - 1 for class_id in range(1, len(classes))}
    mapping = {value: shifted.get(value, classes.ignore_index) for value in range(len(classes))}
    for value, class_id in classes.mapping.items():
        mapping[value] = shifted.get(class_id, classes.ignore_index)
    return replace(classes, names=classes.names[1:], palette=classes.palette[1:], mapping=mapping)


def _named_by(dataset: ClassSet, model: ClassSet) -> ClassSet:
    """The data set's classes, with the model's names if it has none of its own."""
    if has_placeholder_names(dataset) and not has_placeholder_names(model):
        return replace(dataset, names=model.names)
    return dataset


def _folded(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(name.split()).casefold() for name in names)


def _difference(dataset: ClassSet, model: ClassSet) -> str:
    """The message for classes that cannot be matched."""
    ours, theirs = _folded(dataset.names), _folded(model.names)
    missing = [
        name for name, key in zip(dataset.names, ours, strict=True) if key not in set(theirs)
    ]
    extra = [name for name, key in zip(model.names, theirs, strict=True) if key not in set(ours)]
    parts = [
        f"the data set has {len(dataset)} classes ({_listed(dataset.names)}), "
        f"the model has {len(model)} ({_listed(model.names)})"
    ]
    if missing and len(missing) < len(dataset):
        parts.append(f"the model lacks: {_listed(missing)}")
    if extra and len(extra) < len(model):
        parts.append(f"the data set lacks: {_listed(extra)}")
    if len(dataset) == len(model):
        parts.append(
            "if class ids mean the same in both, match by position (--match-classes position)"
        )
    else:
        parts.append("a score needs the same classes on both sides")
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
