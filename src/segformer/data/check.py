"""What is wrong with a data set, before a GPU finds out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segformer.data.dataset import Dataset, DatasetError, Sample
from segformer.image import ImageArray


@dataclass
class SplitReport:
    """What reading every file of a split found.

    Attributes:
        dataset: The split.
        errors: Sentences; any of them would stop a training.
        warnings: Sentences worth reading.
        pixels: (K,) labeled pixels of each class.
        images: (K,) images in which each class occurs.
        ignored: Pixels not labeled.
        sizes: How many images have each (height, width).
        dtypes: Types in which the images are stored.
        sums: For each image (3, channels): count, sum and sum of squares of its finite values.
    """

    dataset: Dataset
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pixels: NDArray[np.int64] = field(init=False)
    images: NDArray[np.int64] = field(init=False)
    ignored: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dtypes: set[str] = field(default_factory=set)
    sums: list[NDArray[np.float64]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.dataset.classes), np.int64)
        self.images = np.zeros(len(self.dataset.classes), np.int64)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """(K,) fraction of the labeled pixels."""
        return self.pixels / max(int(self.pixels.sum()), 1)

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel, in stored units."""
        count, total, squares = np.sum(self.sums, axis=0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
        return tuple(mean.tolist()), tuple(std.tolist())

    def raise_errors(self) -> None:
        """Raise a DatasetError with the same sentences, if there are any."""
        if self.errors:
            shown = "\n  ".join(self.errors[:20])
            more = f"\n  and {len(self.errors) - 20} more" if len(self.errors) > 20 else ""
            where = f"{self.dataset.root}: split {self.dataset.split!r}"
            raise DatasetError(f"{where} cannot be used:\n  {shown}{more}")


def check_split(dataset: Dataset, on_sample: Callable[[], None] | None = None) -> SplitReport:
    """Read every image and mask of a split once.

    Args:
        dataset: The split.
        on_sample: Called after each pair.
    """
    report = SplitReport(dataset)
    with ThreadPoolExecutor() as pool:
        for found in pool.map(lambda sample: _examine(dataset, sample), dataset.samples):
            _add(report, found)
            if on_sample is not None:
                on_sample()
    report.warnings += [f"{mask}: no image belongs to this mask" for mask in dataset.stray_masks]
    for name, count in zip(dataset.classes.names, report.pixels, strict=True):
        if count == 0:
            report.warnings.append(f"class {name!r} never occurs in split {dataset.split!r}")
    if not report.pixels.any() and not report.errors:
        report.errors.append("no pixel of any mask is labeled")
    return report


@dataclass(frozen=True)
class _Found:
    """What one pair holds."""

    size: tuple[int, int]
    counts: NDArray[np.int64]
    ignored: int
    dtype: str
    sums: NDArray[np.float64]


def _examine(dataset: Dataset, sample: Sample) -> _Found | str:
    """What a pair holds, or the sentence that says what is wrong with it."""
    classes = dataset.classes
    try:
        image, class_ids = dataset.read(sample)
    except ValueError as error:
        return str(error)
    ignored = class_ids == classes.ignore_index
    height, width = class_ids.shape
    return _Found(
        size=(height, width),
        counts=np.bincount(class_ids[~ignored].astype(np.int64), minlength=len(classes)),
        ignored=int(ignored.sum()),
        dtype=str(image.dtype),
        sums=_sums(image),
    )


def _sums(image: ImageArray) -> NDArray[np.float64]:
    """(3, channels): count, sum and sum of squares of the values that are finite."""
    values = image.reshape(-1, image.shape[2])
    if values.dtype.kind == "f":
        values = values[np.isfinite(values).all(1)]
    values = values.astype(np.float32 if values.dtype == np.uint8 else np.float64)
    total = values.sum(0, dtype=np.float64)
    squares = np.square(values).sum(0, dtype=np.float64)
    return np.stack([np.full_like(total, len(values)), total, squares])


def _add(report: SplitReport, found: _Found | str) -> None:
    if isinstance(found, str):
        report.errors.append(found)
        return
    report.pixels += found.counts
    report.images += found.counts > 0
    report.ignored += found.ignored
    report.sizes[found.size] += 1
    report.dtypes.add(found.dtype)
    report.sums.append(found.sums)
