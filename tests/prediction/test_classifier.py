"""Options of `ClassPredictor`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from segformer import ClassPredictor, PredictConfig, SegFormerClassifier, SegFormerConfig

IMAGE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


@pytest.fixture
def model(tiny_config: SegFormerConfig) -> SegFormerClassifier:
    torch.manual_seed(0)
    model = SegFormerClassifier(replace(tiny_config, num_classes=4))
    model.preprocessing = replace(model.preprocessing, size=72, crop=(64, 64))
    return model.eval()


def probabilities(model: SegFormerClassifier, config: PredictConfig | None = None) -> np.ndarray:
    return ClassPredictor(model, config, device="cpu")(IMAGE).probabilities


def test_size_replaces_resize_and_crop(model: SegFormerClassifier) -> None:
    expected = replace(model.preprocessing, size=(40, 48), crop=None)
    shown = probabilities(model, PredictConfig(size=(40, 48)))
    assert not np.allclose(shown, probabilities(model))
    model.preprocessing = expected
    assert np.array_equal(shown, probabilities(model))


def test_short_side_keeps_the_crop(model: SegFormerClassifier) -> None:
    shown = probabilities(model, PredictConfig(short_side=80))
    with pytest.raises(ValueError, match="short_side 48 is smaller than the center crop"):
        ClassPredictor(model, PredictConfig(short_side=48))
    model.preprocessing = replace(model.preprocessing, size=80)
    assert np.array_equal(shown, probabilities(model))


def test_flip_averages_both_views(model: SegFormerClassifier) -> None:
    model.preprocessing = replace(model.preprocessing, size=(64, 64), crop=None)
    predictor = ClassPredictor(model, device="cpu")
    mirrored = predictor(np.ascontiguousarray(IMAGE[:, ::-1])).probabilities
    plain = probabilities(model)
    assert not np.allclose(plain, mirrored, atol=1e-5)
    shown = probabilities(model, PredictConfig(flip=True))
    np.testing.assert_allclose(shown, (plain + mirrored) / 2, atol=1e-4)


def test_precision_and_batch_size(model: SegFormerClassifier) -> None:
    config = PredictConfig(precision="bfloat16", batch_size=3)
    predictor = ClassPredictor(model, config, device="cpu")
    assert predictor.batch_size == 3
    assert predictor.runtime.dtype == torch.bfloat16
    assert ClassPredictor(model, config, device="cpu", batch_size=5).batch_size == 5
    model.preprocessing = replace(model.preprocessing, crop=None)  # images of many sizes
    assert ClassPredictor(model, config, device="cpu").batch_size == 1


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (PredictConfig(window=64), "window, stride"),
        (PredictConfig(scales=(0.5, 1.0)), "scales"),
        (PredictConfig(confidence=True), "confidence"),
    ],
)
def test_options_of_segmentation_are_refused(
    model: SegFormerClassifier, config: PredictConfig, name: str
) -> None:
    with pytest.raises(ValueError, match=f"one class per image: {name} cannot be used"):
        ClassPredictor(model, config)
