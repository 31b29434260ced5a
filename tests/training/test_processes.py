"""Several processes, here on the CPU with gloo: each test runs the command line."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import TINY, draw_dataset, randomize
from segformer import SegFormer
from segformer.training.config import SegmentationTrainConfig
from segformer.training.processes import Processes

# Small, and without anything random that differs between processes
OPTIONS = [
    "--crop-size", "32", "--short-side", "48", "--max-steps", "6", "--num-workers", "0",
    "--log-every", "1", "--drop-path", "0", "--dropout", "0", "--precision", "float32",
    "--no-avg-non-ignore", "--val-every", "9999", "--device", "cpu",
]  # fmt: skip
TWO = ["--devices", "2", "--batch-size", "2"]


@pytest.fixture(autouse=True, scope="module")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All trainings start from a small model."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    config = replace(TINY, num_classes=3)
    randomize(SegFormer(config, ("noise", "box", "disc"))).save_pretrained(folder)
    OPTIONS.extend(["--pretrained", str(folder)])
    yield
    del OPTIONS[-2:]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "segformer", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run(*words: str) -> tuple[int, str]:
    process = start(*words)
    try:
        out, log = process.communicate(timeout=500)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out + log


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def test_two_processes_train_the_weights_of_one_stop_and_resume(tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    one, two = tmp_path / "one", tmp_path / "two"
    code, log = run(str(dataset), "--out", str(one), *OPTIONS, "--batch-size", "4")
    assert code == 0, log
    code, log = run(str(dataset), "--out", str(two), *OPTIONS, *TWO)
    assert code == 0, log
    assert log.count("step 6, epoch") == 1  # only one process logs
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    first, second = (load_file(folder / "last/model.safetensors") for folder in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-3)

    stopped = tmp_path / "stopped"
    process = start(str(dataset), "--out", str(stopped), *OPTIONS, *TWO, "--max-steps", "9999")
    deadline = time.monotonic() + 150
    while process.poll() is None and time.monotonic() < deadline:
        if (stopped / "metrics.csv").exists():
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=500)
    assert process.returncode == 130, log
    assert log.count("everything is saved") == 1
    assert "Traceback" not in log
    done = len(losses(stopped))
    code, log = run("--resume", str(stopped), "--max-steps", str(done + 2))
    assert code == 0, log
    assert len(losses(stopped)) == done + 2


def test_a_process_that_fails_ends_all_with_its_message(tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    code, log = run(
        str(dataset), "--out", str(tmp_path / "run"), *OPTIONS, *TWO, "--lr", "1e30",
        "--warmup-steps", "0", "--max-grad-norm", "0",
    )  # fmt: skip
    assert code == 1, log
    assert log.count("the loss is nan at step") == 1
    assert "Traceback" not in log

    # In one process only: the draws of process 1 begin with another image
    values = np.array(Image.open(dataset / "masks/train/00.png"))
    values[0, 0] = 151
    Image.fromarray(values).save(dataset / "masks/train/00.png")
    code, log = run(str(dataset), "--out", str(tmp_path / "second"), *OPTIONS, *TWO)
    assert code == 1, log
    assert log.count("00.png: values outside the classes") == 1
    assert "Traceback" not in log


CRASH = """
import os, sys
from segformer.cli import main
from segformer.training.loop import TrainingLoop

step = TrainingLoop._step
def crash(self, batches):
    if self.state.step == 2 and self.processes.rank == {rank}:
        raise RuntimeError("something broke")
    return step(self, batches)
TrainingLoop._step = crash
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_an_unexpected_error_in_one_process_ends_the_others(tmp_path: Path, rank: int) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    script = tmp_path / "crash.py"
    script.write_text(CRASH.format(rank=rank))
    result = subprocess.run(
        [
            *(sys.executable, str(script), "train", str(dataset), "--out", str(tmp_path / "run")),
            *OPTIONS,
            *TWO,
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode != 0
    assert "something broke" in result.stderr


def test_devices_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:0, ... or mps"):
        Processes(SegmentationTrainConfig(device="tpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda: PyTorch finds no CUDA GPU"):
            Processes(SegmentationTrainConfig(device="cuda"))
        if not torch.backends.mps.is_available():
            with pytest.raises(ValueError, match="use device cpu to train with 8 processes"):
                Processes(SegmentationTrainConfig(devices=8))
