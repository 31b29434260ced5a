"""Compare two segmentation models on one data set, image by image.

Legend: H W pixels, K classes.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.dataset import Dataset, DatasetError
from segformer.evaluation.bootstrap import (
    Interval,
    interval,
    mean_over_classes,
    resampled_ious,
)
from segformer.evaluation.details import Scored
from segformer.evaluation.evaluate import Failure, evaluate
from segformer.evaluation.examples import Example, make_example
from segformer.evaluation.matching import ClassesDiffer, ClassMatch, MatchClasses
from segformer.evaluation.matching import match_classes as find_match
from segformer.evaluation.per_image import ImageCounts
from segformer.image import ImageSource, image_name
from segformer.prediction.predictor import Predictor

_GRID = 128
"""Rows and columns of each image at which the models are compared pixel by pixel."""

_SHOWN = 8
"""Images that are shown, those on which the models disagree the most."""


@dataclass(frozen=True)
class Agreement:
    """Labeled pixels, on a grid in each image, by which of the two models is right.

    Attributes:
        both: Both are right.
        only_first: The first alone.
        only_second: The second alone.
        neither_same: Both predict the same wrong class.
        neither: They predict different wrong classes.
    """

    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither_same: int = 0
    neither: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """All counts, in the order of the attributes."""
        return (self.both, self.only_first, self.only_second, self.neither_same, self.neither)

    @property
    def disagreement(self) -> float:
        """Fraction of the pixels whose predicted classes differ; NaN without labeled pixels."""
        total = sum(self.counts)
        differ = self.only_first + self.only_second + self.neither
        return differ / total if total else float("nan")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the images that both could segment.

    Attributes:
        classes: The classes of the data set.
        names: What the models are called.
        images: Counts of each model, of the same images in the same order.
        agreement: Of each of these images.
        examples: The images on which the models disagree the most.
        failed: Images that could not be read.
        resamples: Number of resamples behind the intervals.
        seed: Of the resamples.
    """

    classes: ClassSet
    names: tuple[str, str]
    images: tuple[ImageCounts, ImageCounts]
    agreement: tuple[Agreement, ...]
    examples: tuple[Example, ...]
    failed: tuple[Failure, ...]
    resamples: int
    seed: int

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        """(2, K) IoU of each model over all images; NaN where it is not defined."""
        totals = np.array([counts.totals(len(self.classes)) for counts in self.images])
        hits, unions = totals[:, 0], totals[:, 1]
        return np.divide(hits, unions, out=np.full_like(hits, np.nan), where=unions > 0)

    @property
    def miou(self) -> NDArray[np.float64]:
        """(2,) mIoU of each model."""
        return mean_over_classes(self.iou)

    @property
    def difference(self) -> NDArray[np.float64]:
        """(K,) IoU of the second model minus that of the first; NaN if one has none."""
        return np.asarray(self.iou[1] - self.iou[0])

    @property
    def miou_difference(self) -> float:
        """The mIoU of the second model minus that of the first."""
        return float(self.miou[1] - self.miou[0])

    @cached_property
    def difference_interval(self) -> Interval:
        """(K,) 95 % confidence intervals of `difference`."""
        return interval(self._resampled[1] - self._resampled[0])

    @cached_property
    def miou_interval(self) -> Interval:
        """95 % confidence interval of `miou_difference`."""
        means = mean_over_classes(self._resampled)
        return interval(means[1] - means[0])

    @cached_property
    def total_agreement(self) -> Agreement:
        """Over all images."""
        return sum(self.agreement, Agreement())

    @cached_property
    def _resampled(self) -> NDArray[np.float64]:
        return resampled_ious(self.images, len(self.classes), self.resamples, self.seed)


def compare(
    dataset: Dataset,
    first: Predictor,
    second: Predictor,
    names: tuple[str, str],
    *,
    match_classes: MatchClasses = "name",
    resamples: int = 1000,
    seed: int = 0,
    on_image: Callable[[], None] | None = None,
) -> Comparison:
    """Evaluate two models on the same images. Unreadable images are skipped and listed.

    Args:
        dataset: Images and masks.
        first: A model and how it sees images.
        second: The other.
        names: What to call them.
        match_classes: Match the classes of the models and of the data set by "name", in any
            order, or by "position".
        resamples: Resamples of the images for the confidence intervals.
        seed: Of the resamples.
        on_image: Called after each image of each model.

    Raises:
        ClassesDiffer: The classes cannot be matched.
        DatasetError: No image can be evaluated.
    """
    matches = _matches(dataset, first, second, match_classes)
    dataset = replace(dataset, classes=matches[1].classes)
    failed: dict[str, Failure] = {}

    def fail(source: ImageSource, error: Exception) -> None:
        failed.setdefault(image_name(source), Failure(image_name(source), str(error)))

    one = _First()
    evaluate(
        dataset, first, match_classes=match_classes, on_image=on_image, on_error=fail, collector=one
    )
    other = _Second(one.maps)
    evaluate(
        dataset,
        second,
        match_classes=match_classes,
        on_image=on_image,
        on_error=fail,
        collector=other,
    )
    images = one.images.only(other.agreement), other.images.only(other.agreement)
    if not len(images[0]):
        raise DatasetError(
            f"{dataset.root}: there is no image that both models can segment; the first error: "
            f"{next(iter(failed.values()))}"
        )
    agreement = tuple(other.agreement[name] for name in images[0].names)
    return Comparison(
        classes=dataset.classes,
        names=names,
        images=images,
        agreement=agreement,
        examples=tuple(_examples(dataset, (first, second), matches, other.agreement)),
        failed=tuple(failed.values()),
        resamples=resamples,
        seed=seed,
    )


def _matches(
    dataset: Dataset, first: Predictor, second: Predictor, by: MatchClasses
) -> tuple[ClassMatch, ClassMatch]:
    """Both models in the classes of the data set.

    Raises:
        ClassesDiffer: They cannot be matched.
    """
    one, other = first.model, second.model
    match = find_match(
        dataset.classes, one.classes, by, reduce_labels=one.preprocessing.reduce_labels
    )
    second_match = find_match(
        match.classes, other.classes, by, reduce_labels=other.preprocessing.reduce_labels
    )
    if len(match.classes) != len(second_match.classes):
        raise ClassesDiffer(
            f"the first model has {len(match.classes)} classes of this data set, the second "
            f"{len(second_match.classes)}; a comparison needs the same classes"
        )
    return match, second_match


def _grid(class_ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """(H, W) -> class ids at the pixels that are compared."""
    rows, columns = (
        ((np.arange(min(side, _GRID)) + 0.5) * (side / min(side, _GRID))).astype(int)
        for side in class_ids.shape
    )
    return class_ids[np.ix_(rows, columns)]


@dataclass
class _First:
    """Collects the counts of the first model, and its class ids on the grid, compressed."""

    confidence_pixels: int = 0
    images: ImageCounts = field(default_factory=ImageCounts)
    maps: dict[str, bytes] = field(default_factory=dict, repr=False)

    def add(self, scored: Scored) -> None:
        self.images.add(scored.sample.name, scored.counts)
        chosen = _grid(scored.predicted).astype(np.uint16)
        self.maps[scored.sample.name] = zlib.compress(chosen.tobytes(), 1)


@dataclass
class _Second:
    """Collects the counts of the second model, and compares it with the first on the grid."""

    maps: dict[str, bytes] = field(repr=False)
    confidence_pixels: int = 0
    images: ImageCounts = field(default_factory=ImageCounts)
    agreement: dict[str, Agreement] = field(default_factory=dict, repr=False)

    def add(self, scored: Scored) -> None:
        name = scored.sample.name
        if name not in self.maps:  # the first model could not segment it
            return
        self.images.add(name, scored.counts)
        truth, second = _grid(scored.truth), _grid(scored.predicted)
        first = np.frombuffer(zlib.decompress(self.maps.pop(name)), np.uint16).reshape(truth.shape)
        labeled = truth != scored.counts.classes.ignore_index
        truth, first, second = truth[labeled], first[labeled], second[labeled]
        right, right_second, same = first == truth, second == truth, first == second
        self.agreement[name] = Agreement(
            both=int((right & right_second).sum()),
            only_first=int((right & ~right_second).sum()),
            only_second=int((right_second & ~right).sum()),
            neither_same=int((same & ~right).sum()),
            neither=int((~same & ~right & ~right_second).sum()),
        )


def _examples(
    dataset: Dataset,
    predictors: tuple[Predictor, Predictor],
    matches: tuple[ClassMatch, ClassMatch],
    agreement: Mapping[str, Agreement],
) -> Iterator[Example]:
    """The images on which the models disagree the most, predicted again."""
    chosen = heapq.nlargest(
        _SHOWN, agreement, key=lambda name: np.nan_to_num(agreement[name].disagreement)
    )
    samples = {sample.name: sample for sample in dataset}
    for name in chosen:
        if not agreement[name].disagreement > 0:
            return
        sample = samples[name]
        predictions = [predictor(sample.image) for predictor in predictors]
        channels = predictors[0].model.config.in_channels
        _, truth = dataset.with_channels(channels).read(sample)
        yield make_example(
            name,
            agreement[name].disagreement,
            predictions[0].image,
            truth,
            *(
                match.map_ids(prediction.label_map)
                for match, prediction in zip(matches, predictions, strict=True)
            ),
            rgb_channels=predictions[0].rgb_channels,
        )
