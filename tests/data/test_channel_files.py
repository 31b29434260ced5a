"""Images with a file for each channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from conftest import TINY, randomize
from segformer import Predictor, Preprocessing, SegFormer, evaluate
from segformer.cli import main
from segformer.data.check import check_split
from segformer.data.conversion import convert
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset, splits
from segformer.data.tiling import tile
from segformer.image import UnreadableImage, image_name, read_image
from segformer.prediction.listing import find_channel_files
from segformer.training.config import SegmentationTrainConfig
from segformer.training.run import train

PATTERNS = {
    "red": "images/{split}/{parent}/{stem}_B04.tif",
    "green": "images/{split}/{parent}/{stem}_B03.tif",
    "nir": "coarse/{split}/{parent}/{stem}_B8A.tif",
    "swir": "coarse/{split}/{parent}/{stem}_B11.tif",
}
SIZES = {"red": (32, 48), "green": (32, 48), "nir": (16, 24), "swir": (8, 12)}


def write(file: Path, values: np.ndarray, **options: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(file, values, **options)


def draw_channels(root: Path, images: int = 3) -> Path:
    """Bright squares (class 1) in all channels, in a scene with a name of its own."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(images):
            mask = np.zeros((32, 48), np.uint8)
            top, left = (8 * int(n) for n in rng.integers(0, 3, 2))
            mask[top : top + 16, left : left + 16] = 1
            for name, pattern in PATTERNS.items():
                height, width = SIZES[name]
                plane = mask[:: 32 // height, :: 48 // width].astype(np.uint16) * 2000
                noise = rng.integers(100, 300, plane.shape)
                path = pattern.format(split=split, parent="scene", stem=f"tile.{i}")
                write(root / path, (plane + noise).astype(np.uint16))
            file = root / f"masks/{split}/scene/tile.{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    description = {"images": PATTERNS, "names": ["land", "water"]}
    (root / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return root


def change(root: Path, **entries: object) -> Path:
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    description.update(entries)
    (root / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_channels(tmp_path / "d")


def test_files_of_one_image_are_found_together(root: Path) -> None:
    assert splits(root) == ["train", "val"]
    dataset = open_dataset(root, "val")
    assert (dataset.channels, dataset.channel_names) == (4, tuple(PATTERNS))
    assert [sample.name for sample in dataset] == [f"scene/tile.{i}.tif" for i in range(3)]
    sample = dataset.samples[1]
    assert sample.image_files == tuple(
        root / p.format(split="val", parent="scene", stem="tile.1") for p in PATTERNS.values()
    )
    assert sample.mask == root / "masks/val/scene/tile.1.png"
    image, mask = dataset.read(sample)
    assert image.shape == (32, 48, 4)
    assert image.dtype == np.uint16
    assert np.array_equal(image[:, :, 0], tifffile.imread(sample.image_files[0]))
    assert (image[mask == 0].mean(0) < image[mask == 1].mean(0)).all()


def test_smaller_channels_are_resized_bilinearly(root: Path) -> None:
    sample = open_dataset(root, "train").samples[0]
    image, _ = open_dataset(root, "train").read(sample)
    small = Image.fromarray(tifffile.imread(sample.image_files[3]).astype(np.float32))
    expected = np.rint(np.asarray(small.resize((48, 32), Image.Resampling.BILINEAR)))
    assert np.array_equal(image[:, :, 3], expected)


def test_the_check_reports_named_channels(root: Path) -> None:
    report = check_split(open_dataset(root, "train"))
    assert report.errors == []
    lines = report.describe()
    assert [line.split(":")[0] for line in lines] == [f"channel {name}" for name in PATTERNS]
    mean, std = report.mean_and_std
    assert lines[0] == f"channel red: mean {mean[0]:.6g}, std {std[0]:.6g}"


def test_a_missing_file_is_an_error_of_its_image_alone(root: Path) -> None:
    gone = root / "coarse/val/scene/tile.1_B11.tif"
    gone.unlink()
    dataset = open_dataset(root, "val")
    assert len(dataset) == 3
    report = check_split(dataset)
    assert report.errors == [f"{gone}: no such file"]
    assert report.sizes == {(32, 48): 2}

    errors = []
    predictor = Predictor(randomize(SegFormer.from_variant("b0", num_classes=2, in_channels=4)))
    options = {"match_classes": "position", "on_error": lambda _, error: errors.append(str(error))}
    evaluate(dataset, predictor, **options)
    assert errors == [f"{gone}: no such file"]


def test_sizes_that_do_not_fit(root: Path) -> None:
    wrong = root / "coarse/val/scene/tile.1_B11.tif"
    write(wrong, np.zeros((8, 13), np.uint16))
    (error,) = check_split(open_dataset(root, "val")).errors
    assert error.startswith(f"{wrong}: 13 x 8 pixels do not divide the 48 x 32 pixels of {root}")
    write(wrong, np.zeros((8, 12, 3), np.uint16), photometric="rgb")
    (error,) = check_split(open_dataset(root, "val")).errors
    assert error.startswith(f"{wrong}: the array is (8, 12, 3); a file that is one of several")


def test_written_data_sets_keep_names_and_missing_values(root: Path) -> None:
    change(root, nodata=150)
    parts = [open_dataset(root, split) for split in ("train", "val")]
    for written in (convert, tile):
        written(parts, root / "written", overwrite=True)
        found = open_dataset(root / "written", "train")
        assert found.channel_names == tuple(PATTERNS)
        assert found.nodata == 150


def test_a_folder_is_predicted_by_patterns(root: Path, tmp_path: Path) -> None:
    model = randomize(SegFormer.from_variant("b0", num_classes=2, in_channels=4)).eval()
    model.preprocessing = Preprocessing(mean=(500.0,) * 4, std=(500.0,) * 4, rescale=1.0)
    model.save_pretrained(tmp_path / "model")
    patterns = [pattern.replace("{split}", "val") for pattern in PATTERNS.values()]
    words = ["predict", str(root), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "o")]
    assert main([*words, "--channel-files", *patterns]) == 0
    written = sorted(file.name for file in (tmp_path / "o").rglob("*.png"))
    assert written == [f"tile.{i}.png" for i in range(3)]
    sample = open_dataset(root, "val").samples[0]
    expected = Predictor(model)(sample.image_files).label_map
    assert np.array_equal(
        np.asarray(Image.open(next((tmp_path / "o").rglob("tile.0.png")))), expected
    )
    assert main([*words, "--overwrite", "--channel-files", *patterns[:3]]) == 1
    with pytest.raises(ValueError, match="no files like"):
        find_channel_files([root], ["{stem}.jp2"])
    with pytest.raises(ValueError, match="given as a folder"):
        find_channel_files([root / "dataset.yaml"], patterns)


def test_channels_in_one_folder_without_splits(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write(tmp_path / f"{stem}.tif", np.zeros((8, 8), np.uint8))
        write(tmp_path / f"{stem}_nir.tif", np.zeros((8, 8), np.float32))
        write(tmp_path / f"masks/{stem}.tif", np.ones((8, 8), np.uint8))
    (tmp_path / "dataset.yaml").write_text(
        "images: {gray: '{stem}.tif', nir: '{stem}_nir.tif'}\n"
        "names: [a, b]\nmasks: masks/{stem}.tif\n"
    )
    assert splits(tmp_path) == ["all"]
    dataset = open_dataset(tmp_path, "all")
    assert [sample.name for sample in dataset] == ["a.tif", "b.tif"]
    image, mask = dataset.read(dataset.samples[0])
    assert image.dtype == np.float32
    assert mask.all()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"images": ["a"]}, "images must be a path for each channel"),
        ({"images": {"red": "images/{split}/red.tif"}}, "must hold {stem}"),
        ({"images": {"red": "images/{name}/{stem}.tif"}}, "may hold {split} and {parent}"),
        ({"images": {"red": "images/{stem}"}}, "must end with the suffix of the files"),
        ({"images": {"red": "../{stem}.tif"}}, "must be inside the data set's folder"),
        ({"images": {"red": "{stem}_{split}.tif"}}, "{split} must be in a folder"),
        ({"images": {"red": "{parent}x/{stem}.tif"}}, "{parent} must be a folder of its own"),
        ({"images": {"a": "{stem}.tif", "b": "{stem}.tif"}}, "two channels have the same path"),
        ({"images": {"a": "{stem}.tif", "b": "{split}/{stem}.tif"}}, "of all channels, or in none"),
        ({"images": {"a": "x/{split}/{stem}.tif"}}, "images: there is no folder"),
        ({"train": "images/train"}, "images replaces train"),
        ({"channels": 5}, "channels is 5, but images names 4 files"),
        ({"nodata": "low"}, "nodata must be a number, not 'low'"),
    ],
)
def test_wrong_descriptions(root: Path, entries: dict, message: str) -> None:
    change(root, **entries)
    with pytest.raises(DatasetError) as raised:
        open_dataset(root, "train")
    assert message in str(raised.value)


def test_training_and_prediction(root: Path, tmp_path: Path, tiny_variant: str) -> None:
    run = tmp_path / "run"
    config = SegmentationTrainConfig(
        variant=tiny_variant, crop_size=32, short_side=32, max_steps=4, batch_size=2, num_workers=0
    )
    train(root, run, config)
    assert (run / "val_examples.jpg").is_file()
    predictor = Predictor(run / "best")
    assert predictor.preprocessing.channel_names == tuple(PATTERNS)
    sample = open_dataset(root, "val").samples[0]
    prediction = predictor([str(file) for file in sample.image_files])
    assert prediction.source == sample.image_files
    whole = predictor(read_image(sample.image, 4))
    assert np.array_equal(prediction.label_map, whole.label_map)
    names = {file.name for file in prediction.save(tmp_path / "out")}
    assert names == {"tile.0_B04.png", "tile.0_B04_overlay.jpg"}
    with pytest.raises(UnreadableImage, match="and 1 more files: the model takes 4 channels"):
        predictor(list(sample.image_files[:2]))


def test_names_of_sources(tmp_path: Path) -> None:
    assert (
        image_name((tmp_path / "a.tif", tmp_path / "b.tif"))
        == f"{tmp_path / 'a.tif'} and 1 more files"
    )
    with pytest.raises(TypeError, match="a list of paths, one for each channel, not list"):
        image_name([])


def test_deep_channels_for_a_model_of_8_bits(tmp_path: Path) -> None:
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.tif")
        write(files[-1], np.full((8, 8), 257 * (i + 1), np.uint16))
    assert read_image(files)[0, 0].tolist() == [1, 2, 3]
    model = SegFormer(TINY).eval()
    assert Predictor(model)(files).label_map.shape == (8, 8)
