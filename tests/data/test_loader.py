from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from segformer import Preprocessing
from segformer.data import loader
from segformer.data.dataset import DatasetError
from segformer.data.loader import DrawSampler, TrainingCrops, crop_loader
from segformer.data.opening import open_dataset
from segformer.data.transforms import Augmentation

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="shares memory by descriptors")


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
    crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3, "true")
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
    crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3)
    first, second = crops[(0, 10)][0], crops[(0, 11)][0]
    assert not np.array_equal(first, second)


def test_a_deleted_image_costs_only_itself(
    small_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(small_dataset)
    (small_dataset / "images/train/02.png").unlink()
    crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3)
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
    crops = TrainingCrops(open_dataset(small_dataset), augmentation, preprocessing, 3)
    expected = round(40_000 / 257) / 255 if rescale < 1 else 40_000
    assert float(crops[(0, 0)][0].max()) == pytest.approx(expected)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """JPEG images from 0.6 to 4 times the size that training starts from, and their masks."""
    root = tmp_path / "photographs"
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for i, size in enumerate([(150, 200), (101, 67), (33, 20), (67, 131)]):
        noise = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize(size)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        image.save(root / f"images/train/{i}.jpg", exif=exif)
        mask = np.asarray(ImageOps.exif_transpose(Image.open(root / f"images/train/{i}.jpg")))
        Image.fromarray((mask[:, :, 0] > 100).astype(np.uint8)).save(root / f"masks/train/{i}.png")
    noise = np.random.default_rng(9).integers(0, 255, (160, 140, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "images/train/4.png")
    Image.fromarray(noise[:, :, 0] // 128).save(root / "masks/train/4.png")
    return root


AUGMENTATION = Augmentation(crop_size=24, short_side=32, background_replace_prob=0.5)


def load_all(crops: TrainingCrops, workers: int, context: str | None = None) -> list[torch.Tensor]:
    batches = crop_loader(crops, DrawSampler(len(crops), 5, 1, 0, 8, seed=3), workers)
    batches.multiprocessing_context = context
    return [tensor for batch in batches for tensor in batch]


@posix_only
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_cached_batches_are_the_same(photographs: Path, workers: int, context: str | None) -> None:
    dataset = open_dataset(photographs)
    expected = load_all(TrainingCrops(dataset, AUGMENTATION, Preprocessing(), 3), 0)
    crops = TrainingCrops(dataset, AUGMENTATION, Preprocessing(), 3, "auto")
    for file in photographs.glob("*/train/*"):
        file.unlink()  # from now on, only the memory is read
    found = load_all(crops, workers, context)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@posix_only
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_fill_one_memory(
    photographs: Path, context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_READ_FOR_ESTIMATE", 1)
    crops = TrainingCrops(open_dataset(photographs), AUGMENTATION, Preprocessing(), 3, "auto")
    cache = crops._cache
    assert cache is not None
    assert len(cache) == 1
    load_all(crops, 2, context)
    assert len(cache) == 5  # what the workers have read is seen here
    mask, images = cache.get(0)
    assert mask.shape == (200, 150)
    assert list(images) == [2, 4, 8]
    assert list(cache.get(4)[1]) == [1]  # PNG
    with pytest.raises(ValueError, match="read-only"):
        mask[0, 0] = 1
    total = sum(image.nbytes for i in range(5) for image in cache.get(i)[1].values())
    total += sum(cache.get(i)[0].nbytes for i in range(5))
    assert total <= cache.used <= total + 5 * 1024


def test_draws_that_scale_down_decode_reduced_jpegs(photographs: Path) -> None:
    decoded: list[tuple[int, int]] = []

    class Counting(Augmentation):
        def scale_and_crop(self, image, mask, rng, reduction=1):  # type: ignore[no-untyped-def]
            assert image.shape[0] == -(-mask.shape[0] // reduction)
            assert image.shape[1] == -(-mask.shape[1] // reduction)
            ratio = deepcopy(rng).uniform(self.scale_min, self.scale_max)
            scale = 32 / min(mask.shape) * ratio
            assert reduction * scale <= 1 or reduction == 1
            decoded.append((min(mask.shape), reduction))
            return super().scale_and_crop(image, mask, rng, reduction)

    augmentation = Counting(crop_size=24, short_side=32, background_replace_prob=0.5)
    crops = TrainingCrops(open_dataset(photographs), augmentation, Preprocessing(), 3)
    load_all(crops, 0)
    assert {r for side, r in decoded if side == 150} - {8} == {2, 4}
    assert {r for side, r in decoded if side == 67} - {4} == {1, 2}
    assert {r for side, r in decoded if side in (20, 140)} == {1}  # small, or a PNG


@posix_only
def test_the_log_says_whether_images_are_cached(
    small_dataset: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    dataset = open_dataset(small_dataset)
    one = 48 * 64 * 4

    def opened(available: int | None, cache: str, processes: int = 1) -> int | None:
        caplog.clear()
        monkeypatch.setattr(loader, "available_memory", lambda: available)
        crops = TrainingCrops(dataset, AUGMENTATION, Preprocessing(), 3, cache, processes)
        load_all(crops, 0)
        return None if crops._cache is None else len(crops._cache)

    assert opened(10**9, "auto") == 6
    assert "cached in shared memory as they are read: 6 images, 7" in caplog.text
    assert opened(12 * one, "auto") is None
    assert "not cached: 6 images" in caplog.text
    assert "do not fit into 7.37e-05 GB, 50% of the available memory" in caplog.text
    assert opened(10**6, "auto", 16) is None
    assert "for each of 16 processes" in caplog.text
    assert opened(8 * one, "true") == 3
    assert "of which 4.92e-05 GB fit" in caplog.text
    assert "the cache is full: 3 of 6 images" in caplog.text
    assert opened(None, "auto") is None
    assert "not supported on this system" in caplog.text
    assert opened(10**9, "false") is None
    assert not caplog.text


PARENT = """
import os, sys, time
from segformer import Preprocessing
from segformer.data.opening import open_dataset
from segformer.data.loader import DrawSampler, TrainingCrops, crop_loader
from segformer.data.transforms import Augmentation

dataset = open_dataset(sys.argv[1])
crops = TrainingCrops(dataset, Augmentation(crop_size=32), Preprocessing(), 3)
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
