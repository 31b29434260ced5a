"""Classifiers on images in one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.test_class_folders import draw_classes
from segformer import ClassPredictor, ClassSet, SegFormerClassifier, SegFormerConfig
from segformer.data.class_folders import open_class_folders
from segformer.data.dataset import DatasetError
from segformer.evaluation.classify import ClassScores, class_table, evaluate_classes
from segformer.evaluation.evaluate import Failure
from segformer.evaluation.matching import ClassesDiffer
from segformer.evaluation.metrics import ConfusionMatrix


def classifier(config: SegFormerConfig, names: tuple[str, ...]) -> ClassPredictor:
    torch.manual_seed(1)
    config = SegFormerConfig(**{**vars(config), "num_classes": len(names)})
    return ClassPredictor(SegFormerClassifier(config, ClassSet(names)), device="cpu")


def test_classes_are_matched_by_name(tmp_path: Path, tiny_config: SegFormerConfig) -> None:
    dataset = open_class_folders(draw_classes(tmp_path), "val")
    predictor = classifier(tiny_config, ("Red", "blue", "green"))
    scores = evaluate_classes(dataset, predictor)
    expected = np.zeros((3, 3), int)
    for path, truth in dataset:
        name = next(iter(predictor(path).top(1)))
        expected[truth, dataset.classes.names.index(name.lower())] += 1
    assert np.array_equal(scores.matrix.counts, expected)
    assert scores.top5 == 1
    other = classifier(tiny_config, ("cat", "dog", "cow"))
    with pytest.raises(ClassesDiffer, match=r"\(blue, green, red\).*\(cat, dog, cow\)"):
        evaluate_classes(dataset, other)
    assert evaluate_classes(dataset, other, match_classes="position").images == 6


def test_unreadable_images(tmp_path: Path, tiny_config: SegFormerConfig) -> None:
    root = draw_classes(tmp_path)
    predictor = classifier(tiny_config, ("blue", "green", "red"))
    files = sorted(root.glob("val/*/*.png"))
    files[1].write_bytes(b"broken")
    scores = evaluate_classes(open_class_folders(root, "val"), predictor)
    assert scores.images == 5
    (failure,) = scores.failed
    assert isinstance(failure, Failure)
    assert failure.image == str(files[1])
    for file in files:
        file.write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"none of the \d images .*00\.png"):
        evaluate_classes(open_class_folders(root, "val"), predictor)


def test_table_of_few_and_of_many_classes() -> None:
    few = ClassScores(ConfusionMatrix(ClassSet(("a", "b", "c"), ignore_index=-1)))
    few.matrix.counts[:] = [[2, 1, 0], [0, 4, 0], [0, 0, 0]]
    table = class_table(few)
    assert list(table.columns[0].cells) == ["a", "b"]
    assert list(table.columns[1].cells) == ["66.67%", "100.00%"]
    assert table.caption == "never in this split: c"
    many = ClassScores(ConfusionMatrix(ClassSet.numbered(30)))
    many.matrix.counts[np.arange(30), np.arange(30)] = 1
    many.matrix.counts[29, 0] = 1
    table = class_table(many)
    assert next(iter(table.columns[0].cells)) == "class 29"
    assert list(table.columns[0].cells)[-1] == "(10 classes with higher accuracy)"


def test_a_single_class_is_warned_of() -> None:
    scores = ClassScores(ConfusionMatrix(ClassSet(("a", "b"))))
    scores.matrix.counts[0, 0] = 9
    assert "warning: only one class occurs in this split, 'a'" in str(class_table(scores).caption)
