"""Images and masks from a Python object, and their augmentation by a Python function.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.annotation import Annotation, BrokenAnnotation
from segformer.data.dataset import Dataset, DatasetError, Sample
from segformer.data.masks import to_class_ids
from segformer.image import ImageArray, Preprocessing, read_image

_ONE_AT_A_TIME = Lock()
"""Data sets of users need not allow reading in several threads."""


class MapDataset(Protocol):
    """Images and masks by index, as PyTorch's map-style data sets.

    An item is a pair (image, mask) or a mapping with the keys "image" and "mask". The image is a
    PIL image or an array (H, W) or (H, W, C), the mask a PIL image or an array (H, W) of class ids.
    """

    def __len__(self) -> int:
        """Number of items."""

    def __getitem__(self, index: int, /) -> Any:
        """An item."""


Transform: TypeAlias = Callable[..., Mapping[str, Any]]
"""Called as ``transform(image=image, mask=mask)``, as those of albumentations."""


@dataclass(frozen=True)
class OwnDataset(Dataset):
    """One split of a data set whose images and masks come from Python.

    Attributes:
        source: The images and masks.
    """

    source: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, source: MapDataset, split: str, classes: ClassSet, channels: int) -> OwnDataset:
        """The items of a data set, by index.

        Raises:
            DatasetError: It has no items.
        """
        if len(source) == 0:
            raise DatasetError(f"the data set for split {split!r} has no items")
        names = (f"{split}[{index}]" for index in range(len(source)))
        samples = tuple(Sample(name, Path(name), _mask_of(name)) for name in names)
        return cls(Path("python"), split, samples, classes, channels=channels, source=source)

    def read(self, sample: Sample) -> tuple[ImageArray, NDArray[np.integer]]:
        """Image (H, W, channels) and class ids (H, W) of a sample.

        Raises:
            ValueError: The item is no image and mask, or its mask has values outside the classes.
        """
        image, mask = self._item(sample)
        pixels = self._pixels(sample, image)
        return pixels, self._checked_mask(sample, mask, pixels)

    def read_reduced(
        self, sample: Sample, choose: Callable[[int, int], int]
    ) -> tuple[ImageArray, NDArray[np.integer], int]:
        """As `read`; the reduction is always 1."""
        return *self.read(sample), 1

    def read_mask(self, sample: Sample, image: ImageArray) -> NDArray[np.integer]:
        """Class ids (H, W) of a sample whose image (H, W, channels) has been read.

        Raises:
            ValueError: As in `read`.
        """
        return self._checked_mask(sample, self._item(sample)[1], image)

    def _checked_mask(self, sample: Sample, mask: Any, image: ImageArray) -> NDArray[np.integer]:
        values = np.asarray(mask)
        if values.ndim != 2 or values.dtype.kind not in "uib":
            raise DatasetError(
                f"{sample.name}: the mask must be (H, W) of integers, "
                f"not {values.shape} of {values.dtype}"
            )
        if values.shape != image.shape[:2]:
            raise DatasetError(
                f"{sample.name}: the mask is {values.shape}, its image {image.shape[:2]}"
            )
        path = Path(sample.name)
        return to_class_ids(values.astype(np.int32), path, self.classes, self.colors)

    def read_image(self, sample: Sample, reduction: int = 1) -> ImageArray:
        """Image (H, W, channels) of a sample; it is never reduced."""
        return self._pixels(sample, self._item(sample)[0])

    def _pixels(self, sample: Sample, image: Any) -> ImageArray:
        try:
            return read_image(image, self.channels, as_8_bit=self.as_8_bit, nodata=self.nodata)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{sample.name}: {error}") from None

    def _item(self, sample: Sample) -> tuple[Any, Any]:
        index = int(sample.name.partition("[")[2].rstrip("]"))
        with _ONE_AT_A_TIME:
            item = self.source[index]
        return image_and_mask(item, sample.name)


def image_and_mask(item: Any, name: str) -> tuple[Any, Any]:
    """The image and the mask of an item.

    Raises:
        DatasetError: It has no two such parts.
    """
    if isinstance(item, Mapping) and {"image", "mask"} <= item.keys():
        return item["image"], item["mask"]
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    raise DatasetError(
        f'{name}: an item must be (image, mask) or {{"image": ..., "mask": ...}}, '
        f"not {type(item).__name__}"
    )


def _mask_of(name: str) -> Annotation:
    """Marks a sample as labeled; its class ids are read with its image."""
    return BrokenAnnotation(Path(name), f"{name}: the mask is read with its image")


@dataclass(frozen=True)
class OwnTransform:
    """A transform in place of `segformer.data.transforms.Augmentation`.

    While it runs, the random generators of Python, NumPy and PyTorch are seeded with the number of
    the draw, and so is the transform if it has ``set_random_seed``, as those of albumentations
    have. So a resumed run repeats it.

    Attributes:
        transform: Called with ``image`` (H, W, C) as it is stored and ``mask`` (H, W); returns a
            mapping with both. The image is normalized afterwards.
        crop_size: Side of the result; larger ones are cropped at random, smaller ones padded.
        classes: Classes of the masks.
    """

    transform: Transform
    crop_size: int
    classes: ClassSet

    def next_reduction(self, rng: np.random.Generator) -> Callable[[int, int], int]:
        """Images are read at their own size."""
        return lambda height, width: 1

    def possible_reductions(self, height: int, width: int) -> list[int]:
        """Images are read at their own size."""
        return [1]

    def __call__(
        self,
        image: ImageArray,
        mask: NDArray[np.integer],
        rng: np.random.Generator,
        preprocessing: Preprocessing,
        another: object = None,
        reduction: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """One training crop, as `segformer.data.transforms.Augmentation` gives it.

        Raises:
            TypeError: The transform returns something else than an image and a mask.
        """
        ignore_index = self.classes.ignore_index
        small = max(len(self.classes) - 1, ignore_index) < 256
        mask = mask.astype(np.uint8 if small else np.int32)
        seed = int(rng.integers(1 << 32))
        with _seeded(seed):
            if hasattr(self.transform, "set_random_seed"):
                self.transform.set_random_seed(seed)
            result = self.transform(image=np.ascontiguousarray(image), mask=mask)
        changed, ids = (np.asarray(result[key]) for key in ("image", "mask"))
        if changed.dtype != image.dtype or changed.ndim != 3 or changed.shape[:2] != ids.shape:
            raise TypeError(
                f"transform must return image (H, W, C) of {image.dtype} and mask (H, W), not "
                f"{changed.shape} of {changed.dtype} and {ids.shape}; leave normalization and "
                "tensors to the training"
            )
        side = self.crop_size
        top, left = (int(rng.integers(max(0, length - side) + 1)) for length in ids.shape)
        window = np.s_[top : top + side, left : left + side]
        normalized, ids = preprocessing.normalize(changed[window]), ids[window]
        height, width = ids.shape
        crop = np.zeros((side, side, changed.shape[2]), np.float32)
        class_ids = np.full((side, side), ignore_index, np.int64)
        crop[:height, :width], class_ids[:height, :width] = normalized, ids
        return crop, class_ids


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random generators of Python, NumPy and PyTorch, and restore them afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def channels_of(dataset: MapDataset) -> int:
    """Channels of the first image: those of an array (H, W, C), else 3."""
    if len(dataset) == 0:
        raise DatasetError("the data set has no items")
    image, _ = image_and_mask(dataset[0], "train[0]")
    return int(image.shape[2]) if getattr(image, "ndim", 0) == 3 else 3
