"""What a report shows of a confusion matrix: a chart and the most frequent confusions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.report.charts import confusion_chart

_MOST_CLASSES = 200
"""Classes of a chart. Of more, only those that are confused the most are shown."""

_SHOWN_CLASSES = 60
_SHOWN_PAIRS = 15


@dataclass(frozen=True)
class Confusion:
    """A class that is taken for another.

    Attributes:
        true: Name of the true class.
        predicted: Name of the predicted class.
        of_true: Fraction of the true class.
        of_errors: Fraction of all errors.
    """

    true: str
    predicted: str
    of_true: float
    of_errors: float


@dataclass(frozen=True)
class Confusions:
    """A confusion matrix as a report shows it.

    Attributes:
        chart: The matrix.
        frequent: The most frequent confusions, by number of pixels or images.
        classes: Number of classes in the chart.
        total: Number of all classes.
    """

    chart: Markup
    frequent: tuple[Confusion, ...]
    classes: int
    total: int


def show_confusions(matrix: ConfusionMatrix, unit: str) -> Confusions:
    """A confusion matrix for a report; ``unit`` is what was counted, such as "pixels"."""
    counts, names = matrix.counts, matrix.classes.names
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    ids = np.arange(len(names))
    if len(names) > _MOST_CLASSES:
        wrong = errors.sum(0) + errors.sum(1)
        ids = np.sort(np.argsort(-wrong, kind="stable")[:_SHOWN_CLASSES])
    percents = 100 * of_true(counts)[np.ix_(ids, ids)]
    order = np.argsort(-errors, axis=None, kind="stable")[:_SHOWN_PAIRS]
    pairs = [divmod(int(place), len(names)) for place in order]
    fractions = of_true(counts)
    return Confusions(
        chart=confusion_chart(percents, [names[i] for i in ids], unit),
        frequent=tuple(
            Confusion(
                names[i], names[j], float(fractions[i, j]), float(errors[i, j] / errors.sum())
            )
            for i, j in pairs
            if errors[i, j]
        ),
        classes=len(ids),
        total=len(names),
    )


def most_confused(matrix: ConfusionMatrix) -> list[tuple[str, float] | None]:
    """For each class the class it is most often taken for, and how much of it; None if never."""
    fractions = of_true(matrix.counts)
    np.fill_diagonal(fractions, 0)
    found: list[tuple[str, float] | None] = []
    for row in np.nan_to_num(fractions):
        j = int(row.argmax())
        found.append((matrix.classes.names[j], float(row[j])) if row[j] > 0 else None)
    return found


def of_true(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, K) counts as fractions of each true class; NaN in the rows of absent classes."""
    rows = counts.sum(1, keepdims=True)
    unknown = np.full(counts.shape, np.nan)
    return np.divide(counts, rows, out=unknown, where=rows > 0)
