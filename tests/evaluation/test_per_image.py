import csv
from pathlib import Path

import numpy as np
import pytest

from segformer import ClassSet
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.per_image import ImageCounts

FIVE = ClassSet(("a", "b", "c, d", 'e "f"', "g"))


def matrix(truth: np.ndarray, predicted: np.ndarray) -> ConfusionMatrix:
    made = ConfusionMatrix(FIVE)
    made.update(truth, predicted)
    return made


def images(seed: int, count: int) -> list[ConfusionMatrix]:
    """Images with some of the classes each, partly ignored."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        some = rng.permutation(5)[: rng.integers(1, 5)]
        truth, predicted = rng.choice(some, 50), rng.choice(some, 50)
        truth[rng.random(50) < 0.2] = 255
        made.append(matrix(truth, predicted))
    return made


def test_scores_are_those_of_the_confusion_matrix_of_an_image() -> None:
    counts = ImageCounts()
    for i, image in enumerate(images(0, 20)):
        scores, expected = counts.add(f"{i}.png", image), image.scores()
        assert scores.miou == pytest.approx(expected.miou)
        assert scores.pixel_accuracy == pytest.approx(expected.pixel_accuracy)
        assert scores.worst_class is not None
        assert scores.worst_iou == pytest.approx(expected.iou[scores.worst_class])
        assert scores.worst_iou == pytest.approx(np.nanmin(expected.iou))
        assert scores.labeled == image.counts.sum()


def test_sums_are_those_of_all_images() -> None:
    made = images(1, 12)
    counts, first, rest = ImageCounts(), ImageCounts(), ImageCounts()
    for i, image in enumerate(made):
        counts.add(str(i), image)
        (first if i < 5 else rest).add(str(i), image)
    whole = sum(image.counts for image in made)
    hits = np.diag(whole)
    unions = whole.sum(0) + whole.sum(1) - hits
    assert np.array_equal(counts.totals(5), [hits, unions])
    assert np.array_equal(counts.dense(0, 12, 5).sum(1), [hits, unions])
    assert np.array_equal(counts.dense(10, 99, 5)[0], [np.diag(m.counts) for m in made[10:]])
    present = np.array([m.counts.sum(1) > 0 for m in made])
    assert np.array_equal(counts.images_of_class(5), present.sum(0))
    first.merge(rest)
    assert first.names == counts.names
    assert np.array_equal(first.totals(5), counts.totals(5))
    assert counts.only({"3", "7"}).names == ["3", "7"]


def test_of_several_worst_classes_the_largest_is_named() -> None:
    truth = np.array([0, 1, 2, 2, 2, 4])
    scores = ImageCounts().add("x", matrix(truth, np.array([1, 0, 4, 4, 4, 4])))
    assert (scores.worst_class, scores.worst_iou) == (2, 0)


def test_the_file_has_a_row_for_each_image(tmp_path: Path) -> None:
    counts = ImageCounts()
    counts.add("scene, 1/a.png", matrix(np.array([2, 2, 2, 3]), np.array([2, 2, 2, 2])))
    counts.add("unlabeled.png", matrix(np.array([255]), np.array([0])))
    counts.write(tmp_path / "per_image.csv", FIVE)
    with (tmp_path / "per_image.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "image": "scene, 1/a.png", "miou": "0.375", "pixel_accuracy": "0.75",
        "worst_class": 'e "f"', "worst_class_iou": "0.0", "labeled_pixels": "4",
    }  # fmt: skip
    assert (second["miou"], second["worst_class"], second["labeled_pixels"]) == ("", "", "0")


def test_ten_thousand_images_of_150_classes_take_little_memory() -> None:
    classes = ClassSet.numbered(150)
    image = ConfusionMatrix(classes)
    image.update(np.arange(10), np.arange(10))
    counts = ImageCounts()
    for i in range(200):
        counts.add(str(i), image)
    assert sum(entry.nbytes for entry in counts.entries) / 200 * 10_000 < 4e6
