"""Training crops in an order that any step can be resumed at.

The stream of training images is a function of the seed alone: draw number d takes place
``d mod n`` in the shuffled order of epoch ``d // n``, and its augmentation is seeded by d. A
training that goes on at step s therefore sees what an uninterrupted one sees from step s.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from segformer.data.class_folders import ClassFolders
from segformer.data.class_transforms import ClassAugmentation
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.transforms import Augmentation
from segformer.image import Preprocessing, UnreadableImage

logger = logging.getLogger(__name__)

Draw = tuple[int, int]
"""Index of a sample, and the number of the draw in the whole training."""


class DrawSampler(Sampler[list[Draw]]):
    """Batches of draws from ``start_step`` to ``total_steps``.

    Args:
        size: Samples in the data set.
        batch_size: Draws per batch.
        batches_per_step: Batches that make one optimizer step on one device.
        start_step: First optimizer step.
        total_steps: One past the last.
        seed: Of the order.
        rank: Of this device among ``world``; each takes its own batches of a step.
        world: Devices.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        batches_per_step: int,
        start_step: int,
        total_steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.size, self.batch_size, self.batches_per_step = size, batch_size, batches_per_step
        self.start_step, self.total_steps, self.seed = start_step, total_steps, seed
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.batches_per_step

    def __iter__(self) -> Iterator[list[Draw]]:
        order, order_epoch = np.empty(0, np.int64), -1
        per_step = self.batches_per_step * self.world
        for step in range(self.start_step, self.total_steps):
            for i in range(self.batches_per_step):
                first = (step * per_step + i * self.world + self.rank) * self.batch_size
                batch = []
                for draw in range(first, first + self.batch_size):
                    epoch, place = divmod(draw, self.size)
                    if epoch != order_epoch:
                        rng = np.random.default_rng((self.seed, 0, epoch))
                        order, order_epoch = rng.permutation(self.size), epoch
                    batch.append((int(order[place]), draw))
                yield batch


class TrainingCrops(TorchDataset[tuple[Tensor, Tensor]]):
    """Augmented crops by draw.

    Args:
        dataset: The training split.
        augmentation: What happens to each image.
        preprocessing: Mean, deviation, rescaling.
        seed: Of the augmentation.
        cache: Keep what was decoded in memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        seed: int,
        cache: bool,
    ):
        self.dataset, self.augmentation, self.preprocessing = dataset, augmentation, preprocessing
        self.seed = seed
        self._cached: dict[int, Any] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Normalized (C, crop, crop) float32 in channels_last memory, and ids (crop, crop)."""
        index, number = draw
        rng = np.random.default_rng((self.seed, 1, number))
        image, mask = self._read(index)
        crop, ids = self.augmentation(
            image, mask, rng, self.preprocessing, partial(self._read_any, rng)
        )
        return torch.from_numpy(crop).permute(2, 0, 1), torch.from_numpy(ids)

    def _read_any(self, rng: np.random.Generator) -> Any:
        return self._read(int(rng.integers(len(self.dataset))))

    def _read(self, index: int) -> Any:
        if self._cached is None:
            return self.dataset.read(self.dataset.samples[index])
        if index not in self._cached:
            self._cached[index] = self.dataset.read(self.dataset.samples[index])
        return self._cached[index]


class ClassCrops(TorchDataset[tuple[Tensor, Tensor]]):
    """Augmented crops of a data set of classes, by draw.

    An image that cannot be read is told of and replaced by the next: one broken file among a
    million does not end a training.

    Args:
        dataset: The training split.
        augmentation: What happens to each image.
        preprocessing: Mean, deviation, rescaling.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        dataset: ClassFolders,
        augmentation: ClassAugmentation,
        preprocessing: Preprocessing,
        seed: int,
    ):
        self.dataset, self.augmentation, self.preprocessing = dataset, augmentation, preprocessing
        self.seed = seed
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Normalized (C, crop, crop) float32 in channels_last memory, and the class id ()."""
        index, number = draw
        rng = np.random.default_rng((self.seed, 1, number))
        for _ in range(len(self.dataset)):
            try:
                image, class_id = self.dataset.read(index)
                crop = self.augmentation(image, rng, self.preprocessing)
                break
            except ValueError as error:
                if index not in self._unreadable:
                    self._unreadable.add(index)
                    name = (
                        "" if isinstance(error, UnreadableImage) else self.dataset.samples[index][0]
                    )
                    logger.warning(f"skipped: {f'{name}: ' if name else ''}{error}")
                index = (index + 1) % len(self.dataset)
        else:
            raise DatasetError(f"{self.dataset.root}: none of its images can be read")
        return torch.from_numpy(crop).permute(2, 0, 1), torch.tensor(class_id)


def crop_loader(
    crops: TrainingCrops | ClassCrops, sampler: DrawSampler, num_workers: int
) -> DataLoader[Any]:
    """Load batches in worker processes, or in this one where ``num_workers`` is 0."""
    return DataLoader(
        crops,
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if num_workers else None,
        prefetch_factor=4 if num_workers else None,
        collate_fn=_collate,
    )


def _start_worker(_: int) -> None:
    """Workers are many, so each keeps to one core; stopping is their parent's to do.

    Ctrl-C and many schedulers signal the whole group of processes. Workers end when the parent
    tells them to, or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _collate(crops: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(B, C, crop, crop) in channels_last memory, and (B, crop, crop), or (B,) of classes."""
    pixels = torch.stack([image.permute(1, 2, 0) for image, _ in crops])
    return pixels.permute(0, 3, 1, 2), torch.stack([ids for _, ids in crops])
