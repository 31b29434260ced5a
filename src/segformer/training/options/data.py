"""What is read and how the model sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from segformer.data.options import SourceOptions
from segformer.options import depends
from segformer.prediction.config import PredictConfig, Protocol
from segformer.training.options.checked import FRACTION, NOT_NEGATIVE, POSITIVE, Names, Options


@dataclass(frozen=True)
class SplitOptions(SourceOptions, Options):
    """How the data set is read and divided into training and validation."""


@dataclass(frozen=True)
class DataOptions(Options):
    """What the model sees.

    Attributes:
        crop_size: Side of the training crops, in pixels.
        eval_size: Size at which the trained model sees images, in validation and later.
        mean: Mean of each channel, after rescaling. Give it together with std.
        std: Standard deviation of each channel, after rescaling.
        rescale: Factor on the stored values, applied before mean and std.
        hflip_prob: Probability of a horizontal flip.
    """

    crop_size: Annotated[int, POSITIVE] = 512
    eval_size: Annotated[int | None, POSITIVE, depends("PIXELS", "see the task")] = None
    mean: Annotated[
        tuple[float, ...] | None,
        depends(
            "FLOAT ...",
            "that of the pretrained model, else ImageNet's for 8-bit RGB, else measured",
        ),
    ] = None
    std: Annotated[tuple[float, ...] | None, POSITIVE, depends("FLOAT ...", "as mean")] = None
    rescale: Annotated[float | None, POSITIVE, depends("FLOAT", "as mean")] = None
    hflip_prob: Annotated[float, FRACTION] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_size < 32:
            raise ValueError(f"crop_size must be at least 32, not {self.crop_size}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values, std has {len(self.std)}")


@dataclass(frozen=True)
class SegmentationDataOptions(DataOptions):
    """What the model sees.

    Attributes:
        protocol: "paper" resizes, crops and validates exactly as the original training code of
            SegFormer: without antialiasing, and images are resized before they are cropped.
        eval_size: Short side at which the trained model sees images, in validation and later.
        eval_window: Side of windows in which images are validated, a multiple of 4.
        eval_stride: Pixels between these windows, a multiple of 4.
        short_side: Images are scaled to this short side before the random scale.
        long_side: Upper limit of the long side in that scaling.
        scale_min: Smallest random scale.
        scale_max: Largest random scale.
        log_scale: Draw the scale uniformly in its logarithm.
        cat_max_ratio: Crops with more than this fraction of one class are drawn again.
        rare_class_crop_prob: Probability of centering a crop on a class drawn uniformly from those
            in the image, so that rare classes are seen more often.
        oversample_threshold: Images with a class that is in fewer than this fraction of the
            training images are drawn more often (repeat factor sampling); 0 draws all equally
            often.
        photometric: Distort brightness, contrast, saturation and hue.
        background_replace_prob: Probability of replacing the background of an image.
        background_class: Class id that counts as background for that.
        class_color_jitter_prob: Probability of recoloring each class region of a crop, so that
            classes are not recognized by their color.
        class_color_jitter_exclude: Names of classes that are never recolored.
        class_color_jitter_gentle: Names of classes that are recolored less often and keep their
            hue.
        grayscale_prob: Probability of a grayscale crop.
        blur_prob: Probability of a slightly blurred crop.
    """

    protocol: Protocol = "default"
    eval_size: Annotated[int | None, POSITIVE, depends("PIXELS", "short_side")] = None
    eval_window: Annotated[int | None, POSITIVE, depends("PIXELS", "the whole image at once")] = (
        None
    )
    eval_stride: Annotated[
        int | None, POSITIVE, depends("PIXELS", "three quarters of a window")
    ] = None
    short_side: Annotated[int, POSITIVE] = 512
    long_side: Annotated[int, POSITIVE] = 2048
    scale_min: Annotated[float, POSITIVE] = 0.5
    scale_max: Annotated[float, POSITIVE] = 2.0
    log_scale: bool = False
    cat_max_ratio: Annotated[float, FRACTION] = 0.75
    rare_class_crop_prob: Annotated[float, FRACTION] = 0.0
    oversample_threshold: Annotated[float, FRACTION] = 0.0
    photometric: bool = True
    background_replace_prob: Annotated[float, FRACTION] = 0.0
    background_class: Annotated[int, NOT_NEGATIVE] = 0
    class_color_jitter_prob: Annotated[float, FRACTION] = 0.0
    class_color_jitter_exclude: Names = ()
    class_color_jitter_gentle: Names = ()
    grayscale_prob: Annotated[float, FRACTION] = 0.0
    blur_prob: Annotated[float, FRACTION] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_max < self.scale_min:
            raise ValueError(f"scale_max {self.scale_max} is below scale_min {self.scale_min}")
        try:
            PredictConfig(window=self.eval_window, stride=self.eval_stride)
        except ValueError as error:
            raise ValueError(f"eval_window and eval_stride: {error}") from None


@dataclass(frozen=True)
class ClassificationDataOptions(DataOptions):
    """What the model sees.

    Attributes:
        eval_size: Short side to which the trained model resizes images, in validation and later,
            before it takes the middle square of crop_size.
        min_area: Smallest fraction of an image that a crop covers.
        rand_augment: Number of random operations on each image (RandAugment).
        random_erasing_prob: Probability of filling a rectangle with noise.
        mixup_alpha: Parameter of the Beta distribution from which mixup takes its ratio; 0
            disables mixup.
        cutmix_alpha: The same for CutMix. With both, each batch takes one of them at random.
    """

    crop_size: Annotated[int, POSITIVE] = 224
    eval_size: Annotated[int | None, POSITIVE, depends("PIXELS", "8/7 of crop_size")] = None
    min_area: Annotated[float, FRACTION] = 0.08
    rand_augment: Annotated[int, NOT_NEGATIVE] = 2
    random_erasing_prob: Annotated[float, FRACTION] = 0.25
    mixup_alpha: Annotated[float, NOT_NEGATIVE] = 0.8
    cutmix_alpha: Annotated[float, NOT_NEGATIVE] = 1.0
