import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer.data.errors import DatasetError
from segformer.data.splitting import (
    group_samples,
    parse_fold,
    read_names,
    split_fold,
    split_fraction,
    split_lists,
)

NAMES = [f"scene{i // 10}/{i:03}.jpg" for i in range(100)]


def test_a_fraction_is_divided_without_overlap_and_repeatably() -> None:
    train, val = split_fraction(NAMES, 0.2, seed=3)
    assert len(val) == 20
    assert sorted(train + val) == list(range(100))
    assert split_fraction(NAMES, 0.2, seed=3) == (train, val)
    assert split_fraction(NAMES, 0.2, seed=4) != (train, val)


def test_the_order_of_the_samples_does_not_matter() -> None:
    shuffled = random.Random(1).sample(NAMES, len(NAMES))
    _, val = split_fraction(NAMES, 0.2)
    _, again = split_fraction(shuffled, 0.2)
    assert {NAMES[i] for i in val} == {shuffled[i] for i in again}


def test_rare_classes_are_in_both_parts() -> None:
    present = np.zeros((100, 4), bool)
    present[:, 0] = True
    present[::2, 1] = True
    present[[3, 47], 2] = True
    present[[5, 6, 7, 8, 9], 3] = True
    for seed in range(10):
        train, val = split_fraction(NAMES, 0.2, present=present, seed=seed)
        assert len(val) == pytest.approx(20, abs=2)
        assert present[val].sum(0)[3] == 1
        assert present[train].sum(0)[2] >= 1
        assert present[val].sum(0)[1] == pytest.approx(10, abs=2)


def test_groups_are_not_divided() -> None:
    groups = group_samples(NAMES, "folder")
    present = np.random.default_rng(0).random((100, 5)) < 0.3
    train, val = split_fraction(NAMES, 0.3, groups=groups, present=present)
    assert not {groups[i] for i in train} & {groups[i] for i in val}
    assert len(val) == 30


@given(st.integers(2, 7), st.integers(7, 40), st.integers(0, 5), st.booleans())
def test_every_sample_is_in_the_validation_part_of_one_fold(
    folds: int, count: int, seed: int, stratified: bool
) -> None:
    names = [f"{i}.png" for i in range(count)]
    present = np.random.default_rng(seed).random((count, 3)) < 0.4 if stratified else None
    parts = [split_fold(names, k + 1, folds, present=present, seed=seed) for k in range(folds)]
    assert sorted(i for _, val in parts for i in val) == list(range(count))
    for train, val in parts:
        assert sorted(train + val) == list(range(count))
    if not stratified:
        assert max(len(val) for _, val in parts) - min(len(val) for _, val in parts) <= 1


def test_groups_by_expression() -> None:
    names = ["a/patient12_1.png", "b/patient12_2.png", "b/patient7_1.png"]
    assert group_samples(names, r"patient(\d+)") == ["12", "12", "7"]
    assert group_samples(names, r"patient\d+") == ["patient12", "patient12", "patient7"]
    assert group_samples(names, "folder") == ["a", "b", "b"]
    with pytest.raises(DatasetError, match=r"does not match the sample a/patient12_1\.png"):
        group_samples(names, "scene")
    with pytest.raises(DatasetError, match="not a regular expression"):
        group_samples(names, "(")


def test_folds_are_parsed() -> None:
    assert parse_fold(" 2/5 ") == (2, 5)
    for text in ("0/5", "6/5", "1/1", "2", "a/b", "-1/5", "1/5/2"):
        with pytest.raises(DatasetError, match="a fold is written like 2/5"):
            parse_fold(text)


def test_lists(tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.png"]
    assert split_lists(names, ["b/1", "3"]) == ([0, 1], [2, 3])
    assert split_lists(names, ["./images/val/b/1.jpg"], ["a/2.jpg"]) == ([1], [2])
    (tmp_path / "val.txt").write_text("# of the paper\n\nimages\\b\\1.jpg\n 3.png \n")
    assert split_lists(names, read_names(tmp_path / "val.txt")) == ([0, 1], [2, 3])
    for lines, message in (
        (["1.jpg"], "fits 2 samples"),
        (["c/9.jpg"], "there is no such sample"),
        ([], "no samples for validation"),
        (["a/1", "a/2", "b/1", "b/3"], "no samples for training"),
    ):
        with pytest.raises(DatasetError, match=message):
            split_lists(names, lines)
    with pytest.raises(DatasetError, match=r"1 samples are in both lists, the first is a/1\.jpg"):
        split_lists(names, ["a/1"], ["a/1", "a/2"])
    with pytest.raises(DatasetError, match=r"missing\.txt"):
        read_names(tmp_path / "missing.txt")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_fractions_that_make_no_sense(fraction: float) -> None:
    with pytest.raises(DatasetError, match="between 0 and 1"):
        split_fraction(NAMES, fraction)


def test_parts_must_not_be_empty() -> None:
    with pytest.raises(DatasetError, match="no samples for validation"):
        split_fraction(["a", "b"], 0.01)
    with pytest.raises(DatasetError, match="too few samples or groups"):
        split_fraction(NAMES, 0.2, groups=["one"] * 100)
    with pytest.raises(DatasetError, match="there are no samples"):
        split_fraction([], 0.2)
    with pytest.raises(DatasetError, match="not 3/2"):
        split_fold(NAMES, 3, 2)
