"""The options of a training, in the groups that ``segformer train --help`` shows.

Each group is a dataclass. `segformer.training.config` joins them into the configuration of a task.
Values are checked when an object is made, wherever they come from. Nothing here imports torch, so
that the help appears at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from tyro.conf import arg


def _depends(metavar: str, default: str) -> Any:
    """How the help shows an option whose default is worked out when the training starts."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


_Text: TypeAlias = str | None
_Int: TypeAlias = int | None
_Float: TypeAlias = float | None
_Floats: TypeAlias = tuple[float, ...] | None
_Names: TypeAlias = Annotated[tuple[str, ...], _depends("[NAME [NAME ...]]", "none")]

POSITIVE = frozenset(
    "epochs max_steps batch_size accumulate_grad_batches crop_size short_side long_side scale_min "
    "scale_max eval_size rescale std lr head_lr_factor devices val_every checkpoint_every "
    "log_every".split()
)
FRACTIONS = frozenset(
    "cat_max_ratio rare_class_crop_prob hflip_prob background_replace_prob class_color_jitter_prob "
    "grayscale_prob blur_prob min_area random_erasing_prob class_weight_power ohem_threshold "
    "ohem_min_kept".split()
)
BELOW_ONE = frozenset(("ema_decay", "drop_path", "dropout", "label_smoothing"))
NOT_NEGATIVE = frozenset(
    "freeze_stages background_class rand_augment mixup_alpha cutmix_alpha weight_decay "
    "warmup_steps power min_lr max_grad_norm seed dice_weight lovasz_weight focal_gamma "
    "num_workers patience".split()
)


@dataclass(frozen=True)
class Options:
    """A group of options; types and ranges are checked.

    Raises:
        ValueError: A value has the wrong type or is out of range; the message names the option.
    """

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for field in fields(self):
            value = _typed(field.name, getattr(self, field.name), types[field.name])
            object.__setattr__(self, field.name, value)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    _check_range(field.name, number)


@dataclass(frozen=True)
class ModelOptions(Options):
    """What is trained.

    Attributes:
        variant: Size of the model: b0, b1, b2, b3, b4 or b5.
        pretrained: Model to start from: a folder, a file or a Hub id, in any checkpoint format.
            If its classes differ from the data set's, the classifier is re-initialized; if it has
            no decoder, the decoder is.
        pretrained_encoder_only: Load only the encoder of that model.
        freeze_stages: Number of encoder stages, from the first, that are not trained.
        gradient_checkpointing: Recompute activations in the backward pass. Takes less memory and
            about a third more time.
        drop_path: Stochastic depth of the last encoder block.
    """

    variant: Annotated[_Text, _depends("NAME", "that of the pretrained model, else b0")] = None
    pretrained: Annotated[_Text, _depends("MODEL", "random weights")] = None
    pretrained_encoder_only: bool = False
    freeze_stages: int = 0
    gradient_checkpointing: bool = False
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_stages > 4:
            raise ValueError(f"freeze_stages must be from 0 to 4, not {self.freeze_stages}")
        if self.pretrained is None and self.pretrained_encoder_only:
            raise ValueError("pretrained_encoder_only needs pretrained, the model to start from")


@dataclass(frozen=True)
class SegmentationModelOptions(ModelOptions):
    """What is trained.

    Attributes:
        binary: Train one output with a sigmoid. The data set must have two classes.
        dropout: Dropout before the classifier.
    """

    binary: bool = False
    dropout: float = 0.1


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

    crop_size: int = 512
    eval_size: Annotated[_Int, _depends("PIXELS", "see the task")] = None
    mean: Annotated[
        _Floats,
        _depends(
            "FLOAT ...",
            "that of the pretrained model, else ImageNet's for 8-bit RGB, else measured",
        ),
    ] = None
    std: Annotated[_Floats, _depends("FLOAT ...", "as mean")] = None
    rescale: Annotated[_Float, _depends("FLOAT", "as mean")] = None
    hflip_prob: float = 0.5

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
        eval_size: Short side at which the trained model sees images, in validation and later.
        short_side: Images are scaled to this short side before the random scale.
        long_side: Upper limit of the long side in that scaling.
        scale_min: Smallest random scale.
        scale_max: Largest random scale.
        log_scale: Draw the scale uniformly in its logarithm.
        cat_max_ratio: Crops with more than this fraction of one class are drawn again.
        rare_class_crop_prob: Probability of centering a crop on a class drawn uniformly from those
            in the image, so that rare classes are seen more often.
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

    eval_size: Annotated[_Int, _depends("PIXELS", "short_side")] = None
    short_side: int = 512
    long_side: int = 2048
    scale_min: float = 0.5
    scale_max: float = 2.0
    log_scale: bool = False
    cat_max_ratio: float = 0.75
    rare_class_crop_prob: float = 0.0
    photometric: bool = True
    background_replace_prob: float = 0.0
    background_class: int = 0
    class_color_jitter_prob: float = 0.0
    class_color_jitter_exclude: _Names = ()
    class_color_jitter_gentle: _Names = ()
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_max < self.scale_min:
            raise ValueError(f"scale_max {self.scale_max} is below scale_min {self.scale_min}")


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

    crop_size: int = 224
    eval_size: Annotated[_Int, _depends("PIXELS", "8/7 of crop_size")] = None
    min_area: float = 0.08
    rand_augment: int = 2
    random_erasing_prob: float = 0.25
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0


@dataclass(frozen=True)
class OptimizationOptions(Options):
    """How the weights are updated: AdamW, with a moving average of the weights.

    Attributes:
        epochs: Passes over the training images.
        max_steps: Number of optimizer steps; overrides epochs.
        batch_size: Images per device in each forward pass.
        accumulate_grad_batches: Forward passes whose gradients make one optimizer step.
        lr: Peak learning rate of the encoder.
        head_lr_factor: Learning rate of the decoder or classifier, relative to the encoder's.
        min_lr: Learning rate of the encoder at which the schedule ends.
        weight_decay: Weight decay; not applied to the norms of the encoder.
        warmup_steps: Steps of linear warm-up.
        schedule: Learning rate after the warm-up.
        power: Exponent of the poly schedule.
        max_grad_norm: Gradients are scaled down to this norm; 0 disables clipping.
        ema_decay: Decay of the moving average of the weights, which is what is validated and
            saved; 0 disables it.
        seed: Seed of weights, order of the images, augmentation and dropout.
    """

    epochs: int = 50
    max_steps: Annotated[_Int, _depends("INT", "from epochs")] = None
    batch_size: int = 8
    accumulate_grad_batches: int = 1
    lr: Annotated[_Float, _depends("FLOAT", "6e-5 from a pretrained model, else 6e-4")] = None
    head_lr_factor: Annotated[_Float, _depends("FLOAT", "10 from a pretrained model, else 1")] = (
        None
    )
    min_lr: float = 0.0
    weight_decay: float = 0.01
    warmup_steps: Annotated[_Int, _depends("INT", "1500, at most 1/20 of the steps")] = None
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 1.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class ClassificationOptimizationOptions(OptimizationOptions):
    """How the weights are updated: AdamW, with a moving average of the weights.

    Attributes:
        weight_decay: Weight decay; see decay_norm_and_bias.
        decay_norm_and_bias: Apply the weight decay to the norms of the head and to all biases too.
            If false, no parameter of one dimension decays, as in DeiT's recipe.
    """

    decay_norm_and_bias: bool = True


@dataclass(frozen=True)
class SegmentationLossOptions(Options):
    """What is minimized: cross-entropy at the size of the masks, and terms added to it.

    Attributes:
        class_weight_power: Each class is weighted by its frequency to minus this power: 0 weights
            all classes equally, 1 by the inverse of their frequency.
        dice_weight: Weight of the Dice loss, which is added to the cross-entropy.
        lovasz_weight: Weight of the Lovasz loss, a surrogate of 1 - IoU, added likewise.
        focal_gamma: Focal loss: pixels are weighted by (1 - probability of their class) to this
            power.
        ohem_threshold: Online hard example mining: only pixels whose class has a probability below
            this count; 0 counts all pixels.
        ohem_min_kept: Smallest fraction of the labeled pixels that counts then, the hardest.
        label_smoothing: Fraction of the probability that is spread over all classes.
        avg_non_ignore: Average the loss over the labeled pixels. If false, over all pixels,
            ignored ones included, as in the original training code.
    """

    class_weight_power: float = 0.0
    dice_weight: float = 0.0
    lovasz_weight: float = 0.0
    focal_gamma: float = 0.0
    ohem_threshold: float = 0.0
    ohem_min_kept: float = 0.0625
    label_smoothing: float = 0.0
    avg_non_ignore: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal_gamma and label_smoothing exclude each other; set one to 0")


@dataclass(frozen=True)
class ClassificationLossOptions(Options):
    """What is minimized: cross-entropy.

    Attributes:
        label_smoothing: Fraction of the probability that is spread over all classes.
    """

    label_smoothing: float = 0.1


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """What is measured and written during the training.

    Attributes:
        val_every: Epochs between validations.
        patience: Stop after this many validations without a better score; 0 never stops.
        checkpoint_every: Optimizer steps between resume checkpoints.
        log_every: Optimizer steps between rows of metrics.csv.
        tensorboard: Also write TensorBoard logs.
    """

    val_every: int = 1
    patience: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    tensorboard: bool = False


@dataclass(frozen=True)
class HardwareOptions(Options):
    """What the training runs on.

    Attributes:
        device: cpu, cuda, cuda:1, mps, ...
        devices: Number of GPUs, or of processes with device cpu.
        precision: Number format of most of the arithmetic.
        num_workers: Processes per device that load images; 0 loads them in the training process.
    """

    device: Annotated[str, _depends("DEVICE", "the GPUs if there are any, else the CPU")] = "auto"
    devices: int = 1
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        arg(
            help_behavior_hint=(
                "(default: auto, bfloat16 where the device computes fast in it, else float32)"
            )
        ),
    ] = "auto"
    num_workers: Annotated[
        _Int, _depends("INT", "one per CPU that the process may use, at most 8")
    ] = None


@dataclass(frozen=True)
class SegmentationHardwareOptions(HardwareOptions):
    """What the training runs on.

    Attributes:
        cache: Keep decoded images in memory, which all workers of a device share. auto: if all fit
            into half of the available memory; true: as many as fit; false: none.
    """

    cache: Literal["auto", "true", "false"] = "auto"


def _check_range(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    if name in POSITIVE and value <= 0:
        raise ValueError(f"{name} must be positive, not {value}")
    if name in NOT_NEGATIVE and value < 0:
        raise ValueError(f"{name} must not be negative, as {value} is")
    if name in FRACTIONS and not 0 <= value <= 1:
        raise ValueError(f"{name} must be a fraction from 0 to 1, not {value}")
    if name in BELOW_ONE and not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, not {value}")


def _typed(name: str, value: Any, expected: Any) -> Any:
    """The value as the type of its field; a value of another type is an error that names it."""
    if get_origin(expected) is Literal:
        if isinstance(value, bool):  # YAML reads true and false as this
            value = str(value).lower()
        if value not in get_args(expected):
            choices = ", ".join(get_args(expected))
            raise ValueError(f"{name} must be one of {choices}, not {value!r}")
        return value
    kinds = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    if value is None and NoneType in kinds:
        return None
    if kinds[0] == tuple[str, ...]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ValueError(f"{name} must be a list of names, not {value!r}")
    if kinds[0] == tuple[float, ...]:
        if isinstance(value, (list, tuple)) and value and all(map(_is_number, value)):
            return tuple(float(v) for v in value)
        raise ValueError(f"{name} must be a list of numbers, not {value!r}")
    if float in kinds and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 6e-5, without a dot, as text
        except ValueError:
            pass
    kind = kinds[0]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
