from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segformer import Preprocessing
from segformer.data.class_folders import class_splits, open_class_folders
from segformer.data.class_transforms import ClassAugmentation, mix, random_operation
from segformer.data.dataset import DatasetError
from segformer.data.loader import ClassCrops


def draw_classes(root: Path, train: int = 6, val: int = 2, size: int = 40) -> Path:
    """Noise of three colors, a folder each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, color in (("blue", 2), ("green", 1), ("red", 0)):
            for i in range(count):
                image = rng.integers(0, 120, (size, size + 8, 3), dtype=np.uint8)
                image[:, :, color] += 120
                path = root / split / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    return root


def test_folders_are_classes(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "colors")
    training = open_class_folders(root)
    assert training.classes.names == ("blue", "green", "red")
    assert len(training) == 18
    image, class_id = training.read(17)
    assert (image.shape, class_id) == ((40, 48, 3), 2)
    assert class_splits(root) == ["train", "val"]


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: no such data set"):
        open_class_folders("nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="0 folders of classes; .* at least two"):
        open_class_folders(tmp_path)
    root = draw_classes(tmp_path / "colors")
    with pytest.raises(DatasetError, match="no split 'test'; there are train, val"):
        open_class_folders(root, "test")
    (root / "val" / "pink").mkdir()
    with pytest.raises(DatasetError, match=r"classes that training lacks: \['pink'\]"):
        open_class_folders(root, "val")


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    channels=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 99),
)
def test_crops_of_any_image(height: int, width: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    augmentation = ClassAugmentation(crop_size=32)
    values = augmentation(image, rng, Preprocessing.for_channels(channels))
    assert values.shape == (32, 32, channels)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


def test_every_operation_keeps_the_shape() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    results = [random_operation(image, rng) for _ in range(120)]
    assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
    assert sum((r != image).any() for r in results) > 100


@pytest.mark.parametrize(
    ("mixup_alpha", "cutmix_alpha"), [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)]
)
def test_mixed_classes_have_the_fraction_of_their_pixels(
    mixup_alpha: float, cutmix_alpha: float
) -> None:
    torch.manual_seed(0)
    class_ids = torch.tensor([0, 1, 2, 3])
    pixels = class_ids[:, None, None, None].float().expand(4, 3, 20, 30).contiguous()
    before = pixels.clone()
    for _ in range(20):
        mixed, targets = mix(pixels, class_ids, 4, mixup_alpha, cutmix_alpha)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        # An image is its class's number, so its mean is the expected class
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(4.0))
    assert torch.equal(pixels, before)


def test_a_broken_image_costs_only_itself(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "colors")
    broken = root / "train" / "blue" / "00.png"
    broken.write_bytes(broken.read_bytes()[:100])
    crops = ClassCrops(open_class_folders(root), ClassAugmentation(32), Preprocessing(), seed=0)
    with caplog.at_level(logging.INFO, logger="segformer"):
        for number in range(3):
            pixels, class_id = crops[(0, number)]
    assert pixels.shape == (3, 32, 32)
    assert int(class_id) == 0
    assert caplog.text.count("skipped") == 1
    assert "00.png" in caplog.text


def test_half_of_the_operations_are_applied() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    plain = ClassAugmentation(32, min_area=1, hflip_prob=0, random_erasing_prob=0, rand_augment=0)
    once = ClassAugmentation(32, min_area=1, hflip_prob=0, random_erasing_prob=0, rand_augment=1)
    changed = 0
    for seed in range(400):
        first, second = (
            augmentation(image, np.random.default_rng(seed), Preprocessing())
            for augmentation in (plain, once)
        )
        changed += not np.array_equal(first, second)
    # Autocontrast and equalization leave noise over the whole range as it is
    assert 0.35 < changed / 400 < 0.58


def test_shear_and_translation_move_one_axis() -> None:
    """Each of the 15 operations on stripes, which show movements across them only."""
    rng_of = [np.random.default_rng(seed) for seed in range(300)]
    across = np.zeros((60, 60, 3), np.uint8)
    across[::2] = 255
    gray = np.array((124, 116, 104))
    kinds = set()
    for rng in rng_of:
        result = random_operation(across, rng)
        filled = (result == gray).all(2)
        rows, columns = filled.all(1).sum(), filled.all(0).sum()
        assert not (rows and columns)
        kinds.add("y" if rows > 5 else "x" if columns > 5 else "")
    assert kinds == {"x", "y", ""}


def test_folder_names_are_printable(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "colors")
    (root / "train" / "red").rename(root / "train" / "\x1b[31mred")
    assert open_class_folders(root).classes.names[0] == "?[31mred"
