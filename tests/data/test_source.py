"""Sources that are divided on the command line, and those that are divided already."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import draw_dataset
from data.test_division import draw, names
from segformer.data.dataset import DatasetError
from segformer.data.options import SourceOptions
from segformer.data.source import open_parts, open_split, open_splits, open_training, source_splits


def test_an_undivided_source(tmp_path: Path) -> None:
    draw(tmp_path)
    options = SourceOptions(val_fraction=0.25)
    assert source_splits(tmp_path, SourceOptions()) == ["all"]
    assert source_splits(tmp_path, options) == ["train", "val"]
    train, val = open_parts(tmp_path, options)
    assert (len(train), len(val)) == (15, 5)
    assert names(open_split(tmp_path, "val", options)) == names(val)
    assert names(open_split(tmp_path, "val", options, seed=3)) != names(val)
    with pytest.raises(DatasetError, match="only all; divide it with --val-fraction 0.2"):
        open_training(tmp_path, SourceOptions())


def test_a_resumed_run_keeps_its_parts_and_trains_on_what_is_new(tmp_path: Path) -> None:
    draw(tmp_path)
    options = SourceOptions(fold="2/5", group_by="folder")
    train, val = open_training(tmp_path, options)
    assert val is not None
    earlier = {"train": sorted(names(train))[1:], "val": sorted(names(val))}
    again = open_training(tmp_path, options, earlier=earlier)
    assert again[1] is not None
    assert (names(again[0]), names(again[1])) == (names(train), names(val))


def test_a_source_without_training_images_can_be_divided(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "d", train=0, val=6)
    (root / "dataset.yaml").unlink()
    assert [split for split, _ in open_splits(root, SourceOptions())] == ["val"]
    train, val = open_parts(root, SourceOptions(val_fraction=0.5))
    assert (len(train), len(val)) == (3, 3)


def test_a_divided_source_is_not_divided_again(small_dataset: Path) -> None:
    with pytest.raises(DatasetError, match="divided already, into train, val"):
        open_parts(small_dataset, SourceOptions(val_fraction=0.2))
    with pytest.raises(DatasetError, match="give one of val_fraction, fold and val_list"):
        open_split(small_dataset, "val", SourceOptions(group_by="folder"))


def test_a_split_that_cannot_be_opened_does_not_hide_the_others(small_dataset: Path) -> None:
    for mask in (small_dataset / "images/val").iterdir():
        mask.unlink()
    found = dict(open_splits(small_dataset, SourceOptions()))
    assert not isinstance(found["train"], DatasetError)
    assert isinstance(found["val"], DatasetError)
    with pytest.raises(DatasetError, match="there are no images in this folder"):
        open_parts(small_dataset, SourceOptions())
