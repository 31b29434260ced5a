from pathlib import Path

import numpy as np
import pytest
import torch

from segformer import Preprocessing
from segformer.data.dataset import open_dataset
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
