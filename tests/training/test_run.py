"""The training itself, on drawn shapes: learning, resuming after a kill, starting from a model."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import draw_dataset
from segformer import SegFormer
from segformer.data.dataset import DatasetError
from segformer.training.config import SegmentationTrainConfig
from segformer.training.run import resume, train
from segformer.training.stopping import TrainingStopped

QUICK = {
    "crop_size": 32,
    "short_side": 48,
    "batch_size": 2,
    "max_steps": 12,
    "num_workers": 0,
    "log_every": 1,
    "precision": "float32",
    "loggers": ("csv",),
}


def config(**changes: object) -> SegmentationTrainConfig:
    return SegmentationTrainConfig(**{"variant": "tiny", **QUICK, **changes})


def rows_of(run: Path) -> list[dict[str, str]]:
    """Metrics without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in r.items() if k not in ("minutes", "images_per_s")} for r in rows]


def test_it_learns_and_leaves_the_run_folder(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes", train=12, val=4)
    run = tmp_path / "run"
    outcome = train(
        dataset,
        run,
        config(
            max_steps=150, batch_size=4, lr=5e-3, scale_min=0.8, scale_max=1.2, dice_weight=0.5,
            class_weights="auto", class_weight_power=0.5, val_every=10, ema_decay=0.9,
            photometric=False, cat_max_ratio=1.0, drop_path=0.0, dropout=0.0, precision="auto",
        ),
    )  # fmt: skip
    assert outcome is not None
    assert outcome.score > 0.5  # a guess of all background has 0.27
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.csv", "last", "best", "resume.ckpt", "curves.png",
        "confusion.png", "val_examples.jpg", "report.json", "report.html", "per_image.csv",
        "train.txt", "val.txt",
    }  # fmt: skip
    rows = rows_of(run)
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])
    best = max(float(row["val_miou"]) for row in rows if row["val_miou"])
    assert json.loads((run / "report.json").read_text())["miou"] == pytest.approx(best, abs=1e-4)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(chart in page for chart in ("training loss", "validation mIoU", "learning rate"))
    model = SegFormer.from_pretrained(run / "best")
    assert model.classes.names == ("noise", "box", "disc")
    assert model.preprocessing.size == 48
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    assert recipe["warmup_steps"] == 7
    assert Path(recipe["dataset"]) == dataset.resolve()
    with pytest.raises(ValueError, match="continue it with --resume"):
        train(dataset, run, config())


def test_killed_anywhere_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """SIGKILL, from outside, twice; weights and metrics must be those of an unbroken run."""
    dataset = draw_dataset(tmp_path / "shapes")
    options = [
        "--crop-size", "32", "--short-side", "48", "--batch-size", "2", "--max-steps", "14",
        "--num-workers", "1", "--log-every", "1", "--checkpoint-every", "3", "--val-every", "2",
        "--accumulate-grad-batches", "2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "segformer", "train"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(
        [*command, str(dataset), "--out", str(whole), *options], check=True, capture_output=True
    )
    start = [*command, str(dataset), "--out", str(broken), *options]
    again = [*command, "--resume", str(broken)]
    for words, rows in ((start, 4), (again, 9)):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            metrics = broken / "metrics.csv"
            if metrics.exists() and len(metrics.read_text().splitlines()) > rows:
                break
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read().decode()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert len(rows_of(broken)) < len(rows_of(whole))
    subprocess.run(again, check=True, capture_output=True)

    assert rows_of(broken) == rows_of(whole)
    for model in ("best", "last"):
        file = Path(model) / "model.safetensors"
        assert (broken / file).read_bytes() == (whole / file).read_bytes()


def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(dataset, whole, config())

    from segformer.training import loop as module

    step = module.TrainingLoop._step

    def interrupted(self: object, batches: object) -> float:
        loss = step(self, batches)
        if self.state.step == 4:
            signal.raise_signal(signal.SIGINT)
        return loss

    monkeypatch.setattr(module.TrainingLoop, "_step", interrupted)
    with pytest.raises(TrainingStopped, match=r"after step 5 of 12; .* train --resume .*stopped"):
        train(dataset, stopped, config())
    monkeypatch.setattr(module.TrainingLoop, "_step", step)
    resume(stopped)
    assert rows_of(stopped) == rows_of(whole)
    assert (stopped / "last/model.safetensors").read_bytes() == (
        whole / "last/model.safetensors"
    ).read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups of this kind")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_stops_cleanly(tmp_path: Path, number: int) -> None:
    """As a terminal sends Ctrl-C and a scheduler its notice: to the workers too."""
    dataset = draw_dataset(tmp_path / "shapes")
    words = [
        sys.executable, "-m", "segformer", "train", str(dataset), "--out", str(tmp_path / "run"),
        "--crop-size", "32", "--short-side", "48", "--batch-size", "2", "--max-steps", "9999",
        "--num-workers", "1", "--log-every", "1", "--val-every", "9999",
    ]  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "run" / "metrics.csv"
    deadline = time.monotonic() + 120
    while process.poll() is None and not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, log = process.communicate(timeout=500)
    assert process.returncode == 130, log
    assert "everything is saved" in log
    assert "Traceback" not in log
    assert (tmp_path / "run" / "resume.ckpt").is_file()


def test_a_bad_data_set_is_refused_before_the_first_step(
    small_dataset: Path, tmp_path: Path, tiny_variant: str
) -> None:
    mask = small_dataset / "masks/train/03.png"
    values = np.array(Image.open(mask))
    values[0, 0] = 151
    Image.fromarray(values).save(mask)
    with pytest.raises(DatasetError, match=r"03.png: values outside the classes: 151 \(1 pixels\)"):
        train(small_dataset, tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def test_without_a_validation_split(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes", val=0)
    entries = yaml.safe_load((dataset / "dataset.yaml").read_text())
    del entries["val"]
    (dataset / "dataset.yaml").write_text(yaml.safe_dump(entries))
    assert train(dataset, tmp_path / "run", config(ema_decay=0)) is None
    SegFormer.from_pretrained(tmp_path / "run" / "last")


def test_tensorboard(tmp_path: Path, tiny_variant: str) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    dataset = draw_dataset(tmp_path / "shapes")
    train(dataset, tmp_path / "run", config(loggers=("tensorboard",), max_steps=3))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert len(events.Scalars("val_miou")) == 1


def test_early_stop(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    train(dataset, tmp_path / "run", config(lr=1e-12, ema_decay=0, patience=2, max_steps=600))
    mious = [float(row["val_miou"]) for row in rows_of(tmp_path / "run") if row["val_miou"]]
    assert len(mious) < 100  # with such a rate only the norms' statistics move, and settle
    best = mious.index(max(mious))
    assert best == len(mious) - 3
    resume(tmp_path / "run")
    assert len([row for row in rows_of(tmp_path / "run") if row["val_miou"]]) == len(mious)


def test_what_cannot_be_built_leaves_no_run(tmp_path: Path, small_dataset: Path) -> None:
    for wrong in (
        {"variant": "b9"},
        {"binary": True},
        {"background_replace_prob": 1, "background_class": 9},
    ):
        with pytest.raises(ValueError):
            train(small_dataset, tmp_path / "run", SegmentationTrainConfig(**{**QUICK, **wrong}))
    assert not (tmp_path / "run").exists()


def test_resuming_needs_no_model_that_it_started_from(
    tmp_path: Path, small_dataset: Path, tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("start")
    train(small_dataset, tmp_path / "run", config(variant=None, pretrained="start", max_steps=2))
    shutil.rmtree("start")
    monkeypatch.chdir(small_dataset)
    resume(tmp_path / "run")


@pytest.mark.parametrize("text", ["a: [", "word", "epochs: 3", "dataset: x\nepochs: 0"])
def test_a_broken_record_of_a_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml: not the configuration of a run"):
        resume(tmp_path)


def test_a_truncated_checkpoint(tmp_path: Path, small_dataset: Path, tiny_variant: str) -> None:
    train(small_dataset, tmp_path / "run", config(max_steps=2))
    checkpoint = tmp_path / "run" / "resume.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    with pytest.raises(ValueError, match=r"resume.ckpt: cannot be read"):
        resume(tmp_path / "run")


def test_binary_training(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    entries = yaml.safe_load((dataset / "dataset.yaml").read_text())
    entries |= {"names": ["rest", "box"], "label_mapping": {2: 0}}
    (dataset / "dataset.yaml").write_text(yaml.safe_dump(entries))
    outcome = train(dataset, tmp_path / "run", config(binary=True, max_steps=4))
    assert outcome is not None
    assert len(json.loads((tmp_path / "run" / "report.json").read_text())["classes"]) == 2
    assert SegFormer.from_pretrained(tmp_path / "run" / "last").config.num_classes == 1


def test_more_channels(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    for image in (dataset / "images").rglob("*.png"):
        rgb = np.asarray(Image.open(image), dtype=np.float32)
        np.save(image.with_suffix(".npy"), np.dstack([rgb, rgb[:, :, :2]]) / 255)
        image.unlink()
    entries = yaml.safe_load((dataset / "dataset.yaml").read_text())
    (dataset / "dataset.yaml").write_text(yaml.safe_dump(entries | {"channels": 5}))
    train(dataset, tmp_path / "run", config(max_steps=3))
    model = SegFormer.from_pretrained(tmp_path / "run" / "best")
    assert model.config.in_channels == 5
    values = [np.load(f) for f in sorted((dataset / "images/train").iterdir())]
    assert model.preprocessing.mean == pytest.approx(np.mean(values, axis=(0, 1, 2)), rel=1e-4)
    assert model.preprocessing.std == pytest.approx(np.std(values, axis=(0, 1, 2)), rel=1e-4)
    resume(tmp_path / "run")


def test_a_loss_that_explodes_says_what_to_do(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    with pytest.raises(ValueError, match=r"the loss is nan at step .* use a smaller --lr"):
        train(dataset, tmp_path / "run", config(lr=1e30, max_grad_norm=0, warmup_steps=0))
