"""Trainings of low-rank adapters and with layer-wise rates."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import draw_dataset, randomize
from segformer import SegFormer, SegmentationTrainConfig, resume, train
from segformer.model.lora import add_adapters, has_adapters, merged

QUICK = {
    "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 4, "num_workers": 0,
    "log_every": 1, "precision": "float32", "device": "cpu", "schedule": "constant",
}  # fmt: skip


@pytest.fixture
def pretrained(tmp_path: Path, tiny_variant: str) -> str:
    torch.manual_seed(0)
    model = SegFormer.from_variant(tiny_variant, classes=("noise", "box", "disc"))
    randomize(model).save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained")


def adapters(pretrained: str, **changes: object) -> SegmentationTrainConfig:
    options = {**QUICK, "pretrained": pretrained, "lora_rank": 2, "lora_alpha": 4.0, **changes}
    return SegmentationTrainConfig(**options)


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_models_are_merged_and_the_checkpoint_keeps_the_adapters(
    tmp_path: Path, pretrained: str, ema_decay: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "segformer")
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    train(dataset, run, adapters(pretrained, ema_decay=ema_decay))
    checkpoint = torch.load(run / "resume.ckpt", weights_only=True)
    adapted_model = SegFormer.from_pretrained(pretrained)
    add_adapters(adapted_model.encoder, 2, 4.0)
    state = checkpoint["model"]
    if ema_decay:
        state = {
            name.removeprefix("module."): tensor
            for name, tensor in checkpoint["average"].items()
            if name != "n_averaged"
        }
    assert any(tensor.any() for name, tensor in state.items() if name.endswith(".up"))
    adapted_model.load_state_dict(state)
    plain = merged(adapted_model).state_dict()
    for folder in ("last", "best"):
        saved = SegFormer.from_pretrained(run / folder)
        assert not has_adapters(saved)
        if folder == "last":
            for name, tensor in saved.state_dict().items():
                torch.testing.assert_close(tensor, plain[name], rtol=1e-6, atol=1e-7)
    before = SegFormer.from_pretrained(pretrained).state_dict()
    frozen = [name for name in before if "depthwise" in name or "merging.projection" in name]
    assert frozen
    assert all(torch.equal(plain[name], before[name]) for name in frozen)
    trained = sum(p.numel() for p in adapted_model.parameters() if p.requires_grad)
    assert f"training {trained:,} of " in caplog.text


def test_adapters_are_resumed_exactly(tmp_path: Path, pretrained: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    train(dataset, tmp_path / "whole", adapters(pretrained))
    train(dataset, tmp_path / "parts", adapters(pretrained, max_steps=2))
    resume(tmp_path / "parts", max_steps=4)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, other = (
        SegFormer.from_pretrained(tmp_path / n / "last").state_dict() for n in ("whole", "parts")
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_adapters_learn(tmp_path: Path, pretrained: str) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    changes = {"max_steps": 40, "lora_rank": 4, "lr": 3e-3, "ema_decay": 0.0, "val_every": 99}
    train(dataset, run, adapters(pretrained, **changes))
    curve = losses(run)
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])


def test_adapters_need_a_pretrained_model() -> None:
    with pytest.raises(ValueError, match="lora_rank needs pretrained"):
        SegmentationTrainConfig(lora_rank=4)


def test_default_rates_of_adapters(tmp_path: Path, pretrained: str) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    train(dataset, run, adapters(pretrained, max_steps=1))
    config = SegmentationTrainConfig.from_yaml(run / "config.yaml")
    assert (config.lr, config.head_lr_factor) == (6e-4, 1.0)


def test_layer_wise_rates_move_the_first_layers_less(tmp_path: Path, pretrained: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    before = SegFormer.from_pretrained(pretrained).state_dict()
    config = replace(
        adapters(pretrained, lora_rank=0, max_steps=1, ema_decay=0.0, warmup_steps=0, lr=1e-3),
        layer_lr_decay=0.5,
        weight_decay=0.0,
    )
    train(dataset, tmp_path / "run", config)
    after = SegFormer.from_pretrained(tmp_path / "run/last").state_dict()
    with (tmp_path / "run/metrics.csv").open() as file:
        assert float(next(csv.DictReader(file))["lr"]) == 1e-3  # the rate before the decay
    for stage, factor in enumerate((0.5**4, 0.5**3, 0.5**2, 0.5**1)):
        name = f"encoder.stages.{stage}.blocks.0.ffn.expand.weight"
        # The first step of Adam changes each weight by its rate
        moved = (after[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 * factor, rel=1e-2)
