import cv2
import numpy as np
import pytest

from segformer.data.recolor import ClassColorJitter, blur, to_grayscale


@pytest.fixture
def mask() -> np.ndarray:
    """Quarters of the classes 0 to 3, and a corner of ignored pixels."""
    y, x = np.mgrid[:40, :60]
    mask = ((x >= 30) + 2 * (y >= 20)).astype(np.uint8)
    mask[-4:, -4:] = 255
    return mask


@pytest.fixture
def image() -> np.ndarray:
    """One saturated color with a little structure."""
    y, x = np.mgrid[:40, :60]
    return np.stack([150 + y, 40 + x // 3, 60 + 0 * x], axis=2).astype(np.uint8)


def changed(jitter: ClassColorJitter, image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    """(4,) whether the colors of each class differ from those of a round trip through HSV."""
    kept = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), cv2.COLOR_HSV2RGB)
    result = jitter(image, mask, np.random.default_rng(seed))
    return np.array([(result != kept)[mask == i].any() for i in range(4)])


def test_shape_type_and_input(image: np.ndarray, mask: np.ndarray) -> None:
    before = image.copy()
    result = ClassColorJitter()(image, mask, np.random.default_rng(1))
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert np.array_equal(image, before)
    turned = ClassColorJitter()(image[:, ::-1], mask[:, ::-1], np.random.default_rng(1))
    # Also for arrays that are not contiguous; OpenCV rounds by position in the row
    assert np.abs(turned[:, ::-1].astype(int) - result).max() <= 1


def test_the_seed_decides(image: np.ndarray, mask: np.ndarray) -> None:
    results = [ClassColorJitter()(image, mask, np.random.default_rng(s)) for s in (5, 5, 6)]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_excluded_classes_keep_their_colors(image: np.ndarray, mask: np.ndarray) -> None:
    jitter = ClassColorJitter(exclude=frozenset((1, 2)))
    rows = np.array([changed(jitter, image, mask, seed) for seed in range(40)])
    assert not rows[:, 1:3].any()
    assert rows[:, [0, 3]].any(0).all()


def test_probabilities(image: np.ndarray, mask: np.ndarray) -> None:
    jitter = ClassColorJitter(gentle=frozenset((3,)))
    fractions = np.mean([changed(jitter, image, mask, seed) for seed in range(600)], axis=0)
    assert np.abs(fractions[:3] - 0.6).max() < 0.07  # standard deviation 0.02
    assert abs(fractions[3] - 0.18) < 0.06


def test_classes_get_colors_of_their_own(mask: np.ndarray) -> None:
    flat = np.full((40, 60, 3), (180, 60, 60), np.uint8)
    different = 0
    for seed in range(40):
        result = ClassColorJitter()(flat, mask, np.random.default_rng(seed))
        regions = [result[mask == i].astype(int) for i in range(4)]
        assert all(np.ptp(region, axis=0).max() <= 2 for region in regions)
        means = np.array([region.mean(0) for region in regions])
        different += np.ptp(means, axis=0).max() > 20
    assert different > 30


def test_gentle_classes_keep_their_hue(image: np.ndarray, mask: np.ndarray) -> None:
    jitter = ClassColorJitter(gentle=frozenset((0, 1, 2, 3, 255)))
    hue = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[:, :, 0].astype(int)
    seen = 0
    for seed in range(60):
        result = cv2.cvtColor(jitter(image, mask, np.random.default_rng(seed)), cv2.COLOR_RGB2HSV)
        sure = (result[:, :, 1] > 60) & (result[:, :, 2] > 60)  # elsewhere the hue is rounded
        distance = np.abs(result[:, :, 0].astype(int) - hue)[sure]
        seen += len(distance)
        assert np.minimum(distance, 180 - distance).max(initial=0) <= 3
    assert seen > 10_000


def test_grayscale(image: np.ndarray) -> None:
    gray = to_grayscale(image)
    assert gray.shape == image.shape
    assert (gray == gray[:, :, :1]).all()
    assert np.abs(gray[:, :, 0] - image @ [0.299, 0.587, 0.114]).max() <= 1


def test_blur_smooths_and_keeps_the_mean() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    deviations = []
    for seed in range(10):
        blurred = blur(noise, np.random.default_rng(seed))
        assert blurred.shape == noise.shape
        assert abs(blurred.mean() - noise.mean()) < 2
        deviations.append(blurred.std())
    assert max(deviations) < noise.std()
    assert max(deviations) - min(deviations) > 5  # the strength varies
