import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segformer import SegFormer
from segformer.training.optimization import (
    encoder_layer,
    lr_factor,
    moving_average,
    parameter_groups,
)


def test_groups_are_the_paper_s(tiny_model: SegFormer) -> None:
    groups = {g["name"]: g for g in parameter_groups(tiny_model, 6e-5, 0.01, 10)}
    assert (groups["encoder"]["lr"], groups["encoder"]["weight_decay"]) == (6e-5, 0.01)
    assert groups["encoder without decay"]["weight_decay"] == 0
    assert groups["head"]["lr"] == pytest.approx(6e-4)
    assert groups["head"]["weight_decay"] == 0.01
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert len(set(grouped)) == len(grouped) == len(list(tiny_model.parameters()))
    norms = {
        id(p)
        for name, p in tiny_model.named_parameters()
        if name.startswith("encoder.") and "norm" in name
    }
    assert {id(p) for p in groups["encoder without decay"]["params"]} == norms


def test_norms_and_biases_can_all_go_without_decay(tiny_model: SegFormer) -> None:
    groups = parameter_groups(tiny_model, 1e-3, 0.05, 1, decay_norm_and_bias=False)
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(decays) == len(list(tiny_model.parameters()))
    assert all(decays[id(p)] == (0.05 if p.ndim > 1 else 0) for p in tiny_model.parameters())


LAYERS = {  # of the tiny model, whose stages have 1, 2, 1 and 1 blocks
    "encoder.stages.0.merging": 0,
    "encoder.stages.0.blocks.0": 1,
    "encoder.stages.0.norm": 1,
    "encoder.stages.1.merging": 2,
    "encoder.stages.1.blocks.0": 2,
    "encoder.stages.1.blocks.1": 3,
    "encoder.stages.1.norm": 3,
    "encoder.stages.2": 4,
    "encoder.stages.3": 5,
}


def test_layer_wise_decay_is_the_formula_for_each_tensor(tiny_model: SegFormer) -> None:
    """lr * decay ** (n + 1 - layer), as BEiT's optim_factory.py for n blocks; the head has lr."""
    groups = parameter_groups(tiny_model, 1e-3, 0.05, 2.0, layer_lr_decay=0.7)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    plain = parameter_groups(tiny_model, 1e-3, 0.05, 2.0)
    assert len(rates) == len(list(tiny_model.parameters()))
    assert decays == {id(p): g["weight_decay"] for g in plain for p in g["params"]}
    for name, parameter in tiny_model.named_parameters():
        layer = next((n for part, n in LAYERS.items() if name.startswith(part + ".")), None)
        assert (layer is None) == name.startswith("decoder.")
        expected = 2e-3 if layer is None else 1e-3 * 0.7 ** (6 - layer)
        assert rates[id(parameter)] == pytest.approx(expected, rel=1e-12), name
    assert groups[0]["name"] == "encoder layer 5"  # the one nearest to the head is the first


def test_layers_of_the_largest_model_are_numbered_through() -> None:
    depths = (3, 6, 40, 3)
    assert encoder_layer("stages.2.blocks.39.ffn.expand.weight", depths) == 49
    assert encoder_layer("stages.3.merging.projection.weight", depths) == 50
    assert encoder_layer("stages.3.norm.bias", depths) == 52


def test_schedules_end_at_the_lowest_rate() -> None:
    for schedule in ("poly", "cosine"):
        rates = [lr_factor(step, 100, 0, schedule, min_factor=0.01) for step in (0, 50, 100)]
        assert rates == pytest.approx([1, 0.505, 0.01])


def test_frozen_parameters_are_left_out(tiny_model: SegFormer) -> None:
    tiny_model.encoder.requires_grad_(False)
    assert [g["name"] for g in parameter_groups(tiny_model, 1e-4, 0.01, 1)] == ["head"]


def test_schedule_of_the_paper() -> None:
    """160k steps, warm-up 1500 from 1e-6, power 1."""

    def rate(step: int) -> float:
        return lr_factor(step, 160_000, 1500, "poly")

    assert rate(0) == pytest.approx(1e-6)
    assert rate(750) == pytest.approx((1e-6 + (1 - 1e-6) / 2) * (1 - 750 / 160_000))
    assert rate(1500) == pytest.approx(1 - 1500 / 160_000)
    assert rate(80_000) == 0.5
    assert rate(160_000) == 0


@given(
    total=st.integers(1, 1000),
    warmup=st.integers(0, 100),
    schedule=st.sampled_from(["poly", "cosine", "constant"]),
)
def test_schedules_stay_within_0_and_1(total: int, warmup: int, schedule: str) -> None:
    rates = [lr_factor(step, total, warmup, schedule) for step in range(total + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    after = rates[warmup + 1 :]
    assert after == sorted(after, reverse=True)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="no schedule 'linear'; there are poly"):
        lr_factor(0, 1, 0, "linear")


def test_moving_average_is_the_formula(tiny_model: SegFormer) -> None:
    average = moving_average(tiny_model, 0.9)
    weight = tiny_model.decoder.classifier.weight
    expected = None
    for step in range(30):
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape))
        average.update_parameters(tiny_model)
        decay = min(0.9, (1 + step) / (10 + step))
        value = weight.detach().clone()
        expected = value if expected is None else decay * expected + (1 - decay) * value
    averaged = average.module.decoder.classifier.weight
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)


def test_moving_average_copies_batch_norm_statistics(tiny_model: SegFormer) -> None:
    average = moving_average(tiny_model, 0.9)
    tiny_model.decoder.norm.running_mean.fill_(7)
    average.update_parameters(tiny_model)
    assert (average.module.decoder.norm.running_mean == 7).all()
