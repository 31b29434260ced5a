from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from conftest import draw_dataset
from segformer.data.check import check_split, suggested_yaml
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset


def test_a_good_split(small_dataset: Path) -> None:
    seen = []
    report = check_split(open_dataset(small_dataset), lambda: seen.append(1))
    assert report.errors == report.warnings == []
    assert len(seen) == 6
    assert report.sizes == {(48, 64): 6}
    masks = [np.array(Image.open(f)) for f in (small_dataset / "masks/train").iterdir()]
    assert report.pixels.tolist() == [sum((m == c).sum() for m in masks) for c in range(3)]
    assert report.ignored == sum((m == 255).sum() for m in masks)
    assert report.frequencies.sum() == 1


def test_everything_that_can_be_wrong(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "d", train=8)
    images, masks = root / "images/train", root / "masks/train"
    (masks / "00.png").unlink()
    (images / "01.png").unlink()
    Image.new("L", (10, 10)).save(masks / "02.png")
    values = np.array(Image.open(masks / "03.png"))
    values[0, :7], values[1, :2] = 151, 77
    Image.fromarray(values).save(masks / "03.png")
    (images / "04.png").write_bytes((images / "04.png").read_bytes()[:500])
    (masks / "05.png").write_text("not a mask")
    for name in ("06", "07"):
        flat = np.array(Image.open(masks / f"{name}.png"))
        flat[flat == 2] = 0
        Image.fromarray(flat).save(masks / f"{name}.png")
    report = check_split(open_dataset(root))
    assert [error.partition(": ")[0].rpartition("/")[2] for error in report.errors[:5]] == [
        "00.png", "02.png", "03.png", "04.png", "05.png",
    ]  # fmt: skip
    assert "there is no mask for this image" in report.errors[0]
    assert "the mask is 10 x 10 pixels, its image 64 x 48" in report.errors[1]
    assert "77 (2 pixels), 151 (7 pixels)" in report.errors[2]
    assert "01.png: no image belongs to this mask" in report.warnings[0]
    assert "classes without a pixel in split 'train': disc" in report.errors[5]
    assert "error: " + report.errors[5] in report.describe()
    assert suggested_yaml([report]) == "\n".join(
        ["label_mapping:", "  77: 255  # ignored", "  151: 255  # ignored"]
    )
    with pytest.raises(DatasetError, match="cannot be used"):
        report.raise_errors()


def test_nothing_labeled(small_dataset: Path) -> None:
    for mask in (small_dataset / "masks/train").iterdir():
        Image.new("L", (64, 48), 255).save(mask)
    assert check_split(open_dataset(small_dataset)).errors == ["no pixel of any mask is labeled"]


def rewrite_masks(root: Path, change: Callable[[np.ndarray], np.ndarray], suffix: str = "") -> None:
    """Replace each mask by what ``change`` makes of it, perhaps with another suffix."""
    for file in sorted((root / "masks").rglob("*.png")):
        values = change(np.array(Image.open(file)))
        file.unlink()
        Image.fromarray(values).save(file.with_suffix(suffix or ".png"))


def describe(root: Path, **entries: object) -> None:
    entries = {"train": "images/train", "val": "images/val", **entries}
    (root / "dataset.yaml").write_text(yaml.safe_dump(entries))


def test_a_class_that_training_lacks(small_dataset: Path) -> None:
    names = {0: "noise", 1: "box", 2: "disc", 3: "star"}
    describe(small_dataset, names=names)
    report = check_split(open_dataset(small_dataset))
    assert report.errors == [
        "classes without a pixel in split 'train': star; remove them from names, or write "
        "allow_missing_classes: true into dataset.yaml"
    ]
    assert check_split(open_dataset(small_dataset, "val")).errors == []
    describe(small_dataset, names=names, allow_missing_classes=True)
    report = check_split(open_dataset(small_dataset))
    assert report.errors == []
    assert report.warnings == ["classes without a pixel in split 'train': star"]


class TestBlackAndWhite:
    @pytest.fixture
    def root(self, small_dataset: Path) -> Path:
        rewrite_masks(small_dataset, lambda m: np.where(m == 1, 255, 0).astype(np.uint8))
        (small_dataset / "dataset.yaml").unlink()
        return small_dataset

    @pytest.mark.parametrize("names", [None, ["background", "foreground"]])
    def test_255_is_the_foreground(
        self, root: Path, names: list[str] | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        if names:
            describe(root, names=names)
        for split in ("train", "val"):
            dataset = open_dataset(root, split)
            assert dataset.classes.names == ("background", "foreground")
            with caplog.at_level(logging.INFO, logger="segformer"):
                report = check_split(dataset)
            assert report.errors == report.warnings == []
            masks = [np.array(Image.open(f)) for f in (root / "masks" / split).iterdir()]
            assert report.pixels[1] == sum((m == 255).sum() for m in masks)
            assert report.ignored == 0
        assert "0 is 'background', 255 is 'foreground'" in caplog.text

    def test_an_explicit_meaning_is_kept(self, root: Path) -> None:
        describe(root, names=["background", "thing"], ignore_index=255)
        (error,) = check_split(open_dataset(root)).errors
        assert "without a pixel in split 'train': thing" in error
        assert "if they are 'thing', remove ignore_index" in error
        describe(root, names=["thing", "background"], label_mapping={255: 0, 0: 1})
        report = check_split(open_dataset(root))
        assert report.errors == []
        assert 0 < report.pixels[0] < report.pixels[1]

    def test_a_single_1_shows_that_255_is_ignored(self, root: Path) -> None:
        file = sorted((root / "masks/train").iterdir())[3]
        values = np.array(Image.open(file))
        values[0, 0] = 1
        Image.fromarray(values).save(file)
        describe(root, names=["background", "thing"])
        report = check_split(open_dataset(root))
        assert report.pixels[1] == 1
        assert report.ignored > 0

    def test_jpeg(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        truth = [np.array(Image.open(f)) == 255 for f in sorted((root / "masks/train").iterdir())]
        rewrite_masks(root, lambda m: m, ".jpg")
        dataset = open_dataset(root)
        assert dataset.classes.names == ("background", "foreground")
        with caplog.at_level(logging.INFO, logger="segformer"):
            assert check_split(dataset).errors == []
        assert "6 masks are JPEG" in caplog.text
        for sample, mask in zip(dataset, truth, strict=True):
            assert (dataset.read(sample)[1] == mask).mean() > 0.99
        describe(root, names=["a", "b", "c"])
        assert (
            "JPEG changes the values of a mask, so 3 classes"
            in (check_split(open_dataset(root)).errors[0])
        )

    def test_only_one_class(self, root: Path) -> None:
        rewrite_masks(root, lambda m: 0 * m)
        errors = check_split(open_dataset(root)).errors
        assert "the only class is 'background'; a model needs at least two" in errors[0]
        describe(root, names=["background", "thing"], allow_missing_classes=True)
        warnings = check_split(open_dataset(root, "val")).warnings
        assert "all labeled pixels of split 'val' are 'background'" in warnings[-1]


COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)


class TestColoredMasks:
    @pytest.fixture
    def root(self, small_dataset: Path) -> Path:
        rewrite_masks(small_dataset, lambda m: COLORS[np.where(m == 255, 0, m)])
        (small_dataset / "dataset.yaml").unlink()
        return small_dataset

    def test_the_suggestion_can_be_pasted(self, root: Path) -> None:
        reports = [check_split(open_dataset(root, split)) for split in ("train", "val")]
        assert "colors instead of class ids" in reports[0].errors[0]
        suggestion = suggested_yaml(reports)
        assert "  background: [0, 0, 0]  # " in suggestion
        (root / "dataset.yaml").write_text(suggestion)
        dataset = open_dataset(root)
        assert dataset.classes.names == ("background", "class 1", "class 2")
        report = check_split(dataset)
        assert report.errors == []
        assert suggested_yaml([report]) == ""
        _, ids = dataset.read(dataset.samples[0])
        stored = np.array(Image.open(dataset.samples[0].mask))
        assert np.array_equal(np.array(dataset.classes.palette)[ids], stored)

    def test_names_are_not_guessed(self, root: Path) -> None:
        describe(root, names=["noise", "box", "disc"])
        suggestion = suggested_yaml([check_split(open_dataset(root))])
        assert "write a class name, or ignore, in front of each color" in suggestion
        with (root / "dataset.yaml").open("a") as file:
            file.write(suggestion)
        with pytest.raises(DatasetError, match="palette: there is no class 'class of color 1'"):
            open_dataset(root)

    @pytest.mark.parametrize(
        "palette",
        [
            COLORS.tolist(),
            {"noise": [0, 0, 0], "disc": [0, 128, 0], "box": [128, 0, 0]},
            {2: [0, 128, 0], 0: [0, 0, 0], 1: [128, 0, 0]},
        ],
    )
    def test_palette(self, root: Path, palette: object) -> None:
        describe(root, names=["noise", "box", "disc"], palette=palette)
        dataset = open_dataset(root)
        assert dataset.classes.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
        for sample in dataset:
            stored = np.array(Image.open(sample.mask))
            assert np.array_equal(COLORS[dataset.read(sample)[1]], stored)

    def test_ignored_and_unknown_colors(self, root: Path) -> None:
        palette = {"box": [128, 0, 0], "disc": [0, 128, 0], "ignore": [0, 0, 0]}
        describe(root, names=["box", "disc"], palette=palette)
        report = check_split(open_dataset(root))
        assert report.errors == []
        assert report.ignored > 0
        file = root / "masks/train/02.png"
        stored = np.array(Image.open(file))
        stored[0, :7] = (1, 2, 3)
        Image.fromarray(stored).save(file)
        (error,) = check_split(open_dataset(root)).errors
        assert "02.png: colors that are not in the palette: [1, 2, 3] (7 pixels)" in error

    def test_class_ids_stored_as_rgb_beside_a_palette(self, root: Path) -> None:
        ids = {color: i for i, color in enumerate(map(tuple, COLORS.tolist()))}
        rewrite_masks(
            root,
            lambda m: np.repeat(
                np.array([[ids[tuple(v)] for v in row] for row in m.tolist()], np.uint8)[..., None],
                3,
                axis=2,
            ),
        )
        describe(root, names=["noise", "box", "disc"], palette=COLORS.tolist())
        assert check_split(open_dataset(root)).errors == []


def test_many_channels_are_suggested(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "d")
    for file in sorted((root / "images").rglob("*.png")):
        values = np.zeros((48, 64, 13), np.int16)
        tifffile.imwrite(file.with_suffix(".tif"), values, photometric="minisblack")
        file.unlink()
    report = check_split(open_dataset(root))
    assert report.errors == [
        "6 images have 13 channels, the data set is read with 3; write channels: 13 into "
        "dataset.yaml"
    ]
    assert suggested_yaml([report]) == "channels: 13"


def test_values_in_the_order_of_the_classes_are_suggested(small_dataset: Path) -> None:
    rewrite_masks(small_dataset, lambda m: np.where(m == 255, 255, 50 * m).astype(np.uint8))
    suggestion = suggested_yaml([check_split(open_dataset(small_dataset))])
    assert yaml.safe_load(suggestion) == {"label_mapping": {0: 0, 50: 1, 100: 2}}


def test_a_test_split_without_masks(small_dataset: Path) -> None:
    (small_dataset / "dataset.yaml").unlink()
    shutil.copytree(small_dataset / "images/val", small_dataset / "images/test")
    report = check_split(open_dataset(small_dataset, "test"))
    assert report.errors == []
    assert "split 'test' has no masks" in report.warnings[0]


def test_orientation_that_sizes_cannot_tell(small_dataset: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    file = small_dataset / "images/train/02.png"
    Image.open(file).save(file, exif=exif)
    (warning,) = check_split(open_dataset(small_dataset)).warnings
    assert warning.startswith("02.png: EXIF turns the image")


def test_images_of_different_types(small_dataset: Path) -> None:
    file = small_dataset / "images/train/02.png"
    deep = np.array(Image.open(file)).astype(np.uint16) * 257
    file.unlink()
    tifffile.imwrite(file.with_suffix(".tif"), deep, photometric="rgb")
    (warning,) = check_split(open_dataset(small_dataset)).warnings
    assert "different types: uint16, uint8" in warning
