"""Low-rank adapters: the formula, which parameters are trained, and merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import TINY, randomize
from segformer import Predictor, SegFormer
from segformer.model.lora import AdaptedLinear, add_adapters, has_adapters, merged
from segformer.model.products import Linear


def adapted(rank: int = 3, alpha: float = 6.0, *, seed: int = 0) -> SegFormer:
    """A model whose adapters have been trained: no matrix is zero."""
    torch.manual_seed(seed)
    model = SegFormer(TINY)
    randomize(model)
    add_adapters(model.encoder, rank, alpha)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.mark.parametrize("parts", [1, 2])
def test_outputs_and_gradients_are_the_formula(parts: int) -> None:
    """In float64: W x + b + alpha / r B A x, for each part of the outputs."""
    torch.manual_seed(0)
    base = nn.Linear(6, 8).double()
    layer = AdaptedLinear(Linear(6, 8), 3, 5.0, parts).double()
    layer.weight.data, layer.bias.data = base.weight.data, base.bias.data
    layer.up.data = torch.randn(8, 3, dtype=torch.float64)
    tokens = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    variables = (layer.down, layer.up, tokens)
    ours = layer(tokens)
    found = torch.autograd.grad(ours, variables, upstream)
    branches = [
        tokens @ down.T @ up.T
        for down, up in zip(layer.down.chunk(parts), layer.up.chunk(parts), strict=True)
    ]
    expected = tokens @ base.weight.T + base.bias + 5 / 3 * torch.cat(branches, -1)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, variables, upstream))


def test_the_adapted_model_starts_as_the_model() -> None:
    torch.manual_seed(0)
    model = SegFormer(TINY)
    randomize(model)
    model.eval()
    pixels = torch.randn(1, 3, 64, 64)
    before = model(pixels)
    add_adapters(model.encoder, 2, 4.0)
    torch.testing.assert_close(model(pixels), before, rtol=0, atol=0)
    again = SegFormer(TINY)
    add_adapters(again.encoder, 2, 4.0)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert not name.endswith(".down") or torch.equal(one, other)  # the seed decides


def test_adapters_norms_and_decoder_are_trained() -> None:
    model = adapted()
    for name, parameter in model.named_parameters():
        expected = name.startswith("decoder.") or name.endswith((".up", ".down")) or "norm" in name
        assert parameter.requires_grad == expected, name
    blocks = sum(TINY.depths)
    assert sum(isinstance(m, AdaptedLinear) for m in model.modules()) == 5 * blocks
    model.train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_frozen_stages_have_no_adapters() -> None:
    model = SegFormer(TINY)
    model.encoder.freeze(2)
    add_adapters(model.encoder, 2, 4.0)
    assert not any(has_adapters(stage) for stage in model.encoder.stages[:2])
    assert all(has_adapters(stage) for stage in model.encoder.stages[2:])
    assert not any(p.requires_grad for p in model.encoder.stages[0].parameters())


@pytest.mark.parametrize("size", [(64, 64), (150, 93)])
def test_the_merged_model_is_plain_and_equal(size: tuple[int, int]) -> None:
    model = adapted()
    plain = merged(model)
    assert has_adapters(model)
    assert not has_adapters(plain)
    assert plain.state_dict().keys() == SegFormer(TINY).state_dict().keys()
    assert all(parameter.requires_grad for parameter in plain.parameters())
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels), model(pixels), rtol=0, atol=0)
    assert merged(plain) is plain


def test_an_adapted_model_is_saved_as_a_plain_checkpoint(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path)
    loaded = SegFormer.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(pixels), model(pixels), rtol=1e-6, atol=1e-6)
    image = (torch.rand(40, 50, 3) * 255).to(torch.uint8).numpy()
    assert (Predictor(model)(image).label_map == Predictor(loaded)(image).label_map).all()


def test_autocast_does_not_round_the_sum() -> None:
    layer = AdaptedLinear(Linear(6, 8), 3, 5.0)
    with torch.no_grad():
        layer.up.normal_()
    expected = layer.merged_weight()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.merged_weight(), expected, rtol=0, atol=0)
