"""Averages of logits over frames, in float64, and where scenes begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segformer import Predictor, SegFormer
from segformer.prediction.video.smoothing import LogitSmoothing


def dark(level: int = 40, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_average_is_exponential(kind: object) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 2, 4, 6, 8))  # frames, views, classes, rows, columns
    smoothing = LogitSmoothing(0.7)
    for number in range(5):
        found = smoothing(dark(), [kind(view.copy()) for view in logits[number]])  # type: ignore[operator]
        weights = [0.7**number, *(0.3 * 0.7 ** (number - i) for i in range(1, number + 1))]
        expected = np.tensordot(weights, logits[: number + 1], 1)
        np.testing.assert_allclose(np.stack([np.asarray(view) for view in found]), expected)
    assert smoothing.scenes == 1


def test_a_cut_starts_the_average_again(photograph: np.ndarray) -> None:
    smoothing = LogitSmoothing(0.9)
    rng = np.random.default_rng(0)
    zeros, ones = np.zeros((2, 4, 4)), np.ones((2, 4, 4))
    for shift in range(0, 60, 6):  # a fast pan with noise is one scene
        noise = rng.normal(0, 12, (300, 300, 3))
        frame = np.clip(photograph[100:400, shift : shift + 300] + noise, 0, 255)
        smoothing(frame.astype(np.uint8), [zeros])
    assert smoothing.scenes == 1
    (after,) = smoothing(np.ascontiguousarray(255 - photograph[100:400, :300]), [ones])
    assert smoothing.scenes == 2
    np.testing.assert_array_equal(after, ones)


def test_another_size_starts_the_average_again() -> None:
    smoothing = LogitSmoothing(0.5)
    smoothing(dark(), [np.zeros((2, 4, 4))])
    (found,) = smoothing(dark(size=(80, 60)), [np.ones((2, 8, 4))])
    assert smoothing.scenes == 2
    assert (found == 1).all()


def test_a_predictor_uses_what_the_filter_returns(tiny_model: SegFormer) -> None:
    predictor = Predictor(tiny_model, device="cpu", size=(32, 32), flip=True, scales=(1, 2))
    seen: list[int] = []

    def only_class_three(image: np.ndarray, views: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(len(views))
        wanted = torch.zeros(5)
        wanted[3] = 9
        return [0 * logits + wanted[:, None, None] for logits in views]

    predictor.logits_filter = only_class_three
    assert (predictor(dark()).label_map == 3).all()
    assert seen == [4]


def test_smoothing_lessens_flicker(tiny_model: SegFormer, tmp_path: Path) -> None:
    """Frames of one scene with noise: labels that change between them."""
    pytest.importorskip("av", reason="the extra video is not installed")
    from prediction.clips import pan, write_clip
    from segformer import predict_video

    rng = np.random.default_rng(0)
    (scene,) = pan(1)
    noisy = [np.clip(scene + rng.normal(0, 30, scene.shape), 0, 255) for _ in range(12)]
    clip = write_clip(
        tmp_path / "clip.mkv", [f.astype(np.uint8) for f in noisy], codec="ffv1", pix_fmt="bgr0"
    )
    flicker = {}
    for weight in (0.0, 0.8):
        maps: list[np.ndarray] = []
        predict_video(
            Predictor(tiny_model, device="cpu", size=(48, 64)),
            clip,
            tmp_path / f"{weight}.mp4",
            smoothing=weight,
            on_frame=lambda p, _, maps=maps: maps.append(p.label_map),
        )
        labels = np.stack(maps)
        flicker[weight] = (labels[1:] != labels[:-1]).mean()
    assert flicker[0.8] < 0.6 * flicker[0.0], flicker
