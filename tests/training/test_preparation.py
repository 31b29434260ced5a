from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from segformer import SegFormer
from segformer.data.check import SplitReport, check_split
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset
from segformer.training.config import SegmentationTrainConfig
from segformer.training.preparation import build_model, class_weights, resolve


def config(**changes: object) -> SegmentationTrainConfig:
    return SegmentationTrainConfig(**{"crop_size": 32, "max_steps": 12, **changes})


def test_starting_from_a_model(small_dataset: Path, tmp_path: Path, tiny_model: SegFormer) -> None:
    training = open_dataset(small_dataset)
    report = check_split(training)
    tiny_model.save_pretrained(tmp_path / "five")
    start = resolve(config(pretrained=str(tmp_path / "five")), report)
    assert (start.lr, start.head_lr_factor) == (6e-5, 10)
    model = build_model(start, training)
    assert model.config.num_classes == 3
    fresh = {"decoder.classifier.weight", "decoder.classifier.bias"}
    for name, tensor in tiny_model.state_dict().items():
        if name not in fresh:
            assert torch.equal(model.state_dict()[name], tensor), name
    encoder_only = build_model(
        resolve(config(pretrained=str(tmp_path / "five"), pretrained_encoder_only=True), report),
        training,
    )
    name = "decoder.fuse.weight"
    assert not torch.equal(encoder_only.state_dict()[name], tiny_model.state_dict()[name])
    for name, tensor in tiny_model.encoder.state_dict().items():
        assert torch.equal(encoder_only.encoder.state_dict()[name], tensor), name

    model.save_pretrained(tmp_path / "three")
    same = build_model(resolve(config(pretrained=str(tmp_path / "three")), report), training)
    assert torch.equal(
        same.state_dict()["decoder.classifier.weight"],
        model.state_dict()["decoder.classifier.weight"],
    )


def test_binary_needs_two_classes(small_dataset: Path) -> None:
    training = open_dataset(small_dataset)
    with pytest.raises(DatasetError, match="needs two classes, there are 3"):
        build_model(resolve(config(binary=True), check_split(training)), training)


def test_class_weights(small_dataset: Path) -> None:
    report = SplitReport(open_dataset(small_dataset))
    report.labeled, report.pixels[:] = 1000, (900, 100, 0)
    assert class_weights(config(), report) is None
    weights = class_weights(config(class_weights="auto"), report)
    assert weights is not None
    assert weights[1] / weights[0] == pytest.approx(9)
    assert 0.9 * weights[0] + 0.1 * weights[1] == pytest.approx(1)
    assert weights[2] == 1
    milder = class_weights(config(class_weights="auto", class_weight_power=0.5), report)
    assert milder is not None
    assert milder[1] / milder[0] == pytest.approx(3)
    report.labeled, report.pixels[:] = 10_000, (9990, 10, 0)
    rare = class_weights(config(class_weights="auto"), report)
    assert rare is not None
    assert rare[1] == 10


def test_explicit_class_weights(small_dataset: Path) -> None:
    report = SplitReport(open_dataset(small_dataset))
    for given in ("disc=2.5", ["disc=2.5"], {"disc": 2.5}):
        weights = class_weights(config(class_weights=given), report)
        assert weights is not None
        assert weights.tolist() == [1, 1, 2.5]
    with pytest.raises(ValueError, match="no class 'disk'; its classes are noise, box, disc"):
        class_weights(config(class_weights="disk=2"), report)


def deepen(root: Path, values_of: dict[str, object], channels: int) -> None:
    """Replace the training images by random ones of another type."""
    rng = np.random.default_rng(0)
    shape = (48, 64, channels) if channels > 1 else (48, 64)
    for file in sorted((root / "images/train").iterdir()):
        file.unlink()
        values = rng.uniform(values_of["low"], values_of["high"], shape)
        tifffile.imwrite(
            file.with_suffix(".tif"),
            values.astype(values_of["dtype"]),
            photometric="rgb" if channels == 3 else "minisblack",
        )
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    description["channels"] = channels
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))


@pytest.mark.parametrize(
    "values_of",
    [
        {"dtype": "float32", "low": -25, "high": 0},
        {"dtype": "int16", "low": -1000, "high": 3000},
        {"dtype": "uint16", "low": 0, "high": 4095},
    ],
    ids=["decibels", "CT", "12 bits"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_images_are_trained_with_their_own_statistics(
    small_dataset: Path, tmp_path: Path, tiny_model: SegFormer, values_of: dict, channels: int
) -> None:
    deepen(small_dataset, values_of, channels)
    report = check_split(open_dataset(small_dataset))
    assert report.errors == []
    tiny_model.save_pretrained(tmp_path / "five")  # a model of 8-bit RGB
    for changes in ({}, {"pretrained": str(tmp_path / "five")}):
        resolved = resolve(config(**changes), report)
        assert resolved.rescale == 1
        assert len(resolved.mean) == channels
        middle, spread = (
            (values_of["high"] + values_of["low"]) / 2,
            (values_of["high"] - values_of["low"]) / 12**0.5,
        )
        assert resolved.mean[0] == pytest.approx(middle, abs=0.03 * spread + 1)
        assert resolved.std[0] == pytest.approx(spread, rel=0.03)


def test_gray_images_of_8_bits_are_marked_as_such(small_dataset: Path) -> None:
    deepen(small_dataset, {"dtype": "uint8", "low": 0, "high": 256}, 1)
    resolved = resolve(config(), check_split(open_dataset(small_dataset)))
    assert resolved.rescale == 1 / 255
    assert resolved.mean[0] == pytest.approx(0.5, abs=0.01)
