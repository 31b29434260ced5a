import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from segformer.evaluation.calibration import BINS, Calibration


def test_ece_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(6, 0.4), 5000)
    truth = np.where(rng.random(5000) < 0.7, probs.argmax(1), rng.integers(0, 6, 5000))
    calibration = Calibration()
    for part in np.array_split(np.arange(5000), 7):
        best = probs[part].argmax(1)
        calibration.update(probs[part, best], best == truth[part])
    expected = multiclass_calibration_error(
        torch.from_numpy(probs), torch.from_numpy(truth), 6, n_bins=BINS, norm="l1"
    )
    assert calibration.ece == pytest.approx(expected.item(), abs=1e-6)
    best = probs.max(1).mean() - (probs.argmax(1) == truth).mean()
    assert calibration.overconfidence == pytest.approx(best)


def test_parts_are_merged() -> None:
    rng = np.random.default_rng(1)
    confidence, correct = rng.random(300), rng.random(300) < 0.5
    whole, one, other = Calibration(), Calibration(), Calibration()
    whole.update(confidence, correct)
    one.update(confidence[:100], correct[:100])
    other.update(confidence[100:], correct[100:])
    one.merge(other)
    assert one.as_dict() == whole.as_dict()


def test_the_ends_of_the_bins_and_values_that_are_not_numbers() -> None:
    calibration = Calibration()
    calibration.update(np.array([0.0, 1 / BINS, 1.0, np.nan]), np.array([True, False, True, True]))
    assert calibration.counts.tolist() == [2, *[0] * (BINS - 2), 1]
    assert calibration.as_dict()["bins"][1] == {
        "from": round(1 / BINS, 6), "to": round(2 / BINS, 6), "count": 0,
        "confidence": None, "accuracy": None,
    }  # fmt: skip
    assert np.isnan(Calibration().ece)
    assert Calibration().as_dict()["ece"] is None
