from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from segformer import Preprocessing
from segformer.data.dataset import DatasetError, open_dataset
from segformer.data.loader import DrawSampler, TrainingCrops, crop_loader
from segformer.data.transforms import Augmentation


@pytest.mark.parametrize("start", [0, 1, 4, 9])
def test_order_goes_on_from_any_step(start: int) -> None:
    whole = list(DrawSampler(7, 3, 2, 0, 10, seed=5))
    assert list(DrawSampler(7, 3, 2, start, 10, seed=5)) == whole[2 * start :]
    assert len(DrawSampler(7, 3, 2, start, 10, seed=5)) == len(whole) - 2 * start


def test_every_epoch_sees_every_image_once_in_a_new_order() -> None:
    draws = [draw for batch in DrawSampler(8, 4, 1, 0, 6, seed=0) for draw in batch]
    assert [number for _, number in draws] == list(range(24))
    epochs = [[index for index, _ in draws[8 * e : 8 * e + 8]] for e in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_devices_share_a_step() -> None:
    alone = list(DrawSampler(50, 4, 2, 0, 3, seed=1))
    ranks = [list(DrawSampler(50, 4, 1, 0, 3, seed=1, rank=r, world=2)) for r in (0, 1)]
    assert [b for step in zip(*ranks, strict=True) for b in step] == alone


def test_workers_change_nothing(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3, cache=True)
    batches = [
        list(crop_loader(crops, DrawSampler(len(dataset), 2, 1, 0, 4, seed=3), workers))
        for workers in (0, 2)
    ]
    for (pixels, ids), (pixels_2, ids_2) in zip(*batches, strict=True):
        assert pixels.shape == (2, 3, 32, 32)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(pixels, pixels_2)
        assert torch.equal(ids, ids_2)


def test_draws_of_one_image_differ(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3, cache=False)
    first, second = crops[(0, 10)][0], crops[(0, 11)][0]
    assert not np.array_equal(first, second)


def test_a_deleted_image_costs_only_itself(
    small_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(small_dataset)
    (small_dataset / "images/train/02.png").unlink()
    crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3, cache=False)
    for number in range(3):
        assert crops[(2, number)][0].shape == (3, 32, 32)
    assert caplog.text.count("skipped: ") == 1
    assert "02.png: no such file" in caplog.text
    for file in (small_dataset / "images/train").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match=r"00.png: neither this nor any other sample"):
        crops[(0, 0)]


@pytest.mark.parametrize("rescale", [1 / 255, 1.0])
def test_the_preprocessing_decides_about_8_bits(small_dataset: Path, rescale: float) -> None:
    values = np.full((48, 64, 3), 40_000, np.uint16)
    for file in sorted((small_dataset / "images/train").iterdir()):
        file.unlink()
        tifffile.imwrite(file.with_suffix(".tif"), values, photometric="rgb")
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), rescale=rescale)
    augmentation = Augmentation(crop_size=32, hflip_prob=0, photometric=False)
    crops = TrainingCrops(open_dataset(small_dataset), augmentation, preprocessing, 3, cache=False)
    expected = round(40_000 / 257) / 255 if rescale < 1 else 40_000
    assert float(crops[(0, 0)][0].max()) == pytest.approx(expected)


PARENT = """
import os, sys, time
from segformer import Preprocessing
from segformer.data.dataset import open_dataset
from segformer.data.loader import DrawSampler, TrainingCrops, crop_loader
from segformer.data.transforms import Augmentation

dataset = open_dataset(sys.argv[1])
crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3, cache=False)
batches = iter(crop_loader(crops, DrawSampler(len(dataset), 2, 1, 0, 9000, seed=3), 2))
next(batches), next(batches)
print(*[worker.pid for worker in batches._workers], flush=True)
"""


def start_parent(dataset: Path, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process like a training that has read two batches, and its workers' ids."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT + then, str(dataset)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    return parent, [int(word) for word in parent.stdout.readline().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for_end(pids: list[int], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(is_running, pids))


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux_only
def test_a_parent_that_raises_ends_with_its_workers(small_dataset: Path) -> None:
    parent, workers = start_parent(small_dataset, "raise RuntimeError('loss is NaN')")
    _, errors = parent.communicate(timeout=300)
    assert parent.returncode == 1
    assert "loss is NaN" in errors
    assert len(workers) == 2
    assert wait_for_end(workers)


@linux_only
def test_workers_of_a_killed_parent_end(small_dataset: Path) -> None:
    parent, workers = start_parent(small_dataset, "time.sleep(600)")
    parent.kill()
    parent.communicate(timeout=300)
    assert wait_for_end(workers)


@linux_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_parent_can_go_on_when_its_group_is_signaled(
    small_dataset: Path, number: signal.Signals
) -> None:
    go_on = (
        "import signal\n"
        "caught = []\n"
        "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, lambda *_: caught.append(1))\n"
        "print('ready', flush=True)\n"
        "while not caught: time.sleep(0.01)\n"
        "for _ in range(20): next(batches)\n"
        "print('saved', flush=True)\n"
    )
    parent, workers = start_parent(small_dataset, go_on)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    os.killpg(parent.pid, number)
    output, errors = parent.communicate(timeout=300)
    assert output == "saved\n", errors
    assert parent.returncode == 0
    assert wait_for_end(workers)
