"""Statistics of a data set as a dictionary for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segformer.data.check import SplitReport


def statistics(reports: Sequence[SplitReport]) -> dict[str, Any]:
    """Channels, sizes, class frequencies and co-occurrence of each split.

    Args:
        reports: What `segformer.data.check.check_split` found in each split.

    Returns:
        ``source``, ``read_as``, ``classes`` and ``splits``. Means and deviations are in stored
        units; for 8-bit images ``mean_of_1`` and ``std_of_1`` are those of values from 0 to 1.
        ``cooccurrence[i][j]`` is the number of images in which the classes i and j both occur.
    """
    first = reports[0].dataset
    return {
        "source": str(first.root.resolve()),
        "read_as": first.taken_for,
        "classes": list(first.classes.names),
        "splits": {report.dataset.split: _of_split(report) for report in reports},
    }


def _of_split(report: SplitReport) -> dict[str, Any]:
    total = report.labeled + report.ignored
    sizes = sorted(report.sizes.items(), key=lambda item: (-item[1], item[0]))
    classes = zip(
        report.dataset.classes.names,
        report.pixels.tolist(),
        report.frequencies.tolist(),
        report.images.tolist(),
        strict=True,
    )
    return {
        "images": len(report.dataset),
        "skipped": [message for _, message in report.failures],
        "types": sorted(report.dtypes),
        "channels": _channels(report),
        "sizes": [{"width": w, "height": h, "images": count} for (h, w), count in sizes],
        "not_labeled": report.ignored / max(total, 1),
        "class_frequencies": [
            {"id": i, "name": name, "pixels": pixels, "fraction": fraction, "images": images}
            for i, (name, pixels, fraction, images) in enumerate(classes)
        ],
        "cooccurrence": report.cooccurrence.tolist(),
    }


def _channels(report: SplitReport) -> dict[str, list[float]]:
    if report.sums is None:
        return {}
    mean, std = report.mean_and_std
    channels = {"mean": list(mean), "std": list(std)}
    if report.dtypes == {"uint8"}:
        channels["mean_of_1"] = [value / 255 for value in mean]
        channels["std_of_1"] = [value / 255 for value in std]
    return channels
