"""The report of a segmentation model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from segformer.evaluation.details import Details
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.report.charts import reliability_chart
from segformer.evaluation.report.confusions import most_confused, show_confusions
from segformer.evaluation.report.curves import Curves
from segformer.evaluation.report.page import percent, render
from segformer.evaluation.report.panels import color_of, example_row

if TYPE_CHECKING:
    from segformer.evaluation.evaluate import Failure


def segmentation_page(
    matrix: ConfusionMatrix,
    details: Details,
    about: Mapping[str, object],
    failed: Sequence[Failure] = (),
    curves: Curves | None = None,
) -> str:
    """The report as HTML.

    Args:
        matrix: Counts of pixels.
        details: What else was collected.
        about: What was evaluated and how: model, dataset, split and more.
        failed: Images that were skipped.
        curves: Of the training, if it is the report of one.
    """
    scores, classes = matrix.scores(), matrix.classes
    images, confused = details.images.images_of_class(len(classes)), most_confused(matrix)
    rows = [
        {
            "color": color_of(classes, i),
            "name": name,
            "iou": scores.iou[i],
            "accuracy": scores.accuracy[i],
            "dice": scores.dice[i],
            "fraction": scores.class_fractions[i],
            "images": images[i],
            "confused": confused[i],
        }
        for i, name in enumerate(classes.names)
    ]
    worst, best = (
        [
            example_row(example, classes, f"mIoU {percent(example.score)}", ["prediction"])
            for example in examples
        ]
        for examples in details.examples.divided()
    )
    return render(
        "segmentation.html",
        title=report_title(about),
        about=flat(about),
        scores=scores,
        rows=rows,
        curves=curves.charts() if curves is not None else [],
        confusions=show_confusions(matrix, "pixels"),
        unit="pixels",
        worst=worst,
        best=best,
        calibration=details.calibration,
        reliability=reliability_chart(details.calibration),
        speed=details.speed,
        images=len(details.images),
        failed=failed,
    )


def report_title(about: Mapping[str, object]) -> str:
    """What was evaluated on what."""
    return f"{about.get('model', 'model')} on {about.get('dataset', 'data set')}"


def flat(about: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values for a table; those of inner mappings follow the name of the mapping."""
    found: list[tuple[str, str]] = []
    for name, value in about.items():
        inner: Any = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        if isinstance(inner, Mapping):
            found += flat(inner, f"{prefix}{name}.")
        elif inner is not None:
            found.append((f"{prefix}{name}", str(inner)))
    return found
