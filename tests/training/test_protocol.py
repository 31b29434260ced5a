"""The recipes of the paper against the published configurations, line by line.

Published: the configurations and the code that NVlabs released with the paper (mmcv 1.x,
mmsegmentation 0.x), the paper's section 4.1 for COCO-Stuff, and PVT v2 for ImageNet.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segformer import Preprocessing, SegFormer
from segformer.checkpoints.formats import NVLABS
from segformer.classes import ClassSet
from segformer.cli import main
from segformer.data.paper_transforms import PaperAugmentation
from segformer.data.transforms import Augmentation, distort
from segformer.image.rescaling import resize_bilinear, resize_nearest
from segformer.training.config import Recipe, SegmentationTrainConfig
from segformer.training.optimization import lr_factor, parameter_groups
from segformer.training.preparation import augmentation
from segformer.training.run import resume, train

VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")

# Images per step, steps, steps between validations, crop, limits of the size, windows
PUBLISHED = {
    **{("ade20k", v): (16, 160_000, 16_000, 512, (2048, 512), None) for v in VARIANTS[:-1]},
    ("ade20k", "b5"): (16, 160_000, 16_000, 640, (2048, 640), None),
    **{("cityscapes", v): (8, 160_000, 4000, 1024, (2048, 1024), (1024, 768)) for v in VARIANTS},
    **{("cocostuff", v): (16, 80_000, None, 512, (2048, 512), None) for v in VARIANTS},
}

PUBLISHED_FOR_ALL = {
    "task": "segment",
    "devices": 8,
    "accumulate_grad_batches": 1,
    "precision": "float32",
    "protocol": "paper",
    "scale_min": 0.5,
    "scale_max": 2.0,
    "log_scale": False,
    "cat_max_ratio": 0.75,
    "hflip_prob": 0.5,
    "photometric": True,
    "rare_class_crop_prob": 0.0,
    "background_replace_prob": 0.0,
    "class_color_jitter_prob": 0.0,
    "grayscale_prob": 0.0,
    "blur_prob": 0.0,
    "eval_size": None,  # the short side
    "mean": None,  # that of ImageNet for a model pretrained there
    "std": None,
    "freeze_stages": 0,
    "binary": False,
    "dropout": 0.1,
    "drop_path": 0.1,
    "lr": 6e-5,
    "head_lr_factor": 10.0,
    "weight_decay": 0.01,
    "warmup_steps": 1500,
    "schedule": "poly",
    "power": 1.0,
    "min_lr": 0.0,
    "max_grad_norm": 0.0,
    "ema_decay": 0.0,
    "avg_non_ignore": False,
    "cross_entropy_weight": 1.0,
    "class_weights": [],
    "tversky_weight": 0.0,
    "boundary_weight": 0.0,
    "dice_weight": 0.0,
    "lovasz_weight": 0.0,
    "focal_gamma": 0.0,
    "ohem_threshold": 0.0,
    "label_smoothing": 0.0,
    "checkpoint_every": 4000,
    "patience": 0,
}


@pytest.mark.parametrize(("dataset", "variant"), PUBLISHED, ids=str)
def test_recipes_of_the_paper(dataset: str, variant: str) -> None:
    config = Recipe.read(dataset, variant).config
    assert isinstance(config, SegmentationTrainConfig)
    images, steps, val_every, crop, sides, windows = PUBLISHED[dataset, variant]
    assert (config.variant, config.pretrained) == (variant, f"nvidia/mit-{variant}")
    assert config.batch_size * config.devices == images
    assert (config.max_steps, config.crop_size) == (steps, crop)
    assert (config.long_side, config.short_side) == sides
    assert (config.eval_window, config.eval_stride) == (windows or (None, None))
    if val_every is not None:
        assert config.val_every_steps == val_every
    values = config.as_dict()
    assert {name: values[name] for name in PUBLISHED_FOR_ALL} == PUBLISHED_FOR_ALL


@pytest.mark.parametrize("variant", VARIANTS)
def test_recipe_of_imagenet(variant: str) -> None:
    """DeiT's options in the version of PVT v2, whose larger variants drop and clip more."""
    values = Recipe.read("imagenet", variant).config.as_dict()
    large = variant in ("b3", "b4", "b5")
    steps_per_epoch = 1_281_167 // 1024
    published = {
        "task": "classify",
        "variant": variant,
        "pretrained": None,
        "epochs": 300,
        "batch_size": 128,
        "devices": 8,
        "crop_size": 224,
        "eval_size": 256,
        "lr": 5e-4 * 1024 / 512,
        "min_lr": 1e-5,
        "head_lr_factor": 1.0,
        "weight_decay": 0.05,
        "decay_norm_and_bias": False,
        "schedule": "cosine",
        "warmup_steps": 5 * steps_per_epoch,
        "max_grad_norm": 1.0 if large else 0.0,
        "drop_path": 0.3 if large else 0.1,
        "label_smoothing": 0.1,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "min_area": 0.08,
        "rand_augment": 2,
        "random_erasing_prob": 0.25,
        "ema_decay": 0.0,
    }
    assert {name: values[name] for name in published} == published


def test_a_recipe_has_a_default_variant_and_names_the_others(tmp_path: Path) -> None:
    assert Recipe.read("ade20k") == Recipe.read("ade20k", "b0")
    with pytest.raises(ValueError, match="variant must be one of b0, b1, .*, not b6"):
        Recipe.read("ade20k", "b6")
    assert Recipe.read("camvid-b0", "b2").config.variant == "b2"  # it has no section of variants
    (tmp_path / "a.yaml").write_text("variant: b1\nvariants: {b1: {crop: 3}}\n")
    with pytest.raises(ValueError, match=r"a.yaml: there is no option 'crop'"):
        Recipe.read(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("variants: [b0, b1]\n")
    with pytest.raises(ValueError, match="variants must hold keys and values for each variant"):
        Recipe.read(tmp_path / "a.yaml")


def test_the_command_line_takes_the_options_of_the_variant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variant, crop in (("b4", 512), ("b5", 640)):
        with pytest.raises(SystemExit):
            main(["train", "--recipe", "ade20k", "--variant", variant, "--help"])
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"Side of the training crops, in pixels. (default: {crop})" in text


def mmcv_lr(iteration: int, base: float, total: int, warmup: int) -> float:
    """Rate of an iteration, counted from 0, of mmcv 1.x: policy poly, warm-up linear from 1e-6.

    The warm-up multiplies the rate that the policy has at the same iteration.
    """
    regular = (base - 0.0) * (1 - iteration / total) ** 1.0 + 0.0
    if iteration >= warmup:
        return regular
    k = (1 - iteration / warmup) * (1 - 1e-6)
    return regular * (1 - k)


@pytest.mark.parametrize("total", [160_000, 80_000])
@pytest.mark.parametrize(
    "iteration", [0, 1, 2, 749, 750, 1498, 1499, 1500, 1501, 16_000, 40_000, 79_999]
)
@pytest.mark.parametrize("base", [6e-5, 6e-4], ids=["encoder", "head"])
def test_learning_rate(total: int, iteration: int, base: float) -> None:
    ours = base * lr_factor(iteration, total, 1500, "poly")
    assert ours == pytest.approx(mmcv_lr(iteration, base, total, 1500), rel=1e-12)


def test_learning_rates_by_number() -> None:
    """The first, the last of the warm-up, the highest, the middle and the last one."""
    rates = {
        i: 6e-5 * lr_factor(i, 160_000, 1500, "poly") for i in (0, 1499, 1500, 80_000, 159_999)
    }
    assert rates == pytest.approx(
        {0: 6e-11, 1499: 5.939825e-05, 1500: 5.94375e-05, 80_000: 3e-05, 159_999: 3.75e-10},
        rel=1e-6,
    )


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_steps_of_a_training(small_dataset: Path, tmp_path: Path, tiny_variant: str) -> None:
    """Rates and validations of a short run, also after it was extended."""
    run = tmp_path / "run"
    config = SegmentationTrainConfig(
        variant=tiny_variant, protocol="paper", crop_size=32, short_side=48, batch_size=2,
        max_steps=7, warmup_steps=3, lr=6e-5, head_lr_factor=10, ema_decay=0, max_grad_norm=0,
        avg_non_ignore=False, val_every=1, val_every_steps=3, num_workers=0, log_every=1,
        precision="float32", eval_window=32, eval_stride=24,
    )  # fmt: skip
    train(small_dataset, run, config)
    rows = rows_of(run)
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    assert rates == pytest.approx([mmcv_lr(i, 6e-5, 7, 3) for i in range(7)], rel=1e-3)
    assert [row["step"] for row in rows if row["val_miou"]] == ["3", "6", "7"]
    resume(run, max_steps=9)
    rows = rows_of(run)
    assert [row["step"] for row in rows if row["val_miou"]] == ["3", "6", "7", "9"]


def published_multipliers(name: str) -> tuple[float, float]:
    """Factors on rate and decay by mmcv's paramwise_cfg: of equally long keys the first by name.

    The keys are pos_block (decay 0), norm (decay 0) and head (rate x 10); a parameter takes the
    first one that its name contains.
    """
    custom = {"pos_block": (1, 0), "head": (10, 1), "norm": (1, 0)}
    for key in sorted(sorted(custom), key=len, reverse=True):
        if key in name:
            return custom[key]
    return (1, 1)


def test_parameter_groups_of_b0() -> None:
    model = SegFormer.from_variant("b0", num_classes=150)
    numbers = {id(p): n for n, p in enumerate(model.parameters())}
    # Each parameter is a tensor of its own number, so that the renamed ones can be recognized
    tagged = {
        name: torch.full(p.shape, float(numbers[id(p)])) for name, p in model.named_parameters()
    }
    theirs = {float(tensor.flatten()[0]): name for name, tensor in NVLABS.from_ours(tagged).items()}
    assert len(theirs) == len(numbers)
    groups = parameter_groups(model, 6e-5, 0.01, 10.0)
    counts: Counter[tuple[float, float]] = Counter()
    for group in groups:
        for parameter in group["params"]:
            name = theirs[numbers[id(parameter)]]
            rate, decay = published_multipliers(name)
            assert group["lr"] == pytest.approx(6e-5 * rate), name
            assert group["weight_decay"] == pytest.approx(0.01 * decay), name
            counts[rate, decay] += 1
    # 13 head tensors; 2 per norm: 16 blocks' two, 4 stages', 4 patch mergings', 6 reductions'
    assert counts[10, 1] == 13
    assert counts[1, 0] == 2 * (2 * 8 + 4 + 4 + 6)
    assert sum(counts.values()) == len(numbers)


# ---- augmentation


def paper_augmentation(**changes: object) -> PaperAugmentation:
    config = Recipe.read("ade20k").config
    assert isinstance(config, SegmentationTrainConfig)
    built = augmentation(config, ClassSet(tuple("abc")))
    assert isinstance(built, PaperAugmentation)
    return PaperAugmentation(**{**vars(built), **changes})


def test_default_recipes_keep_the_fast_augmentation() -> None:
    built = augmentation(SegmentationTrainConfig(), ClassSet(tuple("abc")))
    assert type(built) is Augmentation


def test_random_scale() -> None:
    """Ratios are uniform from 0.5 to 2, limits are truncated, sizes rounded half up."""
    image, mask = np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400), np.uint8)
    augment = paper_augmentation(crop_size=5000, cat_max_ratio=1.0)
    rng = np.random.default_rng(0)
    heights = []
    for _ in range(1000):
        resized, ids = augment.scale_and_crop(image, mask, rng)
        assert resized.shape[:2] == ids.shape
        heights.append(len(ids))
        assert ids.shape[1] == int(400 * len(ids) / 300 + 0.5)
    ratios = np.array(heights) / 512
    assert 0.5 <= ratios.min() < 0.51 and 1.99 < ratios.max() < 2
    assert largest_gap(ratios, np.random.default_rng(1).uniform(0.5, 2, 100_000)) < 0.06


def test_long_images_end_at_the_long_side() -> None:
    image, mask = np.zeros((10, 400, 3), np.uint8), np.zeros((10, 400), np.uint8)
    augment = paper_augmentation(crop_size=9000, cat_max_ratio=1.0, scale_min=2.0, scale_max=2.0)
    resized, _ = augment.scale_and_crop(image, mask, np.random.default_rng(0))
    assert resized.shape == (102, 4096, 3)


def test_resizing_is_opencv_s() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, (300, 400), dtype=np.uint8)
    augment = paper_augmentation(short_side=128, scale_min=1.0, scale_max=1.0, cat_max_ratio=1.0)
    resized, ids = augment.scale_and_crop(image, mask, rng)
    assert np.array_equal(resized, cv2.resize(image, (171, 128)))
    nearest = cv2.resize(mask, (171, 128), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(ids, nearest)


def test_images_of_many_channels() -> None:
    """OpenCV resizes four channels at a time, and neither float64 nor int64."""
    image = np.random.default_rng(0).integers(0, 9000, (20, 30, 13)).astype(np.int64)
    resized = resize_bilinear(image, (16, 24))
    assert (resized.dtype, resized.shape) == (np.float32, (16, 24, 13))
    for channel in range(13):
        expected = cv2.resize(image[:, :, channel].astype(np.float32), (24, 16))
        assert np.array_equal(resized[:, :, channel], expected)
    mask = resize_nearest(image[:, :, 0] << 40, (16, 24))
    expected = cv2.resize(
        image[:, :, 0].astype(np.int32), (24, 16), interpolation=cv2.INTER_NEAREST
    )
    assert np.array_equal(mask, expected.astype(np.int64) << 40)


def test_no_class_fills_three_quarters_of_a_crop() -> None:
    """Crops are drawn until one fits, ten times at most; then an eleventh is taken as it is."""
    mask = np.zeros((64, 256), np.uint8)
    mask[:, 200:] = 1
    mask[:8] = 255  # not counted
    image = np.zeros((64, 256, 3), np.uint8)
    augment = paper_augmentation(
        crop_size=64, short_side=64, scale_min=1.0, scale_max=1.0, hflip_prob=0.0
    )

    def fits(crop: NDArray[np.integer]) -> bool:
        counts = np.bincount(crop[crop != 255], minlength=2)
        return counts.min() > 0 and counts.max() / counts.sum() < 0.75

    chance = np.mean([fits(mask[:, left : left + 64]) for left in range(193)])
    assert 0.1 < chance < 0.3
    rng = np.random.default_rng(0)
    outcomes = [fits(augment.scale_and_crop(image, mask, rng)[1]) for _ in range(3000)]
    failing = (1 - chance) ** 11
    assert 1 - np.mean(outcomes) == pytest.approx(failing, abs=4 * (failing / 3000) ** 0.5)


def test_flip_and_padding() -> None:
    """Half of the crops are mirrored; small images are padded right and below by 0 and 255."""
    image = np.full((32, 48, 3), 200, np.uint8)
    mask = np.tile(np.repeat([0, 1], 24).astype(np.uint8), (32, 1))
    augment = paper_augmentation(
        crop_size=64, short_side=32, scale_min=1.0, scale_max=1.0, cat_max_ratio=1.0
    )
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(400):
        pixels, ids = augment(image, mask, rng, Preprocessing())
        assert pixels.shape == (64, 64, 3) and ids.shape == (64, 64)
        assert (ids[32:] == 255).all() and (ids[:, 48:] == 255).all()
        assert (pixels[32:] == 0).all() and (pixels[:, 48:] == 0).all()
        mirrored += int(ids[0, 0])
    assert mirrored == pytest.approx(200, abs=40)


def published_distortion(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """PhotoMetricDistortion: brightness 32, contrast and saturation 0.5 to 1.5, hue 18."""

    def changed(values: NDArray[np.uint8], factor: float, offset: float) -> NDArray[np.uint8]:
        return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    def contrast(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return changed(values, rng.uniform(0.5, 1.5), 0) if rng.integers(2) else values

    if rng.integers(2):
        image = changed(image, 1, rng.uniform(-32, 32))
    contrast_last = rng.integers(2) == 0
    if not contrast_last:
        image = contrast(image)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[:, :, 1] = changed(hsv[:, :, 1], rng.uniform(0.5, 1.5), 0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return contrast(image) if contrast_last else image


@pytest.mark.parametrize("color", [(128, 128, 128), (220, 40, 40), (30, 200, 90)], ids=str)
def test_photometric_distortion(color: tuple[int, int, int]) -> None:
    """The same distribution of each channel, its mean and of how much is left unchanged."""
    image = np.full((1, 1, 3), color, np.uint8)
    rng = np.random.default_rng(0)
    ours = np.array([distort(image, rng)[0, 0] for _ in range(6000)]).astype(int)
    published = np.array([published_distortion(image, rng)[0, 0] for _ in range(6000)]).astype(int)
    for channel in range(3):
        assert largest_gap(ours[:, channel], published[:, channel]) < 0.036  # alpha 0.001
    assert ours.mean(0) == pytest.approx(published.mean(0), abs=3)
    untouched = [(values == color).all(1).mean() for values in (ours, published)]
    assert untouched[0] == pytest.approx(untouched[1], abs=0.03)


def test_brightness_comes_before_contrast() -> None:
    """Dark pixels with less brightness become 0 whatever the contrast that follows."""
    image = np.full((1, 1, 3), 20, np.uint8)
    rng = np.random.default_rng(0)
    values = np.array([distort(image, rng)[0, 0, 0] for _ in range(4000)])
    # brightness in half of all draws, below -20 in 12/64 of these
    assert (values == 0).mean() == pytest.approx(0.5 * 12 / 64, abs=0.02)


def largest_gap(one: NDArray[np.number], other: NDArray[np.number]) -> float:
    """The statistic of Kolmogorov and Smirnov: largest difference of two distributions."""
    values = np.unique(np.concatenate([one, other]))
    below = (np.searchsorted(np.sort(sample), values, side="right") for sample in (one, other))
    first, second = below
    return float(np.abs(first / len(one) - second / len(other)).max())
