"""Trainings that favor rare classes: oversampling and class weights."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import draw_dataset
from segformer import SegmentationTrainConfig, resume, train
from segformer.training.segmentation import Segmentation
from segformer.training.stopping import TrainingStopped

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 9,
    "num_workers": 0, "log_every": 1, "precision": "float32", "val_every": 2,
}  # fmt: skip


def draw_rare(root: Path) -> Path:
    """Shapes, of which only the first training image has the disc (class 2)."""
    dataset = draw_dataset(root)
    for path in sorted((root / "masks/train").iterdir())[1:]:
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 2, 0, mask)).save(path)
    return dataset


def test_images_with_rare_classes_are_drawn_more_often(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_rare(tmp_path / "shapes")
    config = SegmentationTrainConfig(**QUICK, oversample_threshold=0.5)
    task = Segmentation(dataset, config)
    assert task.factors is not None
    np.testing.assert_allclose(task.factors, [np.sqrt(0.5 * 6), 1, 1, 1, 1, 1])
    loader = task.loader(task.build_model(), 0, 60, 0, 0, 1)
    drawn = [index for batch in loader.batch_sampler for index, _ in batch]
    assert 30 <= drawn.count(0) <= 36  # 120 draws, of which 120 * 1.73 / 6.73 are expected
    plain = Segmentation(dataset, SegmentationTrainConfig(**QUICK))
    assert plain.factors is None


def test_a_resumed_run_draws_the_same_images_and_weights(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = draw_rare(tmp_path / "shapes")
    config = SegmentationTrainConfig(
        **QUICK, oversample_threshold=0.9, class_weights=("auto",), tversky_weight=1,
        boundary_weight=0.1,
    )  # fmt: skip
    train(dataset, tmp_path / "whole", config)

    from segformer.training import loop as module

    step = module.TrainingLoop._step

    def interrupted(self: object, batches: object) -> float:
        loss = step(self, batches)
        if self.state.step == 4:
            signal.raise_signal(signal.SIGINT)
        return loss

    monkeypatch.setattr(module.TrainingLoop, "_step", interrupted)
    with pytest.raises(TrainingStopped):
        train(dataset, tmp_path / "stopped", config)
    monkeypatch.setattr(module.TrainingLoop, "_step", step)
    state = torch.load(tmp_path / "stopped/resume.ckpt", weights_only=True)["task"]
    assert state["factors"].max() > 1
    assert state["class_weights"][2] > 1
    resume(tmp_path / "stopped")
    files = [tmp_path / name / "last/model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
