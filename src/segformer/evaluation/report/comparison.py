"""The report of a comparison of two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from segformer.evaluation.report.charts import interval_chart
from segformer.evaluation.report.page import percent, render
from segformer.evaluation.report.panels import color_of, example_row
from segformer.evaluation.report.segmentation import flat

if TYPE_CHECKING:
    from segformer.evaluation.compare import Comparison


def comparison_page(comparison: Comparison, about: Mapping[str, object]) -> str:
    """The comparison as HTML.

    Args:
        comparison: The comparison.
        about: What was compared and how.
    """
    classes, ends = comparison.classes, comparison.difference_interval
    images = comparison.images[0].images_of_class(len(classes))
    by_name = [{scores.name: scores.miou for scores in counts} for counts in comparison.images]
    rows = [
        {
            "color": color_of(classes, i),
            "name": name,
            "first": comparison.iou[0, i],
            "second": comparison.iou[1, i],
            "difference": comparison.difference[i],
            "low": ends.low[i],
            "high": ends.high[i],
            "certain": ends.excludes_zero[i],
            "images": images[i],
        }
        for i, name in enumerate(classes.names)
    ]
    examples = [
        example_row(
            example,
            classes,
            f"{percent(example.score)} of the pixels differ; mIoU of A "
            f"{percent(by_name[0][example.name])}, of B {percent(by_name[1][example.name])}",
            ("A", "B"),
        )
        for example in comparison.examples
    ]
    agreement = comparison.total_agreement
    total = max(1, sum(agreement.counts))
    return render(
        "comparison.html",
        title=f"{comparison.names[0]} and {comparison.names[1]}",
        about=flat(about),
        comparison=comparison,
        certain=bool(comparison.miou_interval.excludes_zero),
        low=float(comparison.miou_interval.low),
        high=float(comparison.miou_interval.high),
        rows=rows,
        chart=interval_chart(
            classes.names,
            comparison.difference,
            ends.low,
            ends.high,
            "IoU of B minus IoU of A, percentage points",
        ),
        agreement=[
            (words, count / total)
            for words, count in zip(
                (
                    "both are right",
                    "only A is right",
                    "only B is right",
                    "both are wrong, with the same class",
                    "both are wrong, with different classes",
                ),
                agreement.counts,
                strict=True,
            )
        ],
        disagreement=agreement.disagreement,
        examples=examples,
        failed=comparison.failed,
    )
