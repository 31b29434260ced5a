from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segformer import SegFormer
from segformer.data.check import SplitReport, check_split
from segformer.data.dataset import DatasetError, open_dataset
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
    report.pixels[:] = (900, 100, 0)
    assert class_weights(config(), report) is None
    weights = class_weights(config(class_weight_power=0.5), report)
    assert weights is not None
    assert weights[1] / weights[0] == pytest.approx(3)
    assert 0.9 * weights[0] + 0.1 * weights[1] == pytest.approx(1)
    assert weights[2] == 1
