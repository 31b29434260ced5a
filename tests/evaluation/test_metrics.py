import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.functional.classification import multiclass_jaccard_index

from segformer import ClassSet
from segformer.evaluation.metrics import ConfusionMatrix

FOUR = ClassSet(("a", "b", "c", "d"))


def test_by_hand() -> None:
    """Class d is in neither; the last pixel is not labeled."""
    matrix = ConfusionMatrix(FOUR)
    matrix.update(np.array([0, 0, 0, 1, 1, 255]), np.array([0, 0, 1, 1, 2, 3]))
    assert matrix.counts.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = matrix.scores()
    assert scores.iou[:3].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert np.isnan(scores.iou[3])
    assert scores.miou == pytest.approx(1 / 3)
    assert scores.accuracy[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert np.isnan(scores.accuracy[2:]).all()
    assert scores.mean_accuracy == pytest.approx(7 / 12)
    assert scores.dice[:3].tolist() == pytest.approx([4 / 5, 1 / 2, 0])
    assert scores.class_fractions.tolist() == pytest.approx([3 / 5, 2 / 5, 0, 0])
    assert scores.pixel_accuracy == pytest.approx(3 / 5)
    assert scores.as_dict()["classes"]["d"] == {
        "iou": None, "accuracy": None, "dice": None, "fraction": 0.0,
    }  # fmt: skip


def test_an_image_without_labels_changes_nothing() -> None:
    matrix = ConfusionMatrix(FOUR)
    matrix.update(np.full((3, 3), 255), np.zeros((3, 3), int))
    assert matrix.counts.sum() == 0
    scores = matrix.scores()
    assert np.isnan(scores.miou)
    assert np.isnan(scores.pixel_accuracy)
    assert scores.as_dict()["miou"] is None
    assert scores.warnings == ("no pixel of this split is labeled; there is nothing to score",)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 9))
def test_agrees_with_torchmetrics(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, 400)
    predicted = np.where(rng.random(400) < 0.5, truth, rng.integers(0, classes, 400))
    truth[rng.random(400) < 0.1] = 255
    matrix = ConfusionMatrix(ClassSet.numbered(classes))
    for part in range(4):  # in images of 100 pixels
        matrix.update(truth[100 * part :][:100], predicted[100 * part :][:100])
    scores = matrix.scores()
    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    iou = multiclass_jaccard_index(*pair, classes, average="none", ignore_index=255)
    np.testing.assert_allclose(scores.iou, iou, atol=1e-6)
    dice = MulticlassF1Score(classes, average="none", ignore_index=255)(*pair)
    np.testing.assert_allclose(scores.dice, dice, atol=1e-6)
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=255)(*pair)
    assert scores.pixel_accuracy == pytest.approx(accuracy.item(), abs=1e-6)


def test_wrong_input() -> None:
    matrix = ConfusionMatrix(FOUR)
    with pytest.raises(ValueError, match="the mask has shape"):
        matrix.update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(
        ValueError, match="the mask has class ids from 0 to 151, the classes are 0..3"
    ):
        matrix.update(np.array([0, 151]), np.array([0, 0]))


def test_counts_do_not_overflow() -> None:
    matrix = ConfusionMatrix(FOUR)
    matrix.counts[0, 0] = 2**40
    matrix.update(np.zeros(10, np.uint8), np.zeros(10, np.uint8))
    assert matrix.counts[0, 0] == 2**40 + 10


def test_a_single_class_is_warned_of() -> None:
    """100 % of the only class that occurs is not the score of a model."""
    matrix = ConfusionMatrix(ClassSet(("background", "polyp")))
    matrix.update(np.zeros((4, 4), int), np.zeros((4, 4), int))
    scores = matrix.scores()
    assert scores.miou == 1
    assert scores.absent_classes == ("polyp",)
    (warning,) = scores.warnings
    assert "only one class occurs in this split, 'background'" in warning
    assert scores.as_dict()["warnings"] == [warning]
    assert scores.as_dict()["absent_classes"] == ["polyp"]
    matrix.update(np.ones(1, int), np.ones(1, int))
    assert matrix.scores().warnings == ()
    assert matrix.scores().absent_classes == ()


def test_a_class_that_is_predicted_but_never_occurs_lowers_the_mean() -> None:
    """As in mmsegmentation: the union is not empty, so the IoU is 0."""
    matrix = ConfusionMatrix(FOUR)
    matrix.update(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    scores = matrix.scores()
    assert scores.iou[2] == 0
    assert scores.miou == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores.absent_classes == ("c", "d")


def test_few_values_of_many_classes_are_counted_without_a_full_histogram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One image of ImageNet is one value among a million cells."""
    monkeypatch.setattr(np, "bincount", None)
    matrix = ConfusionMatrix(ClassSet.numbered(1000))
    for truth, predicted in ((3, 7), (3, 7), (999, 0)):
        matrix.update(np.array([truth]), np.array([predicted]))
    assert (matrix.counts[3, 7], matrix.counts[999, 0], matrix.counts.sum()) == (2, 1, 3)
