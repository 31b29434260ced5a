"""Show and write a comparison of two models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from segformer.data.dataset import Dataset
from segformer.evaluation.compare import Comparison
from segformer.evaluation.metrics import as_json
from segformer.evaluation.per_image import write_csv
from segformer.evaluation.report.comparison import comparison_page
from segformer.files import write_json, write_text

COMPARISON_FILES = ("comparison.json", "comparison.html", "comparison.csv")
"""Files that a comparison consists of."""


def comparison_table(comparison: Comparison) -> Table:
    """IoU per class of both models and the difference, for a terminal."""
    low, high = comparison.miou_interval.low, comparison.miou_interval.high
    first, second = comparison.miou
    title = (
        f"mIoU {_percent(first)} and {_percent(second)}: {_points(comparison.miou_difference)} "
        f"points, 95 % interval {_points(float(low))} to {_points(float(high))}"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("class")
    for column in ("IoU A", "IoU B", "B - A", "95 % interval", "images"):
        table.add_column(column, justify="right")
    ends, images = comparison.difference_interval, _images_of_class(comparison)
    for i, name in enumerate(comparison.classes.names):
        between = f"{_points(ends.low[i])} to {_points(ends.high[i])}"
        table.add_row(
            name,
            *(_percent(iou) for iou in comparison.iou[:, i]),
            _points(comparison.difference[i]),
            "-" if math.isnan(ends.low[i]) else between,
            str(images[i]),
            style="bold" if ends.excludes_zero[i] else None,
        )
    agreement = comparison.total_agreement
    table.caption = (
        f"A: {comparison.names[0]}\nB: {comparison.names[1]}\n"
        f"different classes at {_percent(agreement.disagreement)} of the pixels; "
        "bold: the interval excludes 0"
    )
    table.caption_justify = "left"
    return table


def write_comparison(
    comparison: Comparison, folder: str | Path, dataset: Dataset, protocol: Mapping[str, object]
) -> list[Path]:
    """Write ``comparison.json``, ``comparison.html`` and ``comparison.csv``, a row for each image.

    Args:
        comparison: The result of `segformer.evaluation.compare.compare`.
        folder: Created if it does not exist. Files of these names in it are replaced.
        dataset: The data set that was evaluated.
        protocol: Further entries: how the models saw the images.

    Returns:
        The files.
    """
    folder = Path(folder)
    ends, images = comparison.difference_interval, _images_of_class(comparison)
    about = {
        "a": comparison.names[0],
        "b": comparison.names[1],
        "dataset": str(dataset.root),
        "split": dataset.split,
        **protocol,
        "resamples": comparison.resamples,
        "seed": comparison.seed,
    }
    entries: dict[str, Any] = {
        **about,
        "images": len(comparison.images[0]),
        "failed": [asdict(failure) for failure in comparison.failed],
        "miou": [as_json(value) for value in comparison.miou],
        "miou_difference": as_json(comparison.miou_difference),
        "miou_interval": [
            as_json(float(comparison.miou_interval.low)),
            as_json(float(comparison.miou_interval.high)),
        ],
        "agreement": {
            **asdict(comparison.total_agreement),
            "disagreement": as_json(comparison.total_agreement.disagreement),
        },
        "classes": {
            name: {
                "iou": [as_json(value) for value in comparison.iou[:, i]],
                "difference": as_json(comparison.difference[i]),
                "interval": [as_json(ends.low[i]), as_json(ends.high[i])],
                "images": int(images[i]),
            }
            for i, name in enumerate(comparison.classes.names)
        },
    }
    paths = [folder / name for name in COMPARISON_FILES]
    report, page, per_image = paths
    write_json(report, entries)
    write_text(page, comparison_page(comparison, about))
    columns = "image miou_a miou_b pixel_accuracy_a pixel_accuracy_b disagreement".split()
    rows = (
        (
            first.name,
            *map(as_json, (first.miou, second.miou, first.pixel_accuracy, second.pixel_accuracy)),
            as_json(agreement.disagreement),
        )
        for first, second, agreement in zip(*comparison.images, comparison.agreement, strict=True)
    )
    write_csv(per_image, columns, rows)
    return paths


def _images_of_class(comparison: Comparison) -> Any:
    return comparison.images[0].images_of_class(len(comparison.classes))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def _points(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.2f}"
