"""Scores of single images, from counts that are stored only for the classes of each image."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.evaluation.metrics import ConfusionMatrix, as_json
from segformer.files import whole_file


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image, from 0 to 1; NaN if none of its pixels is labeled.

    Attributes:
        name: Name of the image.
        miou: Mean IoU over the classes that occur in its mask or in its prediction.
        pixel_accuracy: Fraction of its labeled pixels that are right.
        worst_class: Id of the class with the lowest IoU; of several, that with the most pixels.
            None if no pixel is labeled.
        worst_iou: IoU of this class.
        labeled: Number of labeled pixels.
    """

    name: str
    miou: float
    pixel_accuracy: float
    worst_class: int | None
    worst_iou: float
    labeled: int


@dataclass
class ImageCounts:
    """Pixels of each image, by class.

    Only the classes of an image's mask and prediction are stored: of 10,000 images with ten
    classes each a few MB, whatever the number of classes.

    Attributes:
        names: Names of the images.
        entries: For each image (n, 4) int64: class id, intersection, pixels of the mask, pixels of
            the prediction. Ignored pixels are not counted.
    """

    names: list[str] = field(default_factory=list)
    entries: list[NDArray[np.int64]] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str, matrix: ConfusionMatrix) -> ImageScores:
        """Add an image by its confusion matrix; returns its scores."""
        hits, true, predicted = np.diag(matrix.counts), matrix.counts.sum(1), matrix.counts.sum(0)
        ids = np.flatnonzero(true + predicted)
        self.names.append(name)
        self.entries.append(np.stack([ids, hits[ids], true[ids], predicted[ids]], axis=1))
        return self.scores(len(self) - 1)

    def merge(self, other: ImageCounts) -> None:
        """Add the images of another evaluation, such as that of another process."""
        self.names += other.names
        self.entries += other.entries

    def scores(self, index: int) -> ImageScores:
        """Scores of an image."""
        ids, hits, true, predicted = self.entries[index].T
        name, labeled = self.names[index], int(true.sum())
        if not labeled:
            return ImageScores(name, float("nan"), float("nan"), None, float("nan"), 0)
        union = true + predicted - hits
        iou = hits / union
        worst = np.lexsort((-union, iou))[0]
        return ImageScores(
            name=name,
            miou=float(iou.mean()),
            pixel_accuracy=float(hits.sum() / labeled),
            worst_class=int(ids[worst]),
            worst_iou=float(iou[worst]),
            labeled=labeled,
        )

    def __iter__(self) -> Iterator[ImageScores]:
        return (self.scores(index) for index in range(len(self)))

    def images_of_class(self, classes: int) -> NDArray[np.int64]:
        """(K,) number of images whose mask has the class, for each of K ``classes``."""
        count = np.zeros(classes, np.int64)
        for entry in self.entries:
            count[entry[entry[:, 2] > 0, 0]] += 1
        return count

    def dense(self, start: int, stop: int, classes: int) -> NDArray[np.float64]:
        """Intersections and unions (2, n, K) of some of the images, for K ``classes``."""
        sums = np.zeros((2, len(self.entries[start:stop]), classes))
        for row, entry in enumerate(self.entries[start:stop]):
            ids, hits, true, predicted = entry.T
            sums[0, row, ids] = hits
            sums[1, row, ids] = true + predicted - hits
        return sums

    def totals(self, classes: int) -> NDArray[np.float64]:
        """Intersections and unions (2, K) of all images, for K ``classes``."""
        sums = np.zeros((2, classes))
        for entry in self.entries:
            ids, hits, true, predicted = entry.T
            sums[0, ids] += hits
            sums[1, ids] += true + predicted - hits
        return sums

    def only(self, names: Collection[str]) -> ImageCounts:
        """The images with these names, in the order in which they were added."""
        kept = [i for i, name in enumerate(self.names) if name in names]
        return ImageCounts([self.names[i] for i in kept], [self.entries[i] for i in kept])

    def write(self, path: str | Path, classes: ClassSet) -> None:
        """Write a CSV file with a row for each image, in the order in which they were added."""
        columns = "image miou pixel_accuracy worst_class worst_class_iou labeled_pixels".split()
        rows = (
            (
                scores.name,
                as_json(scores.miou),
                as_json(scores.pixel_accuracy),
                "" if scores.worst_class is None else classes.names[scores.worst_class],
                as_json(scores.worst_iou),
                scores.labeled,
            )
            for scores in self
        )
        write_csv(path, columns, rows)


def write_csv(path: str | Path, columns: list[str], rows: Iterator[tuple[object, ...]]) -> None:
    """Write a CSV file, whole or not at all; None is an empty cell."""
    with (
        whole_file(path) as partial,
        # File names that are not valid UTF-8 are written with their bytes escaped
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
