"""What is wrong with a data set, found before a training starts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segformer.data.dataset import Dataset, orientation_is_unclear
from segformer.data.errors import Color, ColoredMask, DatasetError, UnknownValues
from segformer.data.multilabel import count_pixels
from segformer.data.pairing import Sample
from segformer.data.parallel import map_ordered
from segformer.image import ImageArray, WrongChannels, missing_pixels

logger = logging.getLogger(__name__)

_LISTED = 50
"""Errors or warnings that a description lists."""

_NAMED = 10
"""Files or classes that one sentence names."""


@dataclass
class SplitReport:
    """What reading every file of a split found.

    Attributes:
        dataset: The split.
        errors: Sentences; any of them would stop a training.
        warnings: Sentences worth reading.
        pixels: (K,) labeled pixels of each class.
        labeled: Number of labeled pixels; classes that overlap have more in total.
        images: (K,) number of images in which each class occurs.
        ignored: Number of unlabeled pixels.
        sizes: Number of images of each (height, width).
        dtypes: Types of the images' stored values.
        presence: Class ids in each sample, in the order of the data set; none where it cannot be
            read.
        cooccurrence: (K, K) number of images in which both classes occur.
        sums: (3, channels): count, sum and sum of squares of the pixels with data of all images,
            or None before the first image that can be read.
        failures: Samples that cannot be used, and why.
        unclear: Samples whose masks have an unclear orientation.
        colors: Pixels of each mask color that has no class.
        unknown_values: Pixels of each mask value that has no class.
        known_values: Other values of masks that hold such values.
        found_channels: Number of images of each number of channels that is not the data set's.
    """

    dataset: Dataset
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pixels: NDArray[np.int64] = field(init=False)
    images: NDArray[np.int64] = field(init=False)
    labeled: int = 0
    ignored: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dtypes: set[str] = field(default_factory=set)
    presence: list[NDArray[np.integer]] = field(default_factory=list, repr=False)
    cooccurrence: NDArray[np.int64] = field(init=False, repr=False)
    sums: NDArray[np.float64] | None = field(default=None, repr=False)
    failures: list[tuple[Sample, str]] = field(default_factory=list, repr=False)
    unclear: list[Sample] = field(default_factory=list, repr=False)
    colors: Counter[Color] = field(default_factory=Counter, repr=False)
    unknown_values: Counter[int] = field(default_factory=Counter, repr=False)
    known_values: set[int] = field(default_factory=set, repr=False)
    found_channels: Counter[int] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.dataset.classes), np.int64)
        self.images = np.zeros(len(self.dataset.classes), np.int64)
        self.cooccurrence = np.zeros((len(self.dataset.classes),) * 2, np.int64)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """(K,) fraction of the labeled pixels."""
        return self.pixels / max(self.labeled, 1)

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in stored units.

        Pixels without data do not count. The deviation of a channel of one value is 1.
        """
        assert self.sums is not None
        count, total, squares = self.sums
        mean = total / count
        variance = squares / count - mean**2
        std = np.where(variance > 1e-12 * mean**2, np.sqrt(np.maximum(variance, 0)), 1.0)
        return tuple(mean.tolist()), tuple(std.tolist())

    @property
    def complaints(self) -> list[tuple[Sample, str]]:
        """Samples that something is wrong with, and what."""
        words = "EXIF turns the image, and its mask may be drawn on the image before turning"
        return [*self.failures, *((sample, words) for sample in self.unclear)]

    def raise_errors(self) -> None:
        """Raise a DatasetError with the same sentences, if there are any."""
        if self.errors:
            shown = "\n  ".join(self.errors[:20])
            more = f"\n  and {len(self.errors) - 20} more" if len(self.errors) > 20 else ""
            where = f"{self.dataset.root}: split {self.dataset.split!r}"
            raise DatasetError(f"{where} cannot be used:\n  {shown}{more}")

    def describe(self) -> list[str]:
        """Lines to print below the table of classes: named channels, errors, warnings."""
        lines = []
        names = self.dataset.channel_names
        if names and self.sums is not None:
            rows = zip(names, *self.mean_and_std, strict=True)
            lines += [f"channel {name}: mean {mean:.6g}, std {std:.6g}" for name, mean, std in rows]
        for word, sentences in (("error", self.errors), ("warning", self.warnings)):
            lines += [f"{word}: {sentence}" for sentence in sentences[:_LISTED]]
            if len(sentences) > _LISTED:
                lines.append(f"... and {len(sentences) - _LISTED} more {word}s")
        return lines


def check_split(dataset: Dataset, on_sample: Callable[[], None] | None = None) -> SplitReport:
    """Read every image and mask of a split once.

    Args:
        dataset: The split.
        on_sample: Called after each pair.
    """
    report = SplitReport(dataset)
    if dataset.split in ("train", "val"):
        for note in dataset.notes:
            logger.info(f"{dataset.split}: {note}")
    if not dataset.has_masks and dataset.split == "test":
        report.warnings.append(
            f"split {dataset.split!r} has no masks: models can predict it, not be evaluated on it"
        )
        return report
    for found in map_ordered(lambda sample: _examine(dataset, sample), dataset.samples):
        _add(report, found)
        if found.is_unclear:
            report.unclear.append(found.sample)
        if on_sample is not None:
            on_sample()
    _conclude(report)
    return report


@dataclass
class _Found:
    """What one pair holds."""

    sample: Sample
    error: Exception | None = None
    size: tuple[int, int] = (0, 0)
    counts: NDArray[np.int64] | None = None
    ignored: int = 0
    dtype: str = ""
    sums: NDArray[np.float64] | None = None
    channels: int = 0
    is_unclear: bool = False


def _examine(dataset: Dataset, sample: Sample) -> _Found:
    """What a pair holds, or the error that reading it raised."""
    found = _Found(sample, channels=dataset.channels)
    classes = dataset.classes
    try:
        try:
            image, class_ids = dataset.read(sample)
        except WrongChannels as error:
            found.channels = error.found
            image, class_ids = dataset.with_channels(error.found).read(sample)
        found.is_unclear = orientation_is_unclear(sample, image.shape[0] == image.shape[1])
    except ValueError as error:
        found.error = error
        return found
    ignored = class_ids == classes.ignore_index
    found.size = (class_ids.shape[0], class_ids.shape[1])
    if dataset.multilabel:
        found.counts = count_pixels(class_ids, len(classes))
    else:
        found.counts = np.bincount(class_ids[~ignored].astype(np.int64), minlength=len(classes))
    found.ignored = int(ignored.sum())
    found.dtype = str(image.dtype)
    found.sums = _sums(image, dataset.nodata)
    return found


def _sums(image: ImageArray, nodata: float | None) -> NDArray[np.float64]:
    """(3, channels): count, sum and sum of squares of the pixels with data."""
    missing = missing_pixels(image, nodata)
    values = image.reshape(-1, image.shape[2])
    if missing is not None and missing.any():
        values = values[~missing.ravel()]
    if values.dtype == np.uint8:
        levels = np.arange(256, dtype=np.float64)
        counts = np.stack([np.bincount(channel, minlength=256) for channel in values.T])
        return np.stack([counts.sum(1), counts @ levels, counts @ levels**2]).astype(np.float64)
    values = values.astype(np.float64)
    total = values.sum(0)
    return np.stack([np.full_like(total, len(values)), total, np.square(values).sum(0)])


def _add(report: SplitReport, found: _Found) -> None:
    if found.channels != report.dataset.channels:
        report.found_channels[found.channels] += 1
    if isinstance(found.error, ColoredMask):
        report.colors += found.error.colors
    elif isinstance(found.error, UnknownValues):
        report.unknown_values += found.error.values
        report.known_values |= found.error.known
    present = np.flatnonzero([] if found.counts is None else found.counts)
    report.presence.append(present)
    if found.error is not None:
        report.errors.append(str(found.error))
        report.failures.append((found.sample, str(found.error)))
        return
    assert found.counts is not None
    assert found.sums is not None
    report.pixels += found.counts
    report.images[present] += 1
    report.cooccurrence[np.ix_(present, present)] += 1
    report.ignored += found.ignored
    report.labeled += found.size[0] * found.size[1] - found.ignored
    report.sizes[found.size] += 1
    report.dtypes.add(found.dtype)
    if found.channels == report.dataset.channels:
        report.sums = found.sums if report.sums is None else report.sums + found.sums


def _conclude(report: SplitReport) -> None:
    """Errors and warnings about the split as a whole."""
    dataset = report.dataset
    classes, split = dataset.classes, dataset.split
    for channels, count in report.found_channels.most_common():
        report.errors.insert(
            0,
            f"{count} images have {channels} channels, the data set is read with "
            f"{dataset.channels}; write channels: {channels} into dataset.yaml",
        )
    report.warnings += [f"{mask}: no image belongs to this mask" for mask in dataset.stray_masks]
    report.warnings += dataset.problems
    if report.unclear:
        unclear = _first([sample.name for sample in report.unclear])
        report.warnings.append(
            f"{unclear}: EXIF turns the image, and the size of its mask cannot tell "
            "whether the mask is drawn on the turned image; it is taken to be, as annotation "
            "tools do"
        )
    if report.sums is not None and not report.sums[0].any():
        report.errors.append("no pixel of any image has data in all channels")
    if len(report.dtypes) > 1:
        types = ", ".join(sorted(report.dtypes))
        report.warnings.append(
            f"images are stored as different types: {types}; their values may not be comparable"
        )
    if not report.pixels.any():
        if not report.errors:
            report.errors.append("no pixel of any mask is labeled")
        return
    missing = [name for name, n in zip(classes.names, report.pixels, strict=True) if n == 0]
    if split == "train" and len(classes) == 1:
        report.errors.append(
            f"the only class is {classes.names[0]!r}; a model needs at least two: name the "
            "background too, and check that masks hold more than one value"
        )
    elif missing and split == "train" and dataset.described and not dataset.allow_missing_classes:
        report.errors.append(
            f"classes without a pixel in split 'train': {_first(missing)}; remove them from "
            f"names, or write allow_missing_classes: true into dataset.yaml{_hint_of_255(report)}"
        )
    elif missing:
        report.warnings.append(f"classes without a pixel in split {split!r}: {_first(missing)}")
    if len(classes) > 1 and np.count_nonzero(report.pixels) == 1 and not dataset.multilabel:
        only = classes.names[int(report.pixels.argmax())]
        report.warnings.append(
            f"all labeled pixels of split {split!r} are {only!r}: scores on it say nothing"
        )


def _hint_of_255(report: SplitReport) -> str:
    """Two classes of which the second is what is ignored: perhaps a mask in black and white."""
    classes = report.dataset.classes
    value = classes.ignore_index
    if len(classes) != 2 or not report.ignored or classes.mapping or report.pixels[1]:
        return ""
    return (
        f". {report.ignored} pixels of value {value} are ignored; if they are "
        f"{classes.names[1]!r}, remove ignore_index"
    )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def suggested_yaml(reports: list[SplitReport]) -> str:
    """What to write into ``dataset.yaml`` so that errors of a data set go away.

    Args:
        reports: Of its splits.

    Returns:
        Lines of YAML; empty where nothing is to be set or it cannot be known.
    """
    if not reports:
        return ""
    dataset = reports[0].dataset
    names = list(dataset.classes.names)
    lines = []
    channels = sum((report.found_channels for report in reports), Counter[int]())
    if len(channels) == 1 and all(r.sums is None for r in reports):
        lines.append(f"channels: {next(iter(channels))}")
    colors = sum((report.colors for report in reports), Counter[Color]())
    unknown = sum((report.unknown_values for report in reports), Counter[int]())
    if colors and len(colors) <= 256:
        lines += _palette_lines(colors, dataset)
        if not dataset.described:
            names = _names_of(colors)
    elif unknown and len(unknown) <= 256 and dataset.described:
        known = set[int]().union(*(report.known_values for report in reports))
        lines += _mapping_lines(unknown, known, dataset)
    if not lines:
        return ""
    if not dataset.described:
        splits = [report.dataset.split for report in reports]
        head = [f"{split}: images/{split}" for split in splits]
        lines = [*head, "names:", *(f"  {i}: {name}" for i, name in enumerate(names)), *lines]
    return "\n".join(lines)


def _palette_lines(colors: Counter[Color], dataset: Dataset) -> list[str]:
    """The palette to complete: a data set with names needs them put before the right colors."""
    total = sum(colors.values())
    ranked = [color for color, _ in colors.most_common()]
    keys = [f"class of color {i}" for i in range(1, len(ranked) + 1)]
    title = "palette:  # write a class name, or ignore, in front of each color"
    if not dataset.described:
        keys, title = _names_of(colors), "palette:"
        ranked = _ordered(colors)
    known = [f"  {_name_of(i, dataset)}: {list(color)}" for color, i in dataset.colors.items()]
    return [
        title,
        *known,
        *(
            f"  {key}: {list(color)}  # {colors[color]} pixels, {colors[color] / total:.1%}"
            for key, color in zip(keys, ranked, strict=True)
        ),
    ]


def _name_of(class_id: int, dataset: Dataset) -> str:
    names = dataset.classes.names
    return names[class_id] if 0 <= class_id < len(names) else "ignore"


def _ordered(colors: Counter[Color]) -> list[Color]:
    """By number of pixels, black first: it is nearly always the background."""
    return sorted(colors, key=lambda color: (color != (0, 0, 0), -colors[color]))


def _names_of(colors: Counter[Color]) -> list[str]:
    first = "background" if (0, 0, 0) in colors else "class 0"
    return [first, *(f"class {i}" for i in range(1, len(colors)))]


def _mapping_lines(unknown: Counter[int], known: set[int], dataset: Dataset) -> list[str]:
    """Values in the order of the classes where there are as many, else they are ignored."""
    classes = dataset.classes
    values = sorted((known | set(unknown)) - {classes.ignore_index})
    if len(values) == len(classes):
        pairs = [(value, i, classes.names[i]) for i, value in enumerate(values)]
    else:
        pairs = [(value, classes.ignore_index, "ignored") for value in sorted(unknown)]
    old = [
        (value, class_id, "as before")
        for value, class_id in classes.mapping.items()
        if value not in {value for value, *_ in pairs}
    ]
    return ["label_mapping:", *(f"  {v}: {i}  # {words}" for v, i, words in [*old, *pairs])]
