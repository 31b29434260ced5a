"""Runs that fail, stop, are extended or replaced, and data sets that change under them."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from conftest import draw_dataset
from segformer import SegFormer, SegmentationTrainConfig, resume, train
from segformer.data.source import open_training
from segformer.files import OutputExists
from segformer.training.folder import RunFolder
from segformer.training.samples import sample_names

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 4,
    "num_workers": 0, "log_every": 1, "precision": "float32", "loggers": ("csv",),
}  # fmt: skip


def config(**changes: object) -> SegmentationTrainConfig:
    return SegmentationTrainConfig(**{**QUICK, **changes})


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a group of processes")
def test_a_failing_training_with_workers_ends(tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "segformer",
                "train",
                str(dataset),
                "--out",
                str(tmp_path / "r"),
            ),
            *("--crop-size", "32", "--short-side", "48", "--batch-size", "2", "--max-steps", "8"),
            *("--num-workers", "1", "--lr", "1e30", "--warmup-steps", "0", "--val-every", "9999"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, log = process.communicate(timeout=500)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1, log
    assert "not finite at step" in log or "the loss is nan at step" in log
    assert "Traceback" not in log


def test_any_exception_shuts_the_workers_down(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    from torch.utils.data import dataloader

    from segformer.training.loop import TrainingLoop

    iterators = []
    begin = dataloader._MultiProcessingDataLoaderIter.__init__

    def record(self: object, *args: object) -> None:
        iterators.append(self)
        begin(self, *args)

    def fail(self: object, batches: object) -> float:
        next(batches)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", record)
    monkeypatch.setattr(TrainingLoop, "_step", fail)
    with pytest.raises(RuntimeError) as caught:
        train(dataset, tmp_path / "run", config(num_workers=1))
    assert caught.tb is not None  # it still refers to the iterator
    assert not any(worker.is_alive() for worker in iterators[0]._workers)


def test_an_image_that_disappears_is_named_without_a_traceback(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = draw_dataset(tmp_path / "shapes", train=1)
    from segformer.training.loop import TrainingLoop

    fit = TrainingLoop.fit

    def fit_without_image(self: TrainingLoop, *args: object) -> None:
        (dataset / "images/train/00.png").unlink()
        fit(self, *args)

    monkeypatch.setattr(TrainingLoop, "fit", fit_without_image)
    with pytest.raises((ValueError, OSError), match=r"00\.png") as caught:
        train(dataset, tmp_path / "run", config(num_workers=1))
    assert "Traceback" not in str(caught.value)


def test_a_validation_that_fails_costs_only_its_score(
    tmp_path: Path,
    tiny_variant: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    from segformer.training.segmentation import Segmentation

    def fail(self: object, model: object, processes: object) -> None:
        assert (tmp_path / "run/resume.ckpt").is_file()  # nothing is lost if the process dies here
        raise ValueError("images/val/00.png: broken")

    monkeypatch.setattr(Segmentation, "validate", fail)
    train(dataset, tmp_path / "run", config())
    assert "validation failed, there is no score: images/val/00.png: broken" in caplog.text
    assert len([row for row in rows_of(tmp_path / "run") if row["loss"]]) == 4
    SegFormer.from_pretrained(tmp_path / "run/last")


def test_a_finished_run_is_extended(tmp_path: Path, tiny_variant: str) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    train(dataset, run, config(warmup_steps=0, schedule="cosine"))
    with pytest.raises(ValueError, match="has done 4 steps; 3 would not extend it"):
        resume(run, max_steps=3)
    resume(run, epochs=4)  # 6 images, batches of 2
    rates = [float(row["lr"]) for row in rows_of(run) if row["lr"]]
    assert len(rates) == 12
    assert rates[3] < rates[4]  # the schedule is that of 12 steps from there on
    assert yaml.safe_load((run / "config.yaml").read_text())["max_steps"] == 12


def test_a_changed_data_set_is_not_resumed(tmp_path: Path, tiny_variant: str) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    train(dataset, run, config())
    (dataset / "images/train/00.png").rename(dataset / "images/train/zz.png")
    (dataset / "masks/train/00.png").rename(dataset / "masks/train/zz.png")
    message = r"1 added \(train/zz.png\); 1 removed \(train/00.png\)"
    with pytest.raises(ValueError, match=message):
        resume(run)


def test_what_a_run_may_replace(tmp_path: Path, tiny_variant: str) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    run.mkdir()
    (run / "report.json").write_text("{}")
    with pytest.raises(OutputExists, match=r"report.json already exists and is not part of a"):
        train(dataset, run, config(), overwrite=True)
    assert (run / "report.json").read_text() == "{}"
    (run / "report.json").unlink()
    train(dataset, run, config())
    (run / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match="or replace it with --overwrite"):
        train(dataset, run, config())
    train(dataset, run, config(max_steps=2), overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"
    assert max(int(row["step"]) for row in rows_of(run)) == 2
    for name in ("resume.ckpt", "last/model.safetensors", "best/model.safetensors"):
        (run / name).unlink()  # as if it had failed before its first checkpoint
    train(dataset, run, config(max_steps=2))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write into"):
        RunFolder(tmp_path / "file" / "run").check(overwrite=False)


def test_variant_and_pretrained_model_must_agree(
    tmp_path: Path, small_dataset: Path, tiny_model: SegFormer
) -> None:
    tiny_model.save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="but variant is b2; set only one of"):
        train(
            small_dataset,
            tmp_path / "run",
            config(variant="b2", pretrained=str(tmp_path / "start")),
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"lovasz_weight": 0.5},
        {"focal_gamma": 2.0},
        {"ohem_threshold": 0.2},
        {"dice_weight": 0.5},
        {"tversky_weight": 0.5},
        {"boundary_weight": 0.5},
        {"cross_entropy_weight": 2.0},
        {"class_weights": "disc=5"},
    ],
)
def test_loss_options_change_the_loss(
    tmp_path: Path, tiny_variant: str, changes: dict[str, object]
) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    for name, options in (("plain", {}), ("changed", changes)):
        train(dataset, tmp_path / name, config(max_steps=1, **options))
    plain, changed = (float(rows_of(tmp_path / name)[0]["loss"]) for name in ("plain", "changed"))
    assert changed != pytest.approx(plain, rel=1e-3)


def test_cached_images_train_the_same(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    for name in ("read", "cached"):
        train(dataset, tmp_path / name, config(cache=str(name == "cached").lower(), max_steps=6))
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("read", "cached")]
    assert losses[0] == losses[1]


def test_float16_trains_with_a_scaled_loss(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    train(dataset, tmp_path / "run", config(precision="float16", device="cpu", max_steps=3))
    state = torch.load(tmp_path / "run/resume.ckpt", weights_only=True)["precision"]
    assert state["scale"] > 0
    assert len([row for row in rows_of(tmp_path / "run") if row["loss"]]) == 3


def test_a_run_divides_its_source_and_resumes_with_the_same_parts(
    tmp_path: Path, tiny_variant: str
) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes", train=8, val=0), tmp_path / "run"
    with pytest.raises(ValueError, match="only all; divide it with --val-fraction"):
        (dataset / "dataset.yaml").unlink()
        for kind in ("images", "masks"):
            (dataset / kind / "train").rename(dataset / kind / "scene")
        train(dataset, run, config())
    outcome = train(dataset, run, config(val_fraction=0.25))
    assert outcome is not None
    held = (run / "val.txt").read_text().splitlines()
    assert len(held) == 2
    assert len((run / "train.txt").read_text().splitlines()) == 6
    # Masks that have changed would be divided in another way
    for mask in sorted((dataset / "masks/scene").iterdir())[:3]:
        Image.new("L", (64, 48), 1).save(mask)
    state = torch.load(run / "resume.ckpt", weights_only=True)["task"]
    parts = open_training(
        dataset, config(val_fraction=0.25), earlier=sample_names(state["samples"])
    )
    assert parts[1] is not None
    assert [sample.name for sample in parts[1]] == held
    with pytest.raises(ValueError, match="3 changed in size"):
        resume(run, max_steps=6)
    lists = config(train_list=str(run / "train.txt"), val_list=str(run / "val.txt"))
    train(dataset, tmp_path / "second", lists)
    assert (tmp_path / "second/val.txt").read_text().splitlines() == held
