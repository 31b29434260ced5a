"""The report of a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from segformer.evaluation.examples import make_example
from segformer.evaluation.report.charts import reliability_chart
from segformer.evaluation.report.confusions import most_confused, show_confusions
from segformer.evaluation.report.curves import Curves
from segformer.evaluation.report.page import percent, render
from segformer.evaluation.report.panels import Panel, image_panel
from segformer.evaluation.report.segmentation import flat, report_title
from segformer.image import UnreadableImage, read_image

if TYPE_CHECKING:
    from segformer.evaluation.classify import ClassResult, ClassScores

_SHOWN = 12
"""Images with the most confident errors that are shown."""


def classification_page(
    scores: ClassScores, about: Mapping[str, object], curves: Curves | None = None
) -> str:
    """The report as HTML.

    Args:
        scores: The result of `segformer.evaluation.classify.evaluate_classes`.
        about: What was evaluated and how: model, dataset, split and more.
        curves: Of the training, if it is the report of one.
    """
    matrix = scores.matrix
    accuracy, counts = matrix.scores().accuracy, matrix.counts.sum(1)
    confused = most_confused(matrix)
    wrong = [result for result in scores.results if result.truth != result.predicted]
    wrong.sort(key=lambda result: result.true_probability - result.confidence)
    return render(
        "classification.html",
        title=report_title(about),
        about=flat(about),
        scores=scores,
        rows=[
            {"name": name, "accuracy": accuracy[i], "images": counts[i], "confused": confused[i]}
            for i, name in enumerate(matrix.classes.names)
        ],
        curves=curves.charts() if curves is not None else [],
        confusions=show_confusions(matrix, "images"),
        unit="images",
        errors=list(_panels(wrong, scores)),
        calibration=scores.calibration,
        reliability=reliability_chart(scores.calibration),
        speed=scores.speed,
        failed=scores.failed,
    )


def _panels(wrong: Iterable[ClassResult], scores: ClassScores) -> Iterable[Panel]:
    """The first images, with what was predicted; files that have become unreadable are skipped."""
    names, shown = scores.matrix.classes.names, 0
    for result in wrong:
        if shown == _SHOWN:
            return
        try:
            image = read_image(result.path, scores.channels, as_8_bit=False)
        except UnreadableImage:
            continue
        nothing = np.zeros(image.shape[:2], np.uint8)
        small = make_example("", 0.0, image, nothing).image
        shown += 1
        yield image_panel(
            f"{names[result.truth]}, predicted as {names[result.predicted]} "
            f"({percent(result.confidence, 0)})",
            small,
        )
