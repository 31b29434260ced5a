"""The images of a data set: each is predicted, and compared with its mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from segformer.data.class_folders import ClassFolders
from segformer.data.dataset import Dataset, DatasetError, Sample
from segformer.image import ImageArray, ImageSource, image_name
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor

_MAY_LACK_DATA = frozenset((".tif", ".tiff", ".npy"))
"""Suffixes of files that can mark pixels as being without data: by GDAL's tag or by NaN."""


class ImageHooks(TypedDict, total=False):
    """What an evaluation calls, and what it allows.

    Attributes:
        on_image: Called after each image, scored or skipped.
        on_error: Called with an image and the error if the image or its mask cannot be read; the
            image is then skipped. Default: the error is raised.
        on_prediction: Called with each prediction that is scored and its mask (H, W).
        partial: The data set is a part of a split: it may be empty, and all its images may be
            skipped.
    """

    on_image: Callable[[], None] | None
    on_error: Callable[[ImageSource, Exception], None] | None
    on_prediction: Callable[[Prediction, NDArray[np.integer]], None] | None
    partial: bool


def compare_images(
    dataset: Dataset,
    predictor: Predictor,
    compare: Callable[[Sample, NDArray[np.integer], Prediction], None],
    *,
    confidence_pixels: int = 0,
    **hooks: Unpack[ImageHooks],
) -> None:
    """Predict each image of a data set, and compare the prediction with the mask.

    Args:
        dataset: Images and masks.
        predictor: The model and how it sees images.
        compare: Called with the sample, its mask (H, W), as the data set reads it, and the
            prediction.
        confidence_pixels: See `Predictor.stream`.
        **hooks: See `ImageHooks`.

    Raises:
        DatasetError: None of the images could be evaluated.
        ValueError: An image or mask cannot be read, and there is no ``on_error``.
    """
    on_image, on_error = hooks.get("on_image"), hooks.get("on_error")
    on_prediction, errors = hooks.get("on_prediction"), list[Exception]()

    def fail(source: ImageSource, error: Exception) -> None:
        if on_error is None:
            raise error
        errors.append(error)
        on_error(source, error)
        if on_image is not None:
            on_image()

    with_masks = {}
    for sample in dataset:
        if sample.mask is None:  # found before any image is predicted
            name = image_name(sample.image)
            fail(sample.image, DatasetError(f"{name}: there is no mask for this image"))
        else:
            with_masks[sample.image] = sample
    stream = predictor.stream(
        with_masks, on_error=fail, confidence_pixels=confidence_pixels, progress=False
    )
    for prediction in stream:
        assert prediction.source is not None
        sample = with_masks[prediction.source]
        try:
            truth = _truth(dataset, sample, predictor, prediction.image)
            compare(sample, truth, prediction)
            if on_prediction is not None:
                on_prediction(prediction, truth)
        except (ValueError, OSError, MemoryError) as error:
            fail(prediction.source, error)
        else:
            if on_image is not None:
                on_image()
    if errors and len(errors) == len(dataset) and not hooks.get("partial", False):
        raise none_evaluated(dataset, errors[0])


def _truth(
    dataset: Dataset, sample: Sample, predictor: Predictor, image: ImageArray
) -> NDArray[np.integer]:
    """Class ids of the mask of an image (H, W, C), as the predictor has read it.

    Pixels without data are ignored. If the predictor may have read the image in such a way that
    they can no longer be distinguished from others, it is read again.
    """
    if dataset.nodata is None and not _MAY_LACK_DATA.intersection(
        file.suffix.lower() for file in sample.image_files
    ):
        return dataset.read_mask(sample, image)
    preprocessing = predictor.preprocessing
    if not preprocessing.expects_8_bit and dataset.nodata == preprocessing.nodata:
        return dataset.read_mask(sample, image)
    return dataset.read(sample)[1]


def none_evaluated(dataset: Dataset | ClassFolders, first: object) -> DatasetError:
    """The error for a split of which no image could be evaluated.

    Args:
        dataset: The split.
        first: What is wrong with its first image.
    """
    return DatasetError(
        f"{dataset.root}: none of the {len(dataset)} images of split {dataset.split!r} can be "
        f"evaluated; the first error: {first}"
    )
