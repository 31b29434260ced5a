"""From classification to segmentation, the paper's path, end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import draw_dataset
from data.test_class_folders import draw_classes
from segformer import SegFormer, SegFormerClassifier
from segformer.cli import main
from segformer.data.opening import open_dataset
from segformer.prediction.classifier import ClassPredictor
from segformer.training.config import ClassificationTrainConfig, SegmentationTrainConfig
from segformer.training.run import resume, train
from segformer.training.stopping import TrainingStopped


def config(**changes: object) -> ClassificationTrainConfig:
    entries = {
        "variant": "tiny", "crop_size": 32, "batch_size": 6, "max_steps": 60,
        "lr": 4e-3, "rand_augment": 0, "min_area": 0.5, "mixup_alpha": 0.2, "cutmix_alpha": 0.2,
        "random_erasing_prob": 0.1, "drop_path": 0.0, "ema_decay": 0.9, "num_workers": 0,
        "val_every": 10, "precision": "float32", "loggers": ("csv",),
    }  # fmt: skip
    return ClassificationTrainConfig(**{**entries, **changes})


def test_classify_then_segment(
    tmp_path: Path, tiny_variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    colors, run = draw_classes(tmp_path / "colors"), tmp_path / "run"
    outcome = train(colors, run, config())
    assert outcome is not None
    assert outcome.row["val_top1"] > 0.9
    assert outcome.row["val_top5"] == 1
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.csv", "last", "best", "resume.ckpt", "curves.png",
        "confusion.png", "val_examples.jpg", "report.json", "report.html", "per_image.csv",
        "train.txt", "val.txt",
    }  # fmt: skip
    with (run / "metrics.csv").open() as file:
        assert "val_top1" in next(csv.reader(file))
    model = SegFormerClassifier.from_pretrained(run / "best")
    assert model.classes.names == ("blue", "green", "red")
    assert (model.preprocessing.size, model.preprocessing.crop) == (37, (32, 32))
    image = np.full((50, 60, 3), (20, 200, 20), np.uint8)
    predictor = ClassPredictor(model)
    assert next(iter(predictor(image).top(1))) == "green"
    assert sum(predictor(image).probabilities) == pytest.approx(1)

    out = str(tmp_path / "evaluation")
    assert main(["evaluate", str(colors), "--model", str(run / "best"), "--out", out]) == 0
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["top1"] == pytest.approx(outcome.score)
    words = ["predict", str(colors / "val"), "--model", str(run / "best"), "--out", out]
    assert main(words) == 0
    assert "6 of 6 images classified" in capsys.readouterr().out

    shapes = draw_dataset(tmp_path / "shapes")
    start = SegmentationTrainConfig(
        pretrained=str(run / "best"),
        crop_size=32,
        short_side=48,
        max_steps=2,
        batch_size=2,
        num_workers=0,
    )
    train(shapes, tmp_path / "segmenter", start)
    segmenter = SegFormer.from_pretrained(tmp_path / "segmenter" / "last")
    assert segmenter.classes.names == open_dataset(shapes).classes.names
    for name, tensor in model.encoder.state_dict().items():  # two steps at a small rate away
        torch.testing.assert_close(segmenter.encoder.state_dict()[name], tensor, rtol=0, atol=1e-2)


def test_a_resumed_classifier_ends_the_same(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    colors = draw_classes(tmp_path / "colors")
    recipe = config(
        max_steps=8, checkpoint_every=3, mixup_alpha=0.8, cutmix_alpha=1.0, rand_augment=2
    )
    train(colors, tmp_path / "whole", recipe)
    from segformer.training import loop as module

    step = module.TrainingLoop._step

    def stop_at_5(self: object, batches: object) -> float:
        if self.state.step == 5:
            raise TrainingStopped
        return step(self, batches)

    monkeypatch.setattr(module.TrainingLoop, "_step", stop_at_5)
    with pytest.raises(TrainingStopped):
        train(colors, tmp_path / "cut", recipe)
    monkeypatch.setattr(module.TrainingLoop, "_step", step)
    for split in ("train", "val"):
        (colors / split / "blue").rename(colors / split / "zinc")
    with pytest.raises(ValueError, match="other classes than when the run began: green, red, zinc"):
        resume(tmp_path / "cut")
    for split in ("train", "val"):
        (colors / split / "zinc").rename(colors / split / "blue")
    resume(tmp_path / "cut")
    files = [tmp_path / name / "last" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_frozen_stages_and_recomputing_in_a_training(tmp_path: Path, tiny_variant: str) -> None:
    colors = draw_classes(tmp_path / "colors")
    train(colors, tmp_path / "first", config(max_steps=2))
    start = str(tmp_path / "first" / "last")
    changed = config(max_steps=3, pretrained=start, freeze_stages=3, gradient_checkpointing=True)
    train(colors, tmp_path / "second", changed)
    before = SegFormerClassifier.from_pretrained(start).encoder.state_dict()
    after = SegFormerClassifier.from_pretrained(tmp_path / "second" / "last").encoder.state_dict()
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"3"}
