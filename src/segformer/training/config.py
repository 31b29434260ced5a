"""The recipe of a training: the YAML file, the command's options and the record are this class.

Nothing here imports torch, so that ``segformer train --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Every field is an option of ``segformer train`` and a key of a recipe.

    Attributes:
        task: segment images with masks, or classify images that lie in a folder per class.
        variant: Size of a fresh model: b0, b1, b2, b3, b4 or b5.
        pretrained: Model to start from: a folder, file or Hub id, written by any codebase. Its
            variant is used. Where its classes differ, the classifier is re-initialized; where it
            has no decoder, the decoder is.
        pretrained_encoder_only: Take only the encoder of the model to start from.
        freeze_stages: Encoder stages, from the first, that stay as they are.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third
            more time.
        binary: Train one output with a sigmoid on a data set of two classes.
        epochs: Passes over the training images.
        max_steps: Optimizer steps; overrides epochs.
        batch_size: Images per device and pass.
        accumulate_grad_batches: Passes whose gradients make one optimizer step.
        crop_size: Side of the training crops, pixels.
        short_side: Images are scaled to this short side before the random ratio.
        long_side: ... unless their long side would exceed this.
        scale_min: Smallest random ratio.
        scale_max: Largest random ratio.
        log_scale: Draw the ratio evenly in its logarithm.
        cat_max_ratio: Crops with more than this fraction of one class are drawn again.
        rare_class_crop_prob: Probability of centering a crop on a class drawn evenly among those
            present, so that rare classes are seen more often.
        hflip_prob: Probability of mirroring.
        photometric: Distort brightness, contrast, saturation and hue.
        background_replace_prob: Probability of setting the foreground before another background.
        background_class: Class id that counts as background for that.
        class_color_jitter_prob: Probability of giving each class region of a crop a color of its
            own, so that no class is told by its color.
        class_color_jitter_exclude: Names of classes whose color that never changes.
        class_color_jitter_gentle: Names of classes that are recolored less often and keep their
            hue.
        grayscale_prob: Probability of a grayscale crop.
        blur_prob: Probability of a slightly blurred crop.
        eval_size: Short side at which the trained model is to see images, in validation and
            ever after; default: short_side, of classify 8/7 of crop_size, whose middle it sees.
        mean: Mean of each channel; with std and rescale it makes the model's input. Default: that
            of the model to start from; for 8-bit RGB ImageNet's; else the training images' own.
        std: Deviation of each channel, after rescaling.
        rescale: Factor on stored values, before mean and std.
        lr: Peak learning rate of the encoder; default 6e-5 when starting from a model, else 6e-4.
        head_lr_factor: The decoder's rate over the encoder's; default 10 when starting from a
            model, else 1.
        weight_decay: Of AdamW; none on the encoder's norms.
        warmup_steps: Steps of linear warm-up; default 1500 or a twentieth of the run, the less.
        schedule: Course of the rate after warm-up.
        power: Of the poly schedule.
        max_grad_norm: Largest norm of the gradient; 0 leaves it alone.
        ema_decay: Of the moving average of the weights that is evaluated and kept; 0 for none.
        drop_path: Stochastic depth of the last encoder block.
        dropout: Dropout before the classifier.
        class_weight_power: Weigh classes in the loss by frequency to minus this power: 0 weighs all
            alike, 0.5 by the square root of their rarity, 1 in full.
        dice_weight: Weight of the Dice loss beside cross-entropy.
        lovasz_weight: Weight of the Lovasz loss, a stand-in for 1 - IoU, beside cross-entropy.
        focal_gamma: Weigh pixels by (1 - probability of their class) to this power: focal loss.
        ohem_threshold: Online hard example mining: count only pixels whose class has a probability
            below this; 0 counts all pixels.
        ohem_min_kept: ... but at least this fraction of the labeled pixels, the hardest.
        label_smoothing: Fraction of the probability that is spread over all classes; default 0.1 of
            classify, else 0.
        mixup_alpha: Of classify: parameter of the Beta distribution that images are mixed by.
        cutmix_alpha: Of classify: the same for patches; with both, each batch takes either.
        min_area: Of classify: smallest fraction of an image that a crop covers.
        rand_augment: Of classify: random operations on each image.
        random_erasing_prob: Of classify: probability of a rectangle of noise.
        avg_non_ignore: Average the loss over the pixels that count; false averages over all
            pixels, ignored ones included, as the original training did.
        precision: Arithmetic; auto is bfloat16 where the device is fast in it, else float32.
        devices: How many GPUs; CPUs count as one.
        num_workers: Processes that prepare images; default: one per core, at most 8.
        cache: Keep decoded images in memory (each worker its own).
        seed: Of everything random.
        val_every: Epochs between validations.
        patience: Validations without a better mIoU before the training stops; 0 never stops.
        checkpoint_every: Optimizer steps between resume checkpoints.
        log_every: Optimizer steps between rows of metrics.csv.
        tensorboard: Also write TensorBoard logs.
    """

    task: Literal["segment", "classify"] = "segment"
    variant: str = "b0"
    pretrained: str | None = None
    pretrained_encoder_only: bool = False
    freeze_stages: int = 0
    gradient_checkpointing: bool = False
    binary: bool = False
    epochs: int = 50
    max_steps: int | None = None
    batch_size: int = 8
    accumulate_grad_batches: int = 1
    crop_size: int = 512
    short_side: int = 512
    long_side: int = 2048
    scale_min: float = 0.5
    scale_max: float = 2.0
    log_scale: bool = False
    cat_max_ratio: float = 0.75
    rare_class_crop_prob: float = 0.0
    hflip_prob: float = 0.5
    photometric: bool = True
    background_replace_prob: float = 0.0
    background_class: int = 0
    class_color_jitter_prob: float = 0.0
    class_color_jitter_exclude: tuple[str, ...] = ()
    class_color_jitter_gentle: tuple[str, ...] = ()
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0
    eval_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    rescale: float | None = None
    lr: float | None = None
    head_lr_factor: float | None = None
    weight_decay: float = 0.01
    warmup_steps: int | None = None
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 1.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    drop_path: float = 0.1
    dropout: float = 0.1
    class_weight_power: float = 0.0
    dice_weight: float = 0.0
    lovasz_weight: float = 0.0
    focal_gamma: float = 0.0
    ohem_threshold: float = 0.0
    ohem_min_kept: float = 0.0625
    label_smoothing: float | None = None
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    min_area: float = 0.08
    rand_augment: int = 2
    random_erasing_prob: float = 0.25
    avg_non_ignore: bool = True
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    devices: int = 1
    num_workers: int | None = None
    cache: bool = False
    seed: int = 0
    val_every: int = 1
    patience: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    tensorboard: bool = False

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Read a recipe.

        Raises:
            ValueError: The file, a key or a value is wrong; the message names it.
        """
        try:
            entries = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read as a recipe: {error}") from None
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: a recipe is keys and values, such as epochs: 50")
        try:
            return cls.from_dict(entries)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> TrainConfig:
        """From keys and values; a key that is no field is an error."""
        fields = cls.__dataclass_fields__
        for key in entries:
            if key not in fields:
                close = get_close_matches(str(key), fields, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"a recipe has no key {key!r}{hint}")
        types = get_type_hints(cls)
        return cls(**{key: _of_type(key, value, types[key]) for key, value in entries.items()})

    def __post_init__(self) -> None:
        positive = (
            "epochs batch_size accumulate_grad_batches crop_size short_side long_side scale_min "
            "val_every checkpoint_every log_every devices"
        )
        for name in positive.split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, as {self.seed} is")
        for name in ("max_steps", "eval_size", "lr", "head_lr_factor", "rescale"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        for name in (
            "rare_class_crop_prob",
            "hflip_prob",
            "background_replace_prob",
            "class_color_jitter_prob",
            "grayscale_prob",
            "blur_prob",
            "cat_max_ratio",
            "class_weight_power",
            "min_area",
            "random_erasing_prob",
            "ohem_threshold",
            "ohem_min_kept",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction from 0 to 1, not {getattr(self, name)}")
        for name in (
            "mixup_alpha",
            "cutmix_alpha",
            "rand_augment",
            "dice_weight",
            "lovasz_weight",
            "focal_gamma",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, as {getattr(self, name)} is")
        if not 0 <= self.freeze_stages <= 4:
            raise ValueError(f"freeze_stages is a number from 0 to 4, not {self.freeze_stages}")
        for name in ("ema_decay", "drop_path", "dropout", "label_smoothing"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, not {getattr(self, name)}")
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal_gamma and label_smoothing exclude each other; set one to 0")
        if self.scale_max < self.scale_min:
            raise ValueError(f"scale_max {self.scale_max} is below scale_min {self.scale_min}")
        if self.crop_size < 32:
            raise ValueError(f"crop_size must be at least 32, not {self.crop_size}")


def _of_type(key: str, value: Any, expected: Any) -> Any:
    """A YAML value as a field's type; what does not fit is an error that names the key."""
    if get_origin(expected) is Literal:
        if value not in get_args(expected):
            raise ValueError(f"{key} must be one of {', '.join(get_args(expected))}, not {value!r}")
        return value
    kinds = get_args(expected) or (expected,)
    if value is None and NoneType in kinds:
        return None
    if float in kinds and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 6e-5, without a dot, as a word
        except ValueError:
            pass
    if expected == tuple[str, ...]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ValueError(f"{key} must be a list of names, not {value!r}")
    if any(get_origin(kind) is tuple for kind in kinds):
        if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
            return tuple(float(v) for v in value)
        raise ValueError(f"{key} must be a list of numbers, not {value!r}")
    kind = kinds[0]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key} must be of type {kind.__name__}, not {value!r}")
    return value
