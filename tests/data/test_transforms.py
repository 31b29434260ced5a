from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segformer import Preprocessing
from segformer.data.transforms import Augmentation, distort, set_before

PLAIN = Augmentation(
    crop_size=64, short_side=48, scale_min=1, scale_max=1, hflip_prob=0, photometric=False
)


def pair(height: int = 48, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """An image whose channels tell where each pixel came from, and its mask of quarters."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, 0 * x], 2).astype(np.uint8)
    return image, ((x > width // 2) + 2 * (y > height // 2)).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 200),
    width=st.integers(8, 200),
    seed=st.integers(0, 1000),
    options=st.fixed_dictionaries(
        {
            "crop_size": st.sampled_from([32, 65]),
            "short_side": st.integers(20, 300),
            "log_scale": st.booleans(),
            "rare_class_crop_prob": st.sampled_from([0.0, 1.0]),
            "background_replace_prob": st.sampled_from([0.0, 1.0]),
        }
    ),
)
def test_any_image_gives_a_whole_crop(height: int, width: int, seed: int, options: dict) -> None:
    image, mask = pair(height, width)
    augmentation = Augmentation(**options)
    another: Callable = lambda: (*pair(width, height), 1)  # noqa: E731
    crop, ids = augmentation(image, mask, np.random.default_rng(seed), Preprocessing(), another)
    side = options["crop_size"]
    assert crop.shape == (side, side, 3)
    assert crop.dtype == np.float32
    assert ids.shape == (side, side)
    assert set(np.unique(ids)) <= {0, 1, 2, 3, 255}
    assert (ids != 255).any()
    assert (crop[ids == 255] == 0).all()  # padding is the mean


def test_same_seed_same_crop() -> None:
    crops = [
        Augmentation(crop_size=32, rare_class_crop_prob=0.5, background_replace_prob=0.5)(
            *pair(), np.random.default_rng((7, 3)), Preprocessing()
        )
        for _ in range(2)
    ]
    assert np.array_equal(crops[0][0], crops[1][0])
    assert np.array_equal(crops[0][1], crops[1][1])


def test_image_and_mask_stay_together() -> None:
    """The quarters of the mask must lie where the channels say they come from."""
    augmentation = Augmentation(crop_size=60, short_side=48, photometric=False)
    inside = total = 0
    for seed in range(30):
        image, mask = augmentation.scale_and_crop(*pair(), np.random.default_rng(seed))
        expected = (image[..., 0] > 127.5) + 2 * (image[..., 1] > 127.5)
        inside += (expected == mask).sum()
        total += mask.size
    assert inside / total > 0.97  # edges move by up to a pixel


def test_scale_and_crop_is_resize_then_crop() -> None:
    image, mask = pair(100, 160)
    augmentation = Augmentation(
        crop_size=100, short_side=100, scale_min=2, scale_max=2, cat_max_ratio=1.0
    )
    crop, _ = augmentation.scale_and_crop(image, mask, np.random.default_rng(0))
    whole = cv2.resize(image, (320, 200), interpolation=cv2.INTER_LINEAR)
    at = (np.abs(whole[:101, :221].astype(int) - crop[0, 0]).sum(2)).argmin()
    top, left = divmod(int(at), 221)
    reference = whole[top : top + 100, left : left + 100].astype(int)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(reference[inner] - crop[inner]).mean() < 3


def test_base_scale_fits_short_and_long_side() -> None:
    image, mask = pair(50, 400)
    augmentation = Augmentation(
        crop_size=64, short_side=100, long_side=200, scale_min=1, scale_max=1
    )
    crop, _ = augmentation.scale_and_crop(image, mask, np.random.default_rng(0))
    assert crop.shape[:2] == (25, 64)  # the long side would be 200, the short 25


def test_crop_avoids_one_class() -> None:
    mask = np.zeros((100, 400), np.uint8)
    mask[:, 380:] = 1
    augmentation = Augmentation(crop_size=40, short_side=100, scale_min=1, scale_max=1)
    free = Augmentation(crop_size=40, short_side=100, scale_min=1, scale_max=1, cat_max_ratio=1.0)
    image = np.zeros((100, 400, 3), np.uint8)

    def mixed(a: Augmentation) -> int:
        crops = (a.scale_and_crop(image, mask, np.random.default_rng(s))[1] for s in range(200))
        return sum(len(np.unique(crop)) > 1 for crop in crops)

    assert mixed(augmentation) > 2 * mixed(free)


def test_focus_finds_rare_classes() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[150:154, 30:34] = 1
    image = np.zeros((200, 200, 3), np.uint8)
    augmentation = Augmentation(
        crop_size=32, short_side=200, scale_min=1, scale_max=1, rare_class_crop_prob=1.0
    )
    crops = [
        augmentation.scale_and_crop(image, mask, np.random.default_rng(s))[1] for s in range(100)
    ]
    found = sum((crop == 1).any() for crop in crops)
    assert 35 < found < 75  # half aim at it


def test_flip_mirrors_both() -> None:
    flipped = Augmentation(
        crop_size=80, short_side=48, scale_min=1, scale_max=1, hflip_prob=1, photometric=False
    )
    straight = Augmentation(
        crop_size=80, short_side=48, scale_min=1, scale_max=1, hflip_prob=0, photometric=False
    )
    rngs = [np.random.default_rng(0), np.random.default_rng(0)]
    a = flipped(*pair(), rngs[0], Preprocessing())
    b = straight(*pair(), rngs[1], Preprocessing())
    assert np.array_equal(a[0][:48], b[0][:48, ::-1])
    assert np.array_equal(a[1][:48], b[1][:48, ::-1])


def test_background_keeps_the_foreground() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 3
    background, behind = np.full((40, 40, 3), 50, np.uint8), np.full((40, 40), 2, np.uint8)
    mixed, ids = set_before(image, mask, background, behind, replaced=0)
    assert (mixed[12:28, 12:28] == 200).all()
    assert (mixed[:8] == 50).all()
    assert (ids[mask == 3] == 3).all()
    assert (ids[mask == 0] == 2).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channels_and_types(dtype: type, channels: int) -> None:
    image = np.random.default_rng(0).uniform(0, 200, (50, 60, channels)).astype(dtype)
    mask = np.zeros((50, 60), np.int32)
    mask[20:30] = 1
    preprocessing = Preprocessing.for_channels(channels)
    for scale in (0.4, 1, 2.5):
        augmentation = Augmentation(
            crop_size=32,
            short_side=50,
            scale_min=scale,
            scale_max=scale,
            background_replace_prob=1.0,
        )
        crop, _ = augmentation(image, mask, np.random.default_rng(1), preprocessing)
        assert crop.shape == (32, 32, channels)
        assert np.isfinite(crop).all()


def test_distortion_stays_within_its_figures() -> None:
    gray = np.full((4, 4, 3), 100, np.uint8)
    values = [distort(gray, np.random.default_rng(s)) for s in range(300)]
    assert all(v.dtype == np.uint8 and v.shape == gray.shape for v in values)
    levels = np.array([v.mean() for v in values])
    assert levels.min() < 60
    assert levels.max() > 150
    assert levels.min() >= 100 * 0.5 - 32 - 2
    assert levels.max() <= (100 + 32) * 1.5 + 2
    assert (np.abs(levels - 100) < 1).mean() > 0.15  # each part has probability one half


def test_images_are_reduced_only_when_they_are_scaled_down() -> None:
    augmentation = Augmentation(short_side=512, long_side=2048, scale_min=0.5, scale_max=2.0)
    ratios = (2.01, 2.0, 1.01, 1.0)
    reductions = [augmentation.choose_reduction(2048, 3000, ratio) for ratio in ratios]
    assert reductions == [1, 2, 2, 4]
    assert augmentation.choose_reduction(300, 8192, 1.0) == 4  # the long side decides
    assert augmentation.choose_reduction(8192 * 8, 8192 * 8, 0.5) == 8
    assert augmentation.possible_reductions(512, 700) == [1, 2]
    assert augmentation.possible_reductions(2100, 3000) == [2, 4, 8]
    assert augmentation.possible_reductions(500, 341) == [1]


@pytest.mark.parametrize("log_scale", [False, True])
def test_the_reduction_is_that_of_the_next_crop(log_scale: bool) -> None:
    augmentation = Augmentation(crop_size=16, short_side=32, log_scale=log_scale)
    for seed in range(20):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        choose = augmentation.next_reduction(rng)
        assert rng.bit_generator.state == same.bit_generator.state
        low, high = (np.log(0.5), np.log(2)) if log_scale else (0.5, 2.0)
        ratio = rng.uniform(low, high)
        scale = (np.exp(ratio) if log_scale else ratio) * 32 / 100
        expected = 1 if scale > 0.5 else 2 if scale > 0.25 else 4
        assert choose(100, 150) == expected


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(100, 300),
    width=st.integers(100, 300),
    seed=st.integers(0, 1000),
    reduction=st.sampled_from([2, 4, 8]),
)
def test_a_reduced_image_stays_with_its_mask(
    height: int, width: int, seed: int, reduction: int
) -> None:
    ratio = 1.0 / reduction
    augmentation = Augmentation(
        crop_size=32,
        short_side=min(height, width),
        long_side=max(height, width),
        scale_min=ratio,
        scale_max=ratio,
    )
    mask = np.arange(height * width, dtype=np.int32).reshape(height, width)
    pad = ((0, -height % reduction), (0, -width % reduction))
    rows, columns = np.divmod(mask, width)
    position = np.stack([np.pad(rows, pad, "edge"), np.pad(columns, pad, "edge")], 2)
    blocks = position.reshape(-1, reduction, position.shape[1] // reduction, reduction, 2)
    image = blocks.mean((1, 3)).astype(np.float32)  # its values tell where it came from
    crop, ids = augmentation.scale_and_crop(image, mask, np.random.default_rng(seed), reduction)
    assert max(ids.shape) <= 32
    from_mask = np.stack(np.divmod(ids, width), 2)
    assert np.abs(crop - from_mask).max() <= reduction  # of stored pixels: one of the crop's
    same = augmentation.scale_and_crop(position[:height, :width], mask, np.random.default_rng(seed))
    assert same[1].shape == ids.shape
    assert np.abs(np.stack(np.divmod(same[1], width), 2) - from_mask).max() <= 2 * reduction
