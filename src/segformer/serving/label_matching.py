"""The labels of an annotation project, matched with the classes of a model by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from segformer.classes import ClassSet

_SHOWN = 40
"""Names that a message lists at most."""


class LabelsDiffer(ValueError):
    """A project has labels that the model does not know; the message lists both sides."""


def match_labels(
    labels: Iterable[str],
    classes: ClassSet,
    *,
    predicted: Mapping[str, Iterable[str]] | None = None,
    how: str = "",
) -> dict[int, str]:
    """The label of each class that has one.

    Names are compared without regard to case and extra white space. A model may have classes that
    the project does not: they are not annotated.

    Args:
        labels: Of the project.
        classes: Of the model.
        predicted: Label -> names of the classes that it stands for, where the project says so;
            none for labels that the model is not to predict.
        how: How the project can say so, for the message.

    Returns:
        Class id -> label.

    Raises:
        LabelsDiffer: A label has no class, two labels have the same, or there are no labels.
    """
    ids = {_fold(name): i for i, name in enumerate(classes.names)}
    found: list[tuple[int, str]] = []
    unknown = []
    given = list(labels)
    for label in given:
        names = (label,) if predicted is None or label not in predicted else predicted[label]
        for name in names:
            if _fold(name) in ids:
                found.append((ids[_fold(name)], label))
            else:
                unknown.append(name)
    twice = [classes.names[i] for i, count in Counter(i for i, _ in found).items() if count > 1]
    if found and not unknown and not twice:
        return dict(found)
    if unknown:
        problem = f"the model has no class {_listed(unknown)}"
    elif twice:
        problem = f"several labels stand for the class {_listed(twice)}"
    else:
        problem = "no label of the project is a class of the model"
    raise LabelsDiffer(
        f"{problem}; labels of the project: {_listed(given) or 'none'}; classes of the model: "
        f"{_listed(classes.names)}; rename the labels{how}"
    )


def _fold(name: str) -> str:
    return " ".join(name.casefold().split())


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(repr(name) for name in shown[:_SHOWN]) + more
