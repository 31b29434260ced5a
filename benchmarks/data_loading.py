"""Reading and augmenting training crops, compared with other pipelines and with the training step.

    python benchmarks/data_loading.py [DATASET] [--images 48] [--long-side 4000]

The same files and crops of the same size by this package, by a torch `DataLoader` around
transformers' `SegformerImageProcessor`, as its documentation shows it (it resizes to 512 x 512
and does not augment), and by an albumentations pipeline of the classical steps, if albumentations
is installed (1.x). First in one process, then batches of four from worker processes. The images
are those of DATASET, or generated ones; ``--long-side`` enlarges them first, to the size that
cameras have. At last a B0 trains on such batches: the slower of the two limits a training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import harness
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segformer import Preprocessing, SegFormer
from segformer.data.dataset import Dataset
from segformer.data.loader import DrawSampler, TrainingCrops, crop_loader
from segformer.data.opening import open_dataset
from segformer.data.transforms import Augmentation, distort
from segformer.image import read_mask
from segformer.model.products import reuse_memory
from segformer.training.losses import cross_entropy_at_mask_size

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
try:
    albumentations: Any = import_module("albumentations")
    import_module("albumentations.pytorch")
except ImportError:
    albumentations = None

TRANSFORMERS, ALBUMENTATIONS = "transformers processor", "albumentations"
OURS, CACHED = "segformer", "segformer, cached"
CROP, BATCH = 512, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", help="default: generated images")
    parser.add_argument("--images", type=int, default=48, help="default: 48")
    parser.add_argument("--long-side", type=int, help="enlarge the images to this many pixels")
    parser.add_argument("--num-workers", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=2, help="default: 2")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        root = prepare(options.dataset, Path(temporary), options.images, options.long_side)
        size = f"_{options.long_side}" if options.long_side else ""
        harness.report(f"data_loading{size}", rows(open_dataset(root), options))


def prepare(source: str | None, root: Path, count: int, long_side: int | None) -> Path:
    """A data set of images and masks, enlarged where asked for."""
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for i, (image, mask) in enumerate(images_of(source, count)):
        factor = long_side / max(mask.shape) if long_side else 1
        size = (round(mask.shape[1] * factor), round(mask.shape[0] * factor))
        enlarged = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        enlarged.save(root / f"images/train/{i:04}.jpg", quality=90)
        Image.fromarray(mask).resize(size, Image.Resampling.NEAREST).save(
            root / f"masks/train/{i:04}.png"
        )
    return root


def images_of(source: str | None, count: int) -> Iterator[tuple[Any, Any]]:
    if source is not None:
        dataset = open_dataset(source)
        for sample in dataset.samples[:: max(1, len(dataset) // count)][:count]:
            image, mask = dataset.read(sample)
            yield image, mask.astype(np.uint8)
        return
    rng = np.random.default_rng(0)
    for _ in range(count):
        noise = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        image = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        yield image, image[:, :, 0] // 64


def rows(dataset: Dataset, options: argparse.Namespace) -> Iterator[harness.Row]:
    augmentation = Augmentation(crop_size=CROP, short_side=CROP)
    readers: dict[str, TorchDataset[Any]] = {TRANSFORMERS: Processed(dataset)}
    if albumentations is not None:
        readers[ALBUMENTATIONS] = Albumented(dataset)
    readers[OURS] = TrainingCrops(dataset, augmentation, Preprocessing(), 0)
    readers[CACHED] = TrainingCrops(dataset, augmentation, Preprocessing(), 0, "true")
    alone: dict[str, Callable[[], None]] = {}
    loaded: dict[str, Callable[[], None]] = {}
    for name, reader in readers.items():
        alone[name] = partial(read_all, reader, len(dataset))
        loaded[name] = partial(load_all, reader, len(dataset), options.num_workers)
    width, height = Image.open(dataset.samples[0].image_files[0]).size
    work = f"{len(dataset)} images like {width} x {height}"
    stages = stages_of(dataset, augmentation)
    seconds = harness.in_turns(alone, options.rounds)
    yield harness.Row(
        f"{work}, one process",
        seconds,
        OURS,
        notes={
            "images/s": rates(seconds, len(dataset)),
            "ms per image of each stage": {k: round(1000 * s, 2) for k, s in stages.items()},
        },
    )
    seconds = harness.in_turns(loaded, options.rounds)
    found = rates(seconds, len(dataset))
    model = BATCH / training_step_seconds()
    limit = "the model" if found[OURS] > model else "reading"
    transfer = harness.in_turns(
        {"": partial(load_all, Constant(), 64, options.num_workers)}, options.rounds
    )[""]
    yield harness.Row(
        f"{work}, {options.num_workers} workers",
        seconds,
        OURS,
        notes={
            "images/s": found,
            "images/s of collating and passing on alone": round(64 / transfer, 1),
            "images/s of training B0": round(model, 1),
            "times the model's rate": {k: round(rate / model, 1) for k, rate in found.items()},
            "limit": limit,
        },
    )


def rates(seconds: dict[str, float], count: int) -> dict[str, float]:
    return {name: round(count / value, 1) for name, value in seconds.items()}


class Processed(TorchDataset[Any]):
    """Images and masks through transformers' processor, in the order of the files."""

    def __init__(self, dataset: Dataset):
        self.files = [(sample.image_files[0], sample.mask_file) for sample in dataset]
        self.processor = transformers.SegformerImageProcessor(do_reduce_labels=False)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.files[index]
        assert mask is not None
        found = self.processor(Image.open(image), Image.open(mask), return_tensors="pt")
        return found["pixel_values"][0], found["labels"][0]


class Albumented(TorchDataset[Any]):
    """Images and masks through the classical steps, in the order of the files."""

    def __init__(self, dataset: Dataset):
        self.files = [(str(sample.image), str(sample.mask)) for sample in dataset]
        self.transform = albumentations.Compose(
            [
                albumentations.SmallestMaxSize(CROP),
                albumentations.RandomScale((-0.5, 1.0), p=1),
                albumentations.PadIfNeeded(CROP, CROP, border_mode=0, fill=0, fill_mask=255),
                albumentations.RandomCrop(CROP, CROP),
                albumentations.HorizontalFlip(),
                albumentations.ColorJitter(0.125, 0.5, 0.5, 0.1),
                albumentations.Normalize(),
                albumentations.pytorch.ToTensorV2(),
            ]
        )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.files[index]
        read: Any = cv2.imread(image)
        pixels = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
        found = self.transform(image=pixels, mask=cv2.imread(mask, cv2.IMREAD_UNCHANGED))
        return found["image"], found["mask"].long()


class Constant(TorchDataset[Any]):
    """The same crop each time: what is left is the work of collating and passing on."""

    def __getitem__(self, _: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(CROP, CROP, 3).permute(2, 0, 1), torch.zeros(CROP, CROP).long()


def read_all(reader: Any, count: int) -> None:
    for i in range(count):
        reader[(i, i) if isinstance(reader, TrainingCrops) else i]


def load_all(reader: Any, count: int, num_workers: int) -> None:
    batches: Any
    if isinstance(reader, TrainingCrops):
        sampler = DrawSampler(count, BATCH, 1, 0, count // BATCH, 0)
        batches = crop_loader(reader, sampler, num_workers)
    else:
        batches = DataLoader(
            reader, BATCH, sampler=range(count), num_workers=num_workers, prefetch_factor=4
        )
    for _ in batches:
        pass


def stages_of(dataset: Dataset, augmentation: Augmentation) -> dict[str, float]:
    """Median CPU seconds of each stage of an image, in this process."""
    times: dict[str, list[float]] = {}

    def timed(stage: str, run: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = run()
        times.setdefault(stage, []).append(time.process_time() - began)
        return result

    rng, preprocessing = np.random.default_rng(0), Preprocessing()
    for sample in dataset:
        image = timed("decode image", partial(dataset.read_image, sample))
        choose = augmentation.next_reduction(rng)
        reduction = choose(*image.shape[:2])
        image = timed("decode as drawn", partial(dataset.read_image, sample, reduction))
        assert isinstance(sample.mask, Path)
        _, mask = dataset.read(sample)
        timed("decode mask", partial(read_mask, sample.mask))
        crop = partial(augmentation.scale_and_crop, image, mask, rng, reduction)
        image, mask = timed("scale and crop", crop)
        image = timed("colors", partial(distort, image, rng))
        timed("normalize", partial(preprocessing.normalize, image))
    return {stage: statistics.median(values) for stage, values in times.items()}


def training_step_seconds(steps: int = 3) -> float:
    """Of a B0 in float32, the best of a few: forward, loss, backward and AdamW."""
    reuse_memory()  # as a training does
    model = SegFormer.from_variant("b0", num_classes=11).train()
    optimizer = torch.optim.AdamW(model.parameters())
    pixels = torch.randn(BATCH, 3, CROP, CROP).to(memory_format=torch.channels_last)
    mask = torch.randint(0, 11, (BATCH, 8, 8)).repeat_interleave(64, 1).repeat_interleave(64, 2)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        loss: Any = cross_entropy_at_mask_size(model(pixels), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
