"""Inference uses the current weights of a model and does not change its mode."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import TINY, randomize
from segformer import SegFormer, SegFormerClassifier
from segformer.model import decoder
from segformer.model.segformer import inference_copy


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_inference_copy_shares_parameters_and_keeps_the_mode(tiny_model: SegFormer) -> None:
    tiny_model.train()
    tiny_model.encoder.freeze(1)
    before = modes(tiny_model)
    inference = inference_copy(tiny_model)
    assert modes(tiny_model) == before
    assert not any(modes(inference))
    for kind in ("named_parameters", "named_buffers"):
        own, shared = dict(getattr(tiny_model, kind)()), dict(getattr(inference, kind)())
        assert own.keys() == shared.keys()
        assert all(own[name] is shared[name] for name in own)
    tiny_model.eval()
    pixels = torch.randn(1, 3, 61, 99)
    with torch.no_grad():
        assert torch.equal(inference(pixels), tiny_model(pixels))


def test_inference_copy_follows_training_and_loaded_weights(tiny_model: SegFormer) -> None:
    inference, pixels = inference_copy(tiny_model), torch.randn(2, 3, 64, 64)

    def follows() -> bool:
        tiny_model.eval()
        with torch.no_grad():
            same = torch.equal(inference(pixels), tiny_model(pixels))
        tiny_model.train()
        return same

    with torch.no_grad():
        first = inference(pixels)
    optimizer = torch.optim.SGD(tiny_model.train().parameters(), 0.1)
    tiny_model(pixels).square().mean().backward()  # also updates the BatchNorm statistics
    optimizer.step()
    assert follows()
    tiny_model.load_state_dict(randomize(SegFormer(TINY), seed=3).state_dict())
    assert follows()
    with torch.no_grad():
        assert not torch.allclose(inference(pixels), first)


def test_inference_copy_of_a_classifier() -> None:
    model = SegFormerClassifier.from_variant("b0", num_classes=7, drop_path=0.5).train()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = inference_copy(model)(pixels)
        assert model.training
        torch.testing.assert_close(model.eval()(pixels), expected, rtol=0, atol=0)


def test_fold_keeps_the_mode(tiny_model: SegFormer) -> None:
    before = modes(tiny_model.train())
    folded = tiny_model.fold()
    assert modes(tiny_model) == before
    assert not any(modes(folded))


@pytest.mark.parametrize("width", [16, 17])
def test_the_sum_of_a_graph_is_the_same(width: int) -> None:
    """With width 17, stage 2 has fewer channels and is upsampled before its product."""
    sides = ((12, 10), (6, 5), (3, 3), (2, 2))
    features = [torch.randn(2, c, *side) for c, side in zip((8, 16, 24, 32), sides, strict=True)]
    weights = [torch.randn(width, maps.shape[1]) for maps in features]
    bias = torch.randn(width)
    expected = decoder._fuse(features, weights, bias)
    found = decoder._fuse_in_graph(features, weights, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", ["original", "openmmlab"])
def test_evaluation_without_gradients_folds_the_decoder(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomize(SegFormer(replace(TINY, decoder=head))).eval()
    pixels = torch.randn(1, 3, 61, 99)
    folds = []
    original = decoder._fold

    def fold(given: decoder.MLPDecoder) -> object:
        folds.append(given)
        return original(given)

    monkeypatch.setattr(decoder, "_fold", fold)
    expected = model(pixels)
    assert not folds
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-5)
        assert folds == [model.decoder]
        model.train()(pixels)  # batch statistics cannot be folded
        assert len(folds) == 1
        model.eval().decoder.norm.train()
        model(pixels)
        assert len(folds) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_folded_in_float32(
    tiny_model: SegFormer, dtype: torch.dtype
) -> None:
    """The composed weights are rounded only once, at the end."""
    half = tiny_model.to(dtype)
    with torch.no_grad():
        expected = SegFormer(TINY).eval()
        expected.load_state_dict(half.state_dict())
        folded, full = half.fold().decoder, expected.fold().decoder
        for name, buffer in folded.named_buffers():
            assert torch.equal(buffer, full.get_buffer(name).to(dtype)), name


def test_evaluation_under_autocast(tiny_model: SegFormer) -> None:
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = tiny_model(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            logits = tiny_model(pixels)
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.1)


def test_synchronized_batch_norm_folds(tiny_model: SegFormer) -> None:
    pixels = torch.randn(1, 3, 61, 99)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(tiny_model)
    assert isinstance(converted.decoder.norm, nn.SyncBatchNorm)
    expected = converted(pixels)
    with torch.no_grad():
        torch.testing.assert_close(converted.fold()(pixels), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(converted(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_shapes_on_the_meta_device(training: bool) -> None:
    with torch.device("meta"):
        model = SegFormer(TINY).train(training)
        pixels = torch.empty(2, 3, 61, 99)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert model(pixels).shape == (2, 5, 16, 25)
