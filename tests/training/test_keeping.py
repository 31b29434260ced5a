"""Models of several validations, and what they are chosen by."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import draw_dataset
from segformer import SegFormer, SegmentationTrainConfig, train
from segformer.training.folder import RunFolder
from segformer.training.keeping import keep_model, steps_to_keep


def test_the_last_and_the_best() -> None:
    scores = {10: 0.5, 20: 0.9, 30: 0.9, 40: -1.0, 50: 0.1}
    assert steps_to_keep(scores, 2, 0) == {40, 50}
    assert steps_to_keep(scores, 0, 1) == {20}  # of equal scores the earlier
    assert steps_to_keep(scores, 1, 2) == {20, 30, 50}
    assert steps_to_keep({5: -1.0}, 0, 3) == set()  # without a score none is best


def test_others_are_deleted_and_foreign_folders_stay(tmp_path: Path, tiny_model: SegFormer) -> None:
    (tmp_path / "mine").mkdir()
    scores: dict[int, float] = {}
    for step, score in ((1, 0.3), (2, 0.1), (3, 0.2), (4, 0.0)):
        scores[step] = score
        keep_model(tmp_path, tiny_model, step, scores, last=1, best=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["mine", "step-00000001", "step-00000003", "step-00000004"]
    assert scores == {1: 0.3, 3: 0.2, 4: 0.0}


def test_a_run_keeps_loadable_models(tmp_path: Path, tiny_variant: str) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    config = SegmentationTrainConfig(
        variant="tiny", crop_size=32, short_side=48, batch_size=2, max_steps=12, num_workers=0,
        keep_last=2, keep_best=1, loggers=("csv",),
    )  # fmt: skip
    train(dataset, run, config)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept[-2:] == ["step-00000009", "step-00000012"]
    rows = [row for row in RunFolder(run).read_metrics() if row["val_miou"]]
    best = max(rows, key=lambda row: float(row["val_miou"]))
    assert f"step-{int(best['step']):08}" in kept
    for name in kept:
        assert SegFormer.from_pretrained(run / "checkpoints" / name).classes.names[1] == "box"
    last = (run / "last/model.safetensors").read_bytes()
    assert (run / "checkpoints/step-00000012/model.safetensors").read_bytes() == last
    train(
        dataset,
        run,
        SegmentationTrainConfig(**{**vars(config), "keep_last": 0, "keep_best": 0}),
        overwrite=True,
    )
    assert not (run / "checkpoints").exists()


def test_losses_are_means_and_validations_have_one(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    common = {
        "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 7,
        "num_workers": 0, "precision": "float32", "loggers": ("csv",),
    }  # fmt: skip
    losses = {}
    for every in (1, 3):
        train(dataset, tmp_path / str(every), SegmentationTrainConfig(**common, log_every=every))
        rows = RunFolder(tmp_path / str(every)).read_metrics()
        losses[every] = {int(row["step"]): float(row["loss"]) for row in rows if row["loss"]}
        assert all(float(row["val_loss"]) > 0 for row in rows if row["val_miou"])
    single = list(losses[1].values())
    means = {3: sum(single[:3]) / 3, 6: sum(single[3:6]) / 3, 7: single[6]}
    assert losses[3] == pytest.approx(means, abs=2e-5)
