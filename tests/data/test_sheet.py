"""Sheets of images, statistics and their plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer.data.check import check_split
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset
from segformer.data.sheet import (
    augmented_cells,
    choose_samples,
    mask_cells,
    write_sheet,
)
from segformer.data.statistics import statistics
from segformer.data.statistics_plot import statistics_plot
from segformer.data.transforms import Augmentation
from segformer.image.drawing import fit_text, overlay


def remove_class(root: Path, class_id: int, keep: str) -> None:
    """Remove a class from all training masks but one."""
    for file in (root / "masks/train").iterdir():
        if file.stem != keep:
            mask = np.array(Image.open(file))
            mask[mask == class_id] = 0
            Image.fromarray(mask).save(file)


def test_samples_with_a_class(small_dataset: Path) -> None:
    remove_class(small_dataset, 2, keep="03")
    dataset = open_dataset(small_dataset)
    assert [s.name for s in choose_samples(dataset, 9, class_name="disc")] == ["03.png"]
    chosen = [s.name for s in choose_samples(dataset, 3, seed=1)]
    assert len(chosen) == 3
    assert chosen == sorted(chosen)
    with pytest.raises(DatasetError, match="no class 'water'; classes are noise, box, disc"):
        choose_samples(dataset, 3, class_name="water")
    remove_class(small_dataset, 2, keep="none")
    with pytest.raises(DatasetError, match="the class 'disc' occurs in no mask"):
        choose_samples(dataset, 3, class_name="disc")


def test_cells_show_the_colors_of_the_classes(small_dataset: Path, tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset)
    cells = list(mask_cells(dataset, dataset.samples))
    assert [cell.name for cell in cells] == [sample.name for sample in dataset]
    assert cells[0].class_ids == {0, 1, 2}
    assert cells[0].ignored == pytest.approx(3 / 48)
    assert cells[0].shape == (48, 64)
    assert write_sheet(cells, dataset.classes, tmp_path / "a.jpg", "shapes") == 6
    with Image.open(tmp_path / "a.jpg") as sheet:
        assert sheet.width > 3 * 320


def test_cells_show_the_channels_called_red_green_and_blue(tmp_path: Path) -> None:
    for folder in ("images/train", "masks/train"):
        (tmp_path / folder).mkdir(parents=True)
    image = np.zeros((32, 32, 4), np.uint8)
    image[:, :, 3] = 255
    np.save(tmp_path / "images/train/a.npy", image)
    Image.new("L", (32, 32), 255).save(tmp_path / "masks/train/a.png")
    (tmp_path / "dataset.yaml").write_text(
        "train: images/train\nnames: [soil]\nchannels: [nir, Green, blue, RED]\n"
        "allow_missing_classes: true\n"
    )
    dataset = open_dataset(tmp_path)
    (cell,) = mask_cells(dataset, dataset.samples)
    shown = np.asarray(cell.image)  # darkened to a third, as it is not labeled
    assert shown.reshape(-1, 3).mean(0).tolist() == [85, 0, 0]


def test_worst_images_are_shown_with_what_is_wrong(small_dataset: Path, tmp_path: Path) -> None:
    (small_dataset / "masks/train/01.png").unlink()
    (small_dataset / "images/train/02.png").write_bytes(b"broken")
    report = check_split(open_dataset(small_dataset))
    complaints = {sample.name: words for sample, words in report.complaints}
    assert list(complaints) == ["01.png", "02.png"]
    samples = [sample for sample, _ in report.complaints]
    no_mask, no_image = mask_cells(report.dataset, samples, complaints)
    assert no_mask.complaint == "01.png: there is no mask for this image"
    assert no_mask.image is not None
    assert no_image.image is None
    write_sheet([no_mask, no_image], report.dataset.classes, tmp_path / "worst.png", "worst")
    assert (np.asarray(Image.open(tmp_path / "worst.png")) == (190, 0, 0)).all(2).any()


def test_augmented_crops_are_those_of_the_seed(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    augmentation = Augmentation(crop_size=32, short_side=48, background_replace_prob=0.5)
    first, again, other = (
        list(augmented_cells(dataset, dataset.samples, augmentation, seed)) for seed in (1, 1, 2)
    )
    assert first[0].shape == (32, 32)
    assert all((a.image == b.image).all() for a, b in zip(first, again, strict=True))
    assert any((a.image != b.image).any() for a, b in zip(first, other, strict=True))


def test_unlabeled_pixels_are_dark_and_long_names_are_cut() -> None:
    image = np.full((4, 4, 3), 90, np.uint8)
    ids = np.zeros((4, 4), np.int64)
    ids[:2] = 255
    shown = overlay(image, ids, np.array([[255, 0, 0]], np.uint8), opacity=0.5)
    assert (shown[0] == 30).all()
    assert (shown[3] == (173, 45, 45)).all() or (shown[3] == (172, 45, 45)).all()
    from PIL import ImageFont

    font = ImageFont.load_default(14)
    cut = fit_text("frankfurt_000000_000294_leftImg8bit.png", font, 150)
    assert "..." in cut
    assert font.getlength(cut) <= 150


def test_statistics(small_dataset: Path, tmp_path: Path) -> None:
    remove_class(small_dataset, 2, keep="03")
    report = check_split(open_dataset(small_dataset))
    entries = json.loads(json.dumps(statistics([report])))
    train = entries["splits"]["train"]
    images = np.stack([np.array(Image.open(f)) for f in (small_dataset / "images/train").iterdir()])
    assert train["channels"]["mean"] == pytest.approx(images.mean((0, 1, 2)).tolist())
    assert train["channels"]["std"] == pytest.approx(images.std((0, 1, 2)).tolist())
    assert train["channels"]["mean_of_1"][0] == pytest.approx(images[..., 0].mean() / 255)
    assert train["sizes"] == [{"width": 64, "height": 48, "images": 6}]
    assert train["cooccurrence"] == [[6, 6, 1], [6, 6, 1], [1, 1, 1]]
    assert [row["images"] for row in train["class_frequencies"]] == [6, 6, 1]
    assert train["not_labeled"] == pytest.approx(3 / 48)
    statistics_plot([report], tmp_path / "stats.png")
    drawn = np.asarray(Image.open(tmp_path / "stats.png").convert("RGB"))
    box_color = report.dataset.classes.palette[1]
    assert (drawn == box_color).all(2).sum() > 50
