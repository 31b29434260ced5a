import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segformer import MixTransformer, SegFormer, SegFormerClassifier, SegFormerConfig
from segformer.config import HIDDEN_ACTS
from segformer.model import products
from segformer.model.layers import DropPath, EfficientSelfAttention, MixFFN, attend
from segformer.model.products import Linear


@settings(max_examples=25, deadline=None)
@given(height=st.integers(29, 140), width=st.integers(29, 140))
def test_map_sizes_for_any_image_size(height: int, width: int) -> None:
    config = SegFormerConfig(
        hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 3, 4)
    )
    with torch.no_grad():
        maps = MixTransformer(config)(torch.zeros(1, 3, height, width))
    for stage, stride in enumerate((4, 8, 16, 32)):
        size = (math.ceil(height / stride), math.ceil(width / stride))
        assert maps[stage].shape == (1, config.hidden_sizes[stage], *size)


def test_smallest_image_size(tiny_model: SegFormer) -> None:
    smallest = tiny_model.config.min_size
    assert smallest == 29
    assert tiny_model(torch.zeros(1, 3, smallest, 1000)).shape == (1, 5, 8, 250)
    with pytest.raises(ValueError, match="28 x 1000 pixels is too small .* at least 29"):
        tiny_model(torch.zeros(1, 3, smallest - 1, 1000))
    with pytest.raises(ValueError, match="1 x 1000 pixels is too small"):
        tiny_model(torch.zeros(1, 3, 1, 1000))


def test_wrong_channels_or_dimensions_are_errors(tiny_model: SegFormer) -> None:
    with pytest.raises(ValueError, match="expects images with 3 channels, but these have 4"):
        tiny_model(torch.zeros(1, 4, 64, 64))
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\)"):
        tiny_model(torch.zeros(3, 64, 64))


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("classes", [1, 2, 300])
def test_any_number_of_channels_and_classes(channels: int, classes: int) -> None:
    model = SegFormer.from_variant("b0", in_channels=channels, num_classes=classes)
    assert model(torch.zeros(2, channels, 64, 96)).shape == (2, classes, 16, 24)


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_attention_equals_the_formula_of_the_paper(reduction: int) -> None:
    torch.manual_seed(0)
    layer = EfficientSelfAttention(12, 3, reduction, eps=1e-6).double()
    tokens = torch.randn(2, 9, 10, 12, dtype=torch.float64)  # r = 2, 4 do not use the last row
    reduced = tokens
    if reduction > 1:
        reduced = F.conv2d(
            tokens.permute(0, 3, 1, 2), layer.reduction.weight, layer.reduction.bias, reduction
        ).permute(0, 2, 3, 1)
        reduced = layer.reduction_norm(reduced)
    query = layer.query(tokens).flatten(1, 2)
    key, value = layer.key_value(reduced).flatten(1, 2).split(12, dim=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 2  # sqrt(4)
        heads.append(scores.softmax(-1) @ value[..., part])
    expected = layer.output(torch.cat(heads, -1)).reshape(2, 9, 10, 12)
    torch.testing.assert_close(layer(tokens), expected, rtol=0, atol=1e-12)


def test_attention_equals_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 5, 10, 24)
    key, value = torch.randn(2, 2, 20, 24)
    exact = attend(query.double(), key.double(), value.double(), heads=3)
    heads = [t.unflatten(-1, (3, 8)).movedim(-2, 1) for t in (query.flatten(1, 2), key, value)]
    fused = F.scaled_dot_product_attention(*heads).movedim(1, -2).reshape(query.shape)
    torch.testing.assert_close(fused, exact.float(), rtol=0, atol=1e-5)
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        inputs = [t.to(dtype).requires_grad_() for t in (query, key, value)]
        for grad in (True, False):
            monkeypatch.setattr(products, "_CHUNK_BYTES", 1)  # chunks of eight rows
            monkeypatch.setattr(products, "_MIN_ROWS", 2)
            with torch.set_grad_enabled(grad):
                attended = attend(*inputs, heads=3)
            torch.testing.assert_close(attended.float(), fused, rtol=0, atol=atol)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_chunks_and_kernels_do_not_change_the_output(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(products, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(products, "_MIN_ROWS", rows)
    tokens = torch.randn(2, 13, 7, 12)
    for layer in (MixFFN(12, 4), EfficientSelfAttention(12, 3, 2, 1e-6), Linear(12, 5)):
        exact = layer.double()(tokens.double()).float()  # float64 products use MKL
        with torch.no_grad():
            torch.testing.assert_close(layer.float()(tokens), exact, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer(tokens), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("hidden_act", HIDDEN_ACTS)
def test_mix_ffn_equals_the_formula_of_the_paper(
    hidden_act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = MixFFN(6, 4, hidden_act).double()
    tokens = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    hidden = layer.expand(tokens).permute(0, 3, 1, 2)
    hidden = F.conv2d(hidden, layer.depthwise.weight, layer.depthwise.bias, padding=1, groups=24)
    if hidden_act == "gelu":
        activated = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    else:
        cubic = (2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
        activated = hidden * (1 + torch.tanh(cubic)) / 2
    expected = layer.contract(activated.permute(0, 2, 3, 1))
    torch.testing.assert_close(layer(tokens), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(products, "_CHUNK_BYTES", 1)  # several chunks
    monkeypatch.setattr(products, "_MIN_ROWS", 2)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), expected, rtol=0, atol=1e-12)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, branch = DropPath(0.25).train(), torch.ones(4000, 1, 1, 3)
    dropped = layer(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[..., :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert layer.eval()(branch) is branch


def test_maps_are_in_channels_last_memory(tiny_model: SegFormer) -> None:
    for maps in tiny_model.encoder(torch.zeros(1, 3, 64, 64)):
        assert maps.is_contiguous(memory_format=torch.channels_last)


def test_classifier_output_shape() -> None:
    model = SegFormerClassifier.from_variant("b0", num_classes=7).eval()
    assert model(torch.zeros(2, 3, 70, 90)).shape == (2, 7)


def test_out_indices_select_maps(tiny_model: SegFormer) -> None:
    config, pixels = tiny_model.config, torch.randn(1, 3, 64, 96)
    some = MixTransformer(config, out_indices=(0, 2)).eval()
    some.load_state_dict(tiny_model.encoder.state_dict())
    assert (some.out_channels, some.strides) == ((8, 24), (4, 16))
    with torch.no_grad():
        everything = tiny_model.encoder(pixels)
        for maps, expected in zip(some(pixels), (everything[0], everything[2]), strict=True):
            torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    for wrong in ((), (2, 1), (0, 0), (4,), (-1,)):
        with pytest.raises(ValueError, match="increasing numbers from 0 to 3"):
            MixTransformer(config, out_indices=wrong)


def test_frozen_stages_are_not_trained(tiny_model: SegFormer) -> None:
    encoder = tiny_model.encoder.freeze(2).train()
    assert [stage.training for stage in encoder.stages] == [False, False, True, True]
    encoder(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    learning = {name.split(".")[1] for name, p in encoder.named_parameters() if p.grad is not None}
    assert learning == {"2", "3"}
    encoder.freeze(0)
    assert all(p.requires_grad for p in encoder.parameters())
    with pytest.raises(ValueError, match="cannot freeze 5 stages: the encoder has 4"):
        encoder.freeze(5)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    config = SegFormerConfig(
        hidden_sizes=(8, 16, 24, 32),
        depths=(2, 2, 2, 2),
        num_attention_heads=(1, 2, 3, 4),
        drop_path=0.5,
    )
    encoder = MixTransformer(config).double().train()
    pixels = torch.randn(4, 3, 64, 64).double()
    gradients = []
    for enabled in (False, True):
        encoder.set_gradient_checkpointing(enabled).zero_grad()
        torch.manual_seed(0)  # stochastic depth drops the same blocks
        encoder(pixels)[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
