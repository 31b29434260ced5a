"""The confidence of some pixels is that of the full confidence map."""

import numpy as np
import pytest
import torch

from segformer import Predictor, SegFormer
from segformer.prediction.confidence import sample_confidence
from segformer.prediction.upsample import logits_to_label_map


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize(("size", "most"), [((37, 61), 100), ((5, 900), 64), ((8, 8), 1000)])
def test_values_are_those_of_the_full_map(classes: int, size: tuple[int, int], most: int) -> None:
    torch.manual_seed(0)
    views = [4 * torch.randn(classes, 9, 15), 4 * torch.randn(classes, 6, 11)]
    _, full = logits_to_label_map(views, size, confidence=True)
    assert full is not None
    sampled = sample_confidence(views, size, most)
    assert 0 < sampled.values.size <= most
    assert sampled.values.size >= min(most, full.size) / 4
    np.testing.assert_allclose(sampled.values, sampled.at(full), atol=1e-5)
    assert len(set(np.diff(sampled.rows))) <= 1


def test_predictions_have_it_only_if_it_is_asked_for(tiny_model: SegFormer) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    predictor = Predictor(tiny_model, size=64, confidence=True, flip=True, device="cpu")
    (plain,) = predictor.stream([image])
    assert plain.sampled_confidence is None
    (prediction,) = predictor.stream([image], confidence_pixels=200)
    assert prediction.sampled_confidence is not None
    assert prediction.confidence is not None
    sampled = prediction.sampled_confidence
    np.testing.assert_allclose(sampled.values, sampled.at(prediction.confidence), atol=1e-5)
