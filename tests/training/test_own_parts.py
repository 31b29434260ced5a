"""Data sets, models, losses, transforms and callbacks that are given as Python objects."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conftest import draw_dataset
from segformer import ClassSet, SegFormer, SegmentationTrainConfig, resume, train
from segformer.data.opening import open_dataset
from segformer.image import Preprocessing
from segformer.training.callbacks import Callback, Progress
from segformer.training.folder import RunFolder
from segformer.training.own_data import OwnDataset, OwnTransform
from segformer.training.stopping import TrainingStopped

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 6,
    "num_workers": 0, "log_every": 1, "val_every": 1, "precision": "float32", "loggers": ("csv",),
}  # fmt: skip

NAMES = ("noise", "box", "disc")


def config(**changes: object) -> SegmentationTrainConfig:
    return SegmentationTrainConfig(**{**QUICK, **changes})


class Items:
    """A map-style data set with the images of a split, in one of several forms."""

    def __init__(self, root: Path, split: str, form: str):
        self.dataset, self.form = open_dataset(root, split), form

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, mask = self.dataset.read(self.dataset.samples[index])
        match self.form:
            case "arrays":
                return image, mask
            case "images":
                return Image.fromarray(image), Image.fromarray(mask.astype(np.uint8))
            case "mapping":
                return {"image": image, "mask": torch.from_numpy(mask.astype(np.int64)), "id": 3}
        raise AssertionError


def losses(run: Path) -> list[str]:
    return [row["loss"] for row in RunFolder(run).read_metrics() if row["loss"]]


@pytest.mark.parametrize("form", ["arrays", "images", "mapping"])
def test_a_map_style_data_set_trains_like_its_files(
    tmp_path: Path, tiny_variant: str, form: str
) -> None:
    root = draw_dataset(tmp_path / "shapes")
    expected = train(root, tmp_path / "files", config())
    found = train(
        Items(root, "train", form),
        tmp_path / "own",
        config(),
        validation=Items(root, "val", form),
        classes=NAMES,
    )
    assert expected is not None
    assert found is not None
    assert losses(tmp_path / "own") == losses(tmp_path / "files")
    assert found.row == expected.row
    models = [tmp_path / run / "best/model.safetensors" for run in ("files", "own")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert (tmp_path / "own/val_examples.jpg").is_file()
    assert (tmp_path / "own/val.txt").read_text().split() == ["val[0]", "val[1]"]


def test_a_resumed_run_is_given_its_objects_again(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_dataset(tmp_path / "shapes")
    parts = {
        "dataset": Items(root, "train", "arrays"),
        "validation": Items(root, "val", "arrays"),
        "classes": NAMES,
        "loss": lambda logits, targets: F.cross_entropy(logits, targets, ignore_index=255),
        "transform": jitter,
    }
    train(**parts, out=tmp_path / "whole", config=config())

    class Stop(Callback):
        def on_step(self, progress: Progress) -> None:
            if progress.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(**parts, out=tmp_path / "run", config=config(), callbacks=[Stop()])
    with pytest.raises(ValueError, match=r"give them again: .*classes=..., dataset=..., loss="):
        resume(tmp_path / "run")
    with pytest.raises(ValueError, match=r"give them again: segformer.resume\(..., transform="):
        resume(tmp_path / "run", **{k: v for k, v in parts.items() if k != "transform"})
    resume(tmp_path / "run", **parts)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    models = [tmp_path / run / "last/model.safetensors" for run in ("whole", "run")]
    assert models[0].read_bytes() == models[1].read_bytes()
    with pytest.raises(ValueError, match="began without loss"):
        train(root, tmp_path / "plain", config(max_steps=1))
        resume(tmp_path / "plain", loss=parts["loss"], max_steps=2)


def jitter(image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Draws from the global generators of NumPy and Python."""
    top = random.randrange(8)
    image = np.roll(image, np.random.randint(5), axis=2)
    return {"image": image[top : top + 30, :40], "mask": mask[top : top + 30, :40]}


def test_a_transform_replaces_the_augmentation() -> None:
    classes = ClassSet(NAMES)
    preprocessing = Preprocessing()
    image = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    mask = np.zeros((20, 50), np.int32)
    seen = []

    def transform(image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        seen.append((image.dtype, mask.dtype, np.random.rand()))
        return {"image": 255 - image, "mask": mask + 1}

    own = OwnTransform(transform, 32, classes)
    state = np.random.get_state()[1].tolist()
    crop, ids = own(image, mask, np.random.default_rng(5), preprocessing)
    own(image, mask, np.random.default_rng(5), preprocessing)
    assert np.random.get_state()[1].tolist() == state  # the caller's randomness is not touched
    assert seen[0] == seen[1]  # the same draw, the same numbers
    assert seen[0][:2] == (np.uint8, np.uint8)
    assert crop.shape == (32, 32, 3)
    assert np.all(ids[:20] == 1)
    assert np.all(ids[20:] == 255)
    assert np.all(crop[20:] == 0)
    expected = preprocessing.normalize(255 - image)
    starts = [i for i in range(19) if np.allclose(expected[:, i : i + 32], crop[:20])]
    assert len(starts) == 1


@pytest.mark.parametrize(
    "result",
    [
        lambda image, mask: {"image": image / 255, "mask": mask},
        lambda image, mask: {"image": image[:9], "mask": mask},
        lambda image, mask: {"image": torch.from_numpy(image).permute(2, 0, 1), "mask": mask},
    ],
)
def test_a_transform_that_returns_something_else(result: Any) -> None:
    own = OwnTransform(result, 32, ClassSet(NAMES))
    image, mask = np.zeros((20, 50, 3), np.uint8), np.zeros((20, 50), np.int32)
    with pytest.raises(TypeError, match="leave normalization and tensors to the training"):
        own(image, mask, np.random.default_rng(0), Preprocessing())


def test_albumentations_convention(tmp_path: Path, tiny_variant: str) -> None:
    """A generator of the transform's own is seeded by ``set_random_seed``."""

    class Compose:
        def __init__(self) -> None:
            self.generator = np.random.default_rng()

        def set_random_seed(self, seed: int) -> None:
            self.generator = np.random.default_rng(seed)

        def __call__(self, *, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
            start = self.generator.integers(16)
            return {"image": image[:32, start : start + 32], "mask": mask[:32, start : start + 32]}

    root = draw_dataset(tmp_path / "shapes")
    for name in ("first", "second"):
        train(root, tmp_path / name, config(), transform=Compose())
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    train(root, tmp_path / "plain", config())
    assert losses(tmp_path / "plain") != losses(tmp_path / "first")


def test_an_own_loss_is_called_at_the_size_of_the_masks(tmp_path: Path, tiny_variant: str) -> None:
    root, shapes = draw_dataset(tmp_path / "shapes"), []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        shapes.append((tuple(logits.shape), tuple(targets.shape), targets.dtype))
        return 0.25 * F.cross_entropy(logits, targets, ignore_index=255)

    train(root, tmp_path / "own", config(max_steps=1), loss=loss)
    train(root, tmp_path / "plain", config(max_steps=1))
    assert shapes[0] == ((2, 3, 32, 32), (2, 32, 32), torch.int64)
    own, plain = (float(losses(tmp_path / run)[0]) for run in ("own", "plain"))
    assert own == pytest.approx(plain / 4, rel=1e-3)
    with pytest.raises(ValueError, match=r"loss must return a tensor of shape \(\)"):
        train(root, tmp_path / "wrong", config(), loss=lambda logits, targets: 3.0)


def test_an_own_model_is_trained_from(tmp_path: Path, tiny_variant: str) -> None:
    root = draw_dataset(tmp_path / "shapes")
    torch.manual_seed(3)
    model = SegFormer.from_variant("tiny", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(root, tmp_path / "run", config(max_steps=1, lr=1e-12, ema_decay=0), model=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    trained = SegFormer.from_pretrained(tmp_path / "run/last")
    assert trained.classes.names == NAMES
    for name, tensor in trained.named_parameters():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    assert RunFolder(tmp_path / "run").read_recipe()[1].head_lr_factor == 10
    with pytest.raises(ValueError, match="the model has 2 classes and 3 channels, the data set 3"):
        train(
            root, tmp_path / "second", config(), model=SegFormer.from_variant("tiny", num_classes=2)
        )
    resume(tmp_path / "run", max_steps=2)


def test_wrong_items_are_named(tmp_path: Path) -> None:
    image, mask = np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.uint8)
    cases = {
        "an item must be": image,
        r"the mask must be \(H, W\) of integers": (image, mask[None]),
        r"the mask is \(8, 5\), its image \(8, 9\)": (image, mask[:, :5]),
        "values outside the classes: 7": (image, mask + 7),
        r"train\[0\]: ": ("no such file.png", mask),
    }
    for message, item in cases.items():
        dataset = OwnDataset.of([item], "train", ClassSet(NAMES), 3)
        with pytest.raises(ValueError, match=message):
            dataset.read(dataset.samples[0])
    with pytest.raises(ValueError, match="give the names of the classes"):
        train([(image, mask)], tmp_path / "run", config())
    with pytest.raises(ValueError, match="the data set has no items"):
        train([], tmp_path / "run", config(), classes=NAMES)
    assert not (tmp_path / "run").exists()


class Recorder(Callback):
    def __init__(self, stop_at: int = 99):
        self.calls: list[tuple[str, int]] = []
        self.stop_at = stop_at

    def on_start(self, progress: Progress) -> None:
        self.calls.append(("start", progress.total_steps))

    def on_step(self, progress: Progress) -> None:
        assert progress.loss > 0
        assert progress.lr > 0 or progress.step == 1
        self.calls.append(("step", progress.step))
        if progress.step == self.stop_at:
            progress.stop()

    def on_validation(self, progress: Progress) -> None:
        assert 0 <= progress.scores["val_miou"] <= 1
        self.calls.append(("validation", progress.step))

    def on_end(self, progress: Progress) -> None:
        self.calls.append(("end", progress.step))


def test_callbacks_are_called_and_may_stop(tmp_path: Path, tiny_variant: str) -> None:
    root = draw_dataset(tmp_path / "shapes")
    recorder = Recorder()
    train(root, tmp_path / "whole", config(), callbacks=[recorder])
    steps = [("step", step) for step in range(1, 7)]
    assert recorder.calls == [
        ("start", 6), *steps[:3], ("validation", 3), *steps[3:], ("validation", 6), ("end", 6),
    ]  # fmt: skip
    stopping = Recorder(stop_at=4)
    outcome = train(root, tmp_path / "run", config(), callbacks=[stopping])
    assert outcome is not None
    assert stopping.calls[-3:] == [("step", 4), ("validation", 4), ("end", 4)]
    assert (tmp_path / "run/report.json").is_file()
    assert len(losses(tmp_path / "run")) == 4
    resume(tmp_path / "run")  # to the steps of its configuration
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_an_exception_of_a_callback_ends_the_training(tmp_path: Path, tiny_variant: str) -> None:
    class Failing(Callback):
        def on_validation(self, progress: Progress) -> None:
            raise TrainingStopped("enough")

    with pytest.raises(TrainingStopped, match="enough"):
        train(draw_dataset(tmp_path / "shapes"), tmp_path / "run", config(), callbacks=[Failing()])
    resume(tmp_path / "run")
