"""A data set: pairs of an image and a mask, and the classes of the masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.annotation import Annotation
from segformer.data.description import SPLITS
from segformer.data.errors import Color, DatasetError
from segformer.data.masks import read_values, to_class_ids
from segformer.data.pairing import Sample
from segformer.image import (
    SIDEWAYS,
    ImageArray,
    exif_orientation,
    image_name,
    jpeg_size,
    missing_pixels,
    read_image,
    turn_upright,
)

__all__ = ["SPLITS", "Dataset", "DatasetError", "Sample"]


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    Attributes:
        root: Folder it came from.
        split: "train", "val" or another.
        samples: Pairs, sorted by name.
        classes: Classes, ignore index and mapping of mask values.
        stray_masks: Masks that no image belongs to.
        channels: Channels of the images.
        as_8_bit: Images of more than 8 bits are scaled to 0..255 when read; by default they keep
            their stored values.
        colors: Class id of each color, for RGB masks.
        described: The classes come from a ``dataset.yaml``, not from the values of the masks.
        allow_missing_classes: Classes need not occur in the training split.
        taken_for: The layout that the source was taken for, and why.
        notes: Sentences about what was recognized or decided, for the user to read.
        problems: Sentences about entries of annotation files that belong to no sample.
        nodata: Value in the images that means that there is no data; GDAL's tag in TIFF files
            is used where it is None.
        channel_names: Name of each channel, where known.
        multilabel: Classes may overlap: masks are packed classes (`segformer.data.multilabel`),
            not class ids.
    """

    root: Path
    split: str
    samples: tuple[Sample, ...]
    classes: ClassSet
    stray_masks: tuple[Path, ...] = field(default=(), repr=False)
    channels: int = 3
    as_8_bit: bool = False
    colors: Mapping[Color, int] = field(default_factory=dict, repr=False)
    described: bool = True
    allow_missing_classes: bool = False
    taken_for: str = ""
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    nodata: float | None = None
    channel_names: tuple[str, ...] = ()
    multilabel: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def has_masks(self) -> bool:
        """Whether any image has a mask; a test split may be without."""
        return any(sample.mask is not None for sample in self.samples)

    def read(self, sample: Sample) -> tuple[ImageArray, NDArray[np.integer]]:
        """Image (H, W, channels) and class ids or packed classes (H, W) of a sample.

        Where the EXIF orientation turns an image by 90 degrees, and its mask has the size of
        the image before turning, the mask is turned too. Pixels without data are NaN in the image
        (8-bit images keep their values), and ignored in the mask.

        Raises:
            ValueError: A file cannot be read, there is no mask, sizes differ, or the mask has
                values outside the classes.
        """
        image, class_ids, _ = self.read_reduced(sample, lambda *_: 1)
        return image, class_ids

    def read_image(self, sample: Sample, reduction: int = 1) -> ImageArray:
        """Image (H, W, channels) of a sample; JPEG files at 1/2, 1/4 or 1/8 of their size.

        Raises:
            UnreadableImage: The file cannot be read.
        """
        return read_image(
            sample.image,
            self.channels,
            as_8_bit=self.as_8_bit,
            nodata=self.nodata,
            reduction=reduction,
        )

    def read_reduced(
        self, sample: Sample, choose: Callable[[int, int], int]
    ) -> tuple[ImageArray, NDArray[np.integer], int]:
        """Image and class ids of a sample, the image at a fraction of its size if it is a JPEG.

        Args:
            sample: Image and mask.
            choose: Height and width of the image -> reduction: 1, 2, 4 or 8.

        Returns:
            Image (h, w, channels), class ids (H, W), and the reduction: h is H / reduction,
            rounded up, and so is w. Images in other formats than JPEG have the reduction 1.

        Raises:
            ValueError: As in `read`.
        """
        if sample.mask is None:
            raise DatasetError(f"{image_name(sample.image)}: there is no mask for this image")
        size = self._reducible_size(sample)
        reduction = 1 if size is None else choose(*size)
        image = self.read_image(sample, reduction)
        if size is None or reduction == 1:
            size = image.shape[:2]
        return (
            image,
            self._with_missing(image, self._class_ids(sample, sample.mask, *size)),
            reduction,
        )

    def read_mask(self, sample: Sample, image: ImageArray) -> NDArray[np.integer]:
        """Class ids (H, W) of a sample whose image (H, W, channels) has been read.

        Raises:
            ValueError: As in `read`.
        """
        if sample.mask is None:
            raise DatasetError(f"{image_name(sample.image)}: there is no mask for this image")
        height, width = image.shape[:2]
        return self._with_missing(image, self._class_ids(sample, sample.mask, height, width))

    def _with_missing(
        self, image: ImageArray, class_ids: NDArray[np.integer]
    ) -> NDArray[np.integer]:
        """The class ids, with the pixels that have no data in the image ignored."""
        missing = missing_pixels(image, self.nodata)
        if missing is None or not missing.any():
            return class_ids
        return np.where(missing, np.int32(self.classes.ignore_index), class_ids)

    def _reducible_size(self, sample: Sample) -> tuple[int, int] | None:
        """Height and width of an image that can be decoded at reduced size, else None."""
        # At reduced size, pixels without data would be mixed with others
        if not isinstance(sample.image, Path) or self.nodata is not None:
            return None
        return jpeg_size(sample.image)

    def _class_ids(
        self, sample: Sample, mask: Path | Annotation, height: int, width: int
    ) -> NDArray[np.integer]:
        """Class ids (H, W) of a sample whose image has this size."""
        if not isinstance(mask, Path):
            class_ids = mask.rasterize(height, width)
            if class_ids.shape != (height, width):
                raise DatasetError(_describe_sizes(sample, (height, width), class_ids.shape))
            return class_ids
        values = read_values(mask)
        if height != width and values.shape[:2] == (width, height):
            orientation = exif_orientation(sample.image_files[0])
            if orientation in SIDEWAYS and exif_orientation(mask) == 1:
                values = turn_upright(values, orientation)
        if values.shape[:2] != (height, width):
            raise DatasetError(_describe_sizes(sample, (height, width), values.shape[:2]))
        return to_class_ids(values, mask, self.classes, self.colors)

    def require_single_labels(self, purpose: str) -> None:
        """Raise a DatasetError if classes may overlap."""
        if self.multilabel:
            raise DatasetError(
                f"{self.root}: {purpose} needs masks of one class per pixel, but the classes of "
                "this data set may overlap (multilabel: true)"
            )

    def with_channels(self, channels: int) -> Dataset:
        """The same data set, its images read with another number of channels."""
        names = self.channel_names if channels == self.channels else ()
        return replace(self, channels=channels, channel_names=names)

    def with_8_bit(self, as_8_bit: bool) -> Dataset:
        """The same data set, its images scaled to 0..255 or not."""
        return replace(self, as_8_bit=as_8_bit)


def orientation_is_unclear(sample: Sample, is_square: bool) -> bool:
    """Whether an image is turned by EXIF and the size of its mask cannot tell if the mask is.

    Such masks are taken as drawn on the upright image, which is what annotation tools show.

    Args:
        sample: Image and mask.
        is_square: Height and width of the image are the same.
    """
    if not isinstance(sample.mask, Path):
        return False
    orientation = exif_orientation(sample.image_files[0])
    if orientation == 1 or exif_orientation(sample.mask) != 1:
        return False
    return is_square or orientation not in SIDEWAYS


def _describe_sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    """The sentence for an image and a mask of different sizes."""
    return (
        f"{sample.mask_file}: the mask is {mask[1]} x {mask[0]} pixels, "
        f"its image {image[1]} x {image[0]}"
    )
