"""Training crops in an order that can be resumed at any step.

The sequence of training images depends on the seed alone: draw number d takes position
``d mod n`` in the shuffled order of epoch ``d // n`` (`segformer.data.sampling`), and its
augmentation is seeded with d. So a training that is resumed at step s sees the same crops as an
uninterrupted one.
"""

from __future__ import annotations

import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from segformer.data.class_folders import ClassFolders
from segformer.data.class_transforms import ClassAugmentation
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.sampling import epoch_order
from segformer.data.shared_cache import SharedCache, is_supported, stored_size
from segformer.data.transforms import Augmentation, Mask, ReducedSample
from segformer.image import ImageArray, Preprocessing, UnreadableImage, image_name
from segformer.machine import available_memory

logger = logging.getLogger(__name__)

Draw = tuple[int, int]
"""Index of a sample, and the number of the draw in the whole training."""

_Decoded: TypeAlias = tuple[Mask, dict[int, ImageArray]]
"""Class ids (H, W), and by reduction the image as training can need it."""

_FRACTION_OF_MEMORY = 0.5
"""Of the memory that is available, what decoded images may take."""

_READ_FOR_ESTIMATE = 24
"""Images that are read to estimate how much memory all of them take."""

_SECONDS_AFTER_SIGTERM = 3.0
"""How long a worker lives on after SIGTERM."""


class DrawSampler(Sampler[list[Draw]]):
    """Batches of draws from ``start_step`` to ``total_steps``.

    Args:
        size: Samples in the data set.
        batch_size: Draws per batch.
        batches_per_step: Batches that make one optimizer step on one device.
        start_step: First optimizer step.
        total_steps: Number after the last optimizer step.
        seed: Seed of the order.
        rank: Number of this device among ``world``; each takes its own batches of a step.
        world: Number of devices.
        factors: How often to draw each sample; see `segformer.data.sampling.epoch_order`.
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
        factors: NDArray[np.float64] | None = None,
    ):
        self.size, self.batch_size, self.batches_per_step = size, batch_size, batches_per_step
        self.start_step, self.total_steps, self.seed = start_step, total_steps, seed
        self.rank, self.world, self.factors = rank, world, factors

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
                        order = epoch_order(self.size, self.seed, epoch, self.factors)
                        order_epoch = epoch
                    batch.append((int(order[place]), draw))
                yield batch


class _Crops(TorchDataset[tuple[Tensor, Tensor]], ABC):
    """Crops by draw; samples that cannot be read are skipped.

    One broken file among many does not end a training: it is logged once, and the next sample
    takes its place.

    Args:
        size: Number of samples.
        seed: Seed of the augmentation.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Normalized (C, crop, crop) float32 in channels_last memory, and its target.

        Raises:
            DatasetError: No sample can be read.
        """
        index, number = draw
        rng = np.random.default_rng((self.seed, 1, number))
        for _ in range(self.size):
            try:
                crop, target = self.crop(index, rng)
            except (ValueError, OSError) as error:
                if index not in self._unreadable:
                    self._unreadable.add(index)
                    name = "" if isinstance(error, UnreadableImage) else f"{self.name(index)}: "
                    logger.warning(f"skipped: {name}{error}")
                index = (index + 1) % self.size
            else:
                return torch.from_numpy(crop).permute(2, 0, 1), target
        raise DatasetError(f"{self.name(0)}: neither this nor any other sample can be read")

    @abstractmethod
    def crop(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], Tensor]:
        """Augmented crop (crop, crop, C) of a sample, and its target."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a sample in a message."""


class TrainingCrops(_Crops):
    """Augmented crops of images and masks, by draw: pixels and class ids (crop, crop).

    JPEG images that a draw scales to a half or less are decoded at reduced size. The result is the
    same with the images in memory or in files.

    Args:
        dataset: The training split.
        augmentation: What happens to each image.
        preprocessing: Mean, standard deviation and rescaling; it also decides whether images are
            read as 8 bits.
        seed: Seed of the augmentation.
        cache: Whether decoded images and masks stay in memory, once for all workers: "true",
            as many as fit; "auto", all if they fit; "false", none.
        processes: Processes of this machine that have such crops at the same time, each with its
            own workers and memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        seed: int,
        cache: str = "false",
        processes: int = 1,
    ):
        super().__init__(len(dataset), seed)
        self.dataset = dataset.with_8_bit(preprocessing.expects_8_bit)
        self.augmentation, self.preprocessing = augmentation, preprocessing
        self._cache: SharedCache | None = None
        if cache != "false":
            self._cache = self._open_cache(cache == "auto", processes)

    def crop(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], Tensor]:
        """Crop (crop, crop, C) and class ids (crop, crop)."""
        image, mask, reduction = self._read(index, rng)
        crop, ids = self.augmentation(
            image, mask, rng, self.preprocessing, partial(self._read_any, rng), reduction
        )
        return crop, torch.from_numpy(ids)

    def name(self, index: int) -> str:
        """File of the image."""
        return image_name(self.dataset.samples[index].image)

    def _read_any(self, rng: np.random.Generator) -> ReducedSample:
        return self._read(int(rng.integers(len(self.dataset))), rng)

    def _read(self, index: int, rng: np.random.Generator) -> ReducedSample:
        """A sample, decoded for the crop that is drawn next."""
        choose = self.augmentation.next_reduction(rng)
        if self._cache is None:
            return self.dataset.read_reduced(self.dataset.samples[index], choose)
        decoded: _Decoded | None = self._cache.get(index)
        if decoded is None:
            if self._cache.is_full:
                return self.dataset.read_reduced(self.dataset.samples[index], choose)
            decoded = self._decode(index)
            self._cache.put(index, decoded)
        mask, images = decoded
        reduction = choose(mask.shape[0], mask.shape[1])
        if reduction not in images:
            reduction = 1  # not a JPEG
        return images[reduction], mask, reduction

    def _decode(self, index: int) -> _Decoded:
        """A sample with all reductions of the image that any draw needs."""
        sample = self.dataset.samples[index]
        possible = [1]

        def smallest(height: int, width: int) -> int:
            nonlocal possible
            possible = self.augmentation.possible_reductions(height, width)
            return possible[0]

        image, mask, reduction = self.dataset.read_reduced(sample, smallest)
        images = {reduction: image}
        for other in possible[1:]:
            images[other] = self.dataset.read_image(sample, other)
        contiguous = {reduction: np.ascontiguousarray(image) for reduction, image in images.items()}
        return np.ascontiguousarray(mask), contiguous

    def _open_cache(self, only_if_all_fit: bool, processes: int) -> SharedCache | None:
        """Memory for the decoded images, or None; the log says which and why."""
        available = available_memory()
        if not is_supported() or available is None:
            logger.info("images are not cached: not supported on this system")
            return None
        budget = int(_FRACTION_OF_MEMORY * available / processes)
        first = self._decode_some()
        needed = round(len(self) * np.mean([stored_size(d) for d in first.values()] or [0]))
        fits = 1.1 * needed <= budget  # the others may be larger than those read here
        sizes = f"{len(self)} images, {needed / 1e9:.3g} GB"
        if not fits and only_if_all_fit:
            logger.info(
                f"images are not cached: {sizes} decoded, do not fit into "
                f"{budget / 1e9:.3g} GB, {_FRACTION_OF_MEMORY:.0%} of the available memory"
                + (f" for each of {processes} processes" if processes > 1 else "")
            )
            return None
        try:
            cache = SharedCache(len(self), budget)
        except OSError as error:
            logger.warning(f"images are not cached: {error}")
            return None
        for index, decoded in first.items():
            cache.put(index, decoded)
        part = "" if fits else f", of which {budget / 1e9:.3g} GB fit"
        logger.info(f"images are cached in shared memory as they are read: {sizes} decoded{part}")
        return cache

    def _decode_some(self) -> dict[int, _Decoded]:
        """Samples from the whole data set, by index; unreadable files are skipped."""
        decoded = {}
        for index in np.linspace(0, len(self) - 1, min(len(self), _READ_FOR_ESTIMATE)).round():
            try:
                decoded[int(index)] = self._decode(int(index))
            except (ValueError, OSError):
                continue  # reported when its turn comes
        return decoded


class ClassCrops(_Crops):
    """Augmented crops of images in class folders, by draw: pixels and the class id ().

    Args:
        dataset: The training split.
        augmentation: What happens to each image.
        preprocessing: Mean, standard deviation and rescaling; it also decides whether images are
            read as 8 bits.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        dataset: ClassFolders,
        augmentation: ClassAugmentation,
        preprocessing: Preprocessing,
        seed: int,
    ):
        super().__init__(len(dataset), seed)
        self.dataset = dataset.with_8_bit(preprocessing.expects_8_bit)
        self.augmentation, self.preprocessing = augmentation, preprocessing

    def crop(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], Tensor]:
        """Crop (crop, crop, C) and class id ()."""
        image, class_id = self.dataset.read(index)
        return self.augmentation(image, rng, self.preprocessing), torch.tensor(class_id)

    def name(self, index: int) -> str:
        """File of the image."""
        return str(self.dataset.samples[index][0])


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
    """Keep each worker to one core, and let it end shortly after its parent.

    Ctrl-C signals the whole group of processes, and so do many schedulers with SIGTERM. The
    parent then finishes its step and saves, for which it may still need its workers: they ignore
    Ctrl-C and end some seconds after SIGTERM, which a parent that fails sends them too. PyTorch
    ends workers whose parent was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.signal(
            signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, _SECONDS_AFTER_SIGTERM)
        )
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _collate(crops: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(B, C, crop, crop) in channels_last memory, and (B, crop, crop), or (B,) of classes."""
    pixels = torch.stack([image.permute(1, 2, 0) for image, _ in crops])
    return pixels.permute(0, 3, 1, 2), torch.stack([ids for _, ids in crops])
