"""The plan of a training: it is what the training becomes, and nothing is written for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import draw_dataset
from data.test_class_folders import draw_classes
from segformer import ClassificationTrainConfig, SegmentationTrainConfig, train
from segformer.cli import main
from segformer.training import plan as module
from segformer.training.folder import RunFolder
from segformer.training.plan import Measured, Plan
from segformer.training.run import plan

QUICK = {
    "variant": "tiny", "crop_size": 32, "batch_size": 2, "num_workers": 0, "precision": "float32",
    "loggers": ("csv",),
}  # fmt: skip


def test_the_plan_is_what_happens(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    before = sorted(tmp_path.rglob("*"))
    config = SegmentationTrainConfig(**QUICK, short_side=48, epochs=4, val_every=2)
    planned = plan(dataset, config)
    assert sorted(tmp_path.rglob("*")) == before
    assert (planned.training_images, planned.validation_images) == (6, 2)
    assert (planned.steps, planned.validations) == (12, 2)
    assert planned.measured.step_seconds > 0
    assert planned.measured.validation_seconds > 0
    train(dataset, tmp_path / "run", config)
    assert RunFolder(tmp_path / "run").read_recipe()[1] == planned.config
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert int(rows[-1]["step"]) == planned.steps
    assert len([row for row in rows if row["val_miou"]]) == planned.validations


def test_the_plan_of_a_classifier(tmp_path: Path, tiny_variant: str) -> None:
    planned = plan(draw_classes(tmp_path / "colors"), ClassificationTrainConfig(**QUICK, epochs=1))
    assert planned.measured.validation_seconds > 0
    assert planned.table.row_count == 8


def test_its_arithmetic(tmp_path: Path) -> None:
    """100 images in steps of 8 on 2 devices, a validation every 2 of 8 epochs."""
    config = SegmentationTrainConfig(
        batch_size=2, accumulate_grad_batches=2, val_every=2, max_steps=100, lr=1e-4,
        head_lr_factor=10, warmup_steps=5, devices=2,
    )  # fmt: skip
    measured = Measured(step_seconds=3.0, validation_seconds=60.0, memory=module.GIB, free=None)
    planned = Plan(config, measured, 10**6, ("a", "b"), 100, 10, "cpu")
    assert planned.images_per_step == 8
    assert planned.validations == 4
    assert planned.minutes == pytest.approx(100 * 3 / 60 + 4)


def test_the_command_shows_it_and_writes_nothing(
    tmp_path: Path,
    tiny_variant: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw_dataset(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    words = "train shapes --variant tiny --crop-size 32 --num-workers 0 --batch-size 2".split()
    assert main([*words, "--time", "1m", "--dry-run"]) == 0
    assert "s per step" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert main([*words, "--max-time", "1m", "--max-steps", "3"]) == 1
    assert "give only one of --max-steps and --max-time" in capsys.readouterr().err
