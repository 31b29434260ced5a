"""Pixels without data: a value in dataset.yaml, GDAL's tag, NaN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from conftest import TINY, randomize
from segformer import Predictor, Preprocessing, SegFormer
from segformer.data.check import check_split
from segformer.data.loader import TrainingCrops
from segformer.data.opening import open_dataset
from segformer.data.transforms import Augmentation
from segformer.image import missing_pixels, read_image
from segformer.training.config import SegmentationTrainConfig
from segformer.training.preparation import build_model, resolve

CHANNELS = 13
HOLE = np.s_[4:12, 6:20]


def draw(root: Path, dtype: str, marked: str) -> Path:
    """13 channels of different ranges; a hole of no data in some channels, marked in one way."""
    rng = np.random.default_rng(0)
    value = {"float32": -9999, "int16": -32768, "uint16": 0}[dtype]
    for split in ("train", "val"):
        for i in range(2):
            low = 100 * np.arange(1, CHANNELS + 1)[:, None, None]
            image = (low + rng.uniform(0, low, (CHANNELS, 32, 40))).astype(dtype)
            image[i::5, *HOLE] = np.nan if marked == "nan" else value
            mask = (image[3] > 600).astype(np.uint8)
            tags = [(42113, "s", 0, str(value), True)] if marked == "tag" else []
            for kind, values in (("images", image), ("masks", mask)):
                file = root / f"{kind}/{split}/{i}.tif"
                file.parent.mkdir(parents=True, exist_ok=True)
                kinds = {"photometric": "minisblack", "extratags": tags if values is image else []}
                if values is image:
                    kinds["planarconfig"] = "separate"
                tifffile.imwrite(file, values, **kinds)
    entries = {
        "train": "images/train",
        "val": "images/val",
        "names": ["a", "b"],
        "channels": CHANNELS,
    }
    if marked == "key":
        entries["nodata"] = value
    (root / "dataset.yaml").write_text(yaml.safe_dump(entries))
    return root


WAYS = [
    ("float32", "key"), ("float32", "tag"), ("float32", "nan"),
    ("int16", "key"), ("int16", "tag"), ("uint16", "key"), ("uint16", "tag"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "marked"), WAYS)
def test_pixels_without_data(tmp_path: Path, dtype: str, marked: str) -> None:
    root = draw(tmp_path / "d", dtype, marked)
    dataset = open_dataset(root, "train")
    report = check_split(dataset)
    assert report.errors == []
    hole = np.zeros((32, 40), bool)
    hole[HOLE] = True
    assert report.ignored == 2 * hole.sum()
    stored = [tifffile.imread(sample.image) for sample in dataset]
    valid = np.concatenate([image[:, ~hole] for image in stored], axis=1).astype(np.float64)
    mean, std = report.mean_and_std
    np.testing.assert_allclose(mean, valid.mean(1), rtol=1e-9)
    np.testing.assert_allclose(std, valid.std(1), rtol=1e-6)

    # The trained model is given the statistics and the value, and keeps them
    config = resolve(SegmentationTrainConfig(variant="b0", crop_size=32, max_steps=2), report)
    model = build_model(config, dataset)
    model.save_pretrained(tmp_path / "model")
    loaded = SegFormer.from_pretrained(tmp_path / "model")
    assert loaded.preprocessing == model.preprocessing
    np.testing.assert_allclose(loaded.preprocessing.mean, mean)
    assert (loaded.preprocessing.nodata is not None) == (marked == "key")

    # In training and in prediction, channels without data are the mean: 0
    image, mask = dataset.read(dataset.samples[0])
    assert (mask[hole] == 255).all()
    assert (mask[~hole] < 2).all()
    augmentation = Augmentation(
        crop_size=32, short_side=32, scale_min=1, scale_max=1, hflip_prob=0, cat_max_ratio=1
    )
    crops = TrainingCrops(dataset, augmentation, loaded.preprocessing, seed=0, cache=False)
    pixels, ids = crops[0, 0]
    assert (pixels[0][ids == 255] == 0).all()
    assert pixels[0][ids != 255].abs().max() < 3
    assert pixels[1][ids == 255].abs().max() > 0
    (prepared,) = Predictor(loaded, size=(32, 40))._prepare(dataset.samples[0].image).views
    np.testing.assert_array_equal(prepared, loaded.preprocessing.normalize(image))
    assert (prepared[hole][:, 0] == 0).all()


def test_resizing_does_not_mix_the_value_into_its_neighbors(tmp_path: Path) -> None:
    values = np.full((16, 16, 4), 10, np.int16)
    values[:, 8:] = -9999
    tiny = randomize(SegFormer(replace(TINY, in_channels=4)))
    tiny.preprocessing = Preprocessing(
        size=(24, 24), mean=(0,) * 4, std=(1,) * 4, rescale=1, nodata=-9999
    )
    (view,) = Predictor(tiny)._prepare(values).views
    assert set(np.unique(view)) == {0, 10}


def test_windows_see_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 50, (64, 96, 4)).astype(np.int16)
    values[:20, :30] = -9999
    tiny = randomize(SegFormer(replace(TINY, in_channels=4)))
    tiny.preprocessing = Preprocessing(
        size=None, mean=(25,) * 4, std=(10,) * 4, rescale=1, nodata=-9999
    )
    as_nan = np.where(values == -9999, np.nan, values).astype(np.float32)
    whole = Predictor(tiny, window=96)(values)
    assert np.array_equal(whole.label_map, Predictor(tiny, window=96)(as_nan).label_map)


@pytest.mark.parametrize("tag", ["nan", "-3.4028234663852886e+38", "-3.4e+38", "none", "0"])
def test_values_of_the_tag(tmp_path: Path, tag: str) -> None:
    file = tmp_path / "a.tif"
    values = np.full((8, 8, 5), 7, np.float32)
    values[0] = np.finfo(np.float32).min
    values[1] = 0
    tags = [(42113, "s", 0, tag, True)]
    tifffile.imwrite(file, values, photometric="minisblack", extratags=tags)
    missing = missing_pixels(read_image(file, 5))
    assert missing is not None
    rows = {"-3.4028234663852886e+38": [0], "0": [1]}.get(tag, [])
    assert np.flatnonzero(missing.any(1)).tolist() == rows


def test_8_bit_images_keep_their_values(small_dataset: Path) -> None:
    """0 is also black: only pixels that are 0 in all channels are without data."""
    description = yaml.safe_load((small_dataset / "dataset.yaml").read_text())
    (small_dataset / "dataset.yaml").write_text(yaml.safe_dump({**description, "nodata": 200}))
    dataset = open_dataset(small_dataset, "train")
    plain = replace(dataset, nodata=None)
    for sample in dataset:
        image, mask = dataset.read(sample)
        before, labels = plain.read(sample)
        assert image.dtype == np.uint8
        assert np.array_equal(image, before)
        assert np.array_equal(mask, labels)  # boxes are (200, 60, 60)
    assert missing_pixels(np.full((2, 2, 3), 200, np.uint8), 200).all()


def test_nothing_but_missing_data(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "int16", "key")
    for file in (root / "images/train").iterdir():
        empty = np.full((CHANNELS, 32, 40), -32768, np.int16)
        tifffile.imwrite(file, empty, photometric="minisblack", planarconfig="separate")
    errors = check_split(open_dataset(root, "train")).errors
    assert "no pixel of any image has data in all channels" in errors


def test_a_channel_of_one_value_has_the_deviation_1(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "uint16", "key")
    for file in (root / "images/train").iterdir():
        image = tifffile.imread(file)
        image[2] = 12_345
        tifffile.imwrite(file, image, photometric="minisblack", planarconfig="separate")
    mean, std = check_split(open_dataset(root, "train")).mean_and_std
    assert (mean[2], std[2]) == (12_345, 1)
