"""Compare the fast decoder with the plain formula of the paper, implemented here."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import TINY, randomize
from segformer import SegFormer
from segformer.model import products
from segformer.model.decoder import MLPDecoder


def plain(decoder: MLPDecoder, features: list[Tensor]) -> Tensor:
    """Linear, upsample, concatenate, 1x1 convolution, BatchNorm, ReLU, classifier."""
    size = features[0].shape[2:]
    projected = []
    for linear, maps in zip(decoder.projections, features, strict=True):
        tokens = linear(maps.flatten(2).transpose(1, 2))
        maps = tokens.transpose(1, 2).reshape(maps.shape[0], -1, *maps.shape[2:])
        projected.append(F.interpolate(maps, size=size, mode="bilinear", align_corners=False))
    fused = decoder.fuse(torch.cat(projected[::-1], dim=1))
    norm = decoder.norm
    fused = F.batch_norm(
        fused,
        norm.running_mean.clone(),
        norm.running_var.clone(),
        norm.weight,
        norm.bias,
        training=decoder.training,
        eps=norm.eps,
    )
    return decoder.classifier(fused.relu())


def maps_of(height: int, width: int, *, requires_grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(
            (2, c, -(-height // s), -(-width // s)), generator=generator, dtype=torch.float64
        ).requires_grad_(requires_grad)
        for c, s in zip(TINY.hidden_sizes, (4, 8, 16, 32), strict=True)
    ]


def test_chunks_do_not_change_the_output(
    decoder: MLPDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, features = decoder.eval(), maps_of(61, 99)
    exact = decoder(features)
    monkeypatch.setattr(products, "_CHUNK_BYTES", 1)  # chunks of eight rows
    with torch.no_grad():
        torch.testing.assert_close(decoder.fold()(features), exact, rtol=0, atol=1e-12)
        single = [maps.float() for maps in features]
        folded = decoder.float().fold()(single)
    torch.testing.assert_close(folded, exact.float(), rtol=0, atol=1e-5)


@pytest.fixture
def decoder() -> MLPDecoder:
    torch.manual_seed(0)
    return randomize(MLPDecoder(replace(TINY, dropout=0.0)).double())


@pytest.mark.parametrize("size", [(64, 64), (61, 99), (29, 250)])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_equal_the_plain_formula(
    decoder: MLPDecoder, size: tuple[int, int], training: bool
) -> None:
    decoder.train(training)
    features = maps_of(*size, requires_grad=True)
    weights = torch.randn(decoder(features).shape, dtype=torch.float64)
    wanted = [*features, *decoder.parameters()]

    expected = plain(decoder, features)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), wanted)
    actual = decoder(features)
    gradients = torch.autograd.grad((actual * weights).sum(), wanted)

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(64, 64), (61, 99)])
def test_folded_equals_the_plain_formula(decoder: MLPDecoder, size: tuple[int, int]) -> None:
    decoder.eval()
    features = maps_of(*size)
    with torch.no_grad():
        expected = plain(decoder, features)
        torch.testing.assert_close(decoder.fold()(features), expected, rtol=0, atol=1e-10)


def test_batch_norm_statistics_equal_the_plain_formula(decoder: MLPDecoder) -> None:
    features = maps_of(64, 64)
    projected = []
    for linear, maps in zip(decoder.projections, features, strict=True):
        maps = linear(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        projected.append(F.interpolate(maps, size=(16, 16), mode="bilinear"))
    fused = decoder.fuse(torch.cat(projected[::-1], dim=1))
    expected = 0.9 * decoder.norm.running_mean + 0.1 * fused.mean((0, 2, 3))
    decoder.train()(features)
    torch.testing.assert_close(decoder.norm.running_mean, expected, rtol=0, atol=1e-10)


def test_dropout_drops_whole_channels() -> None:
    """If the classifier copies the channels, each logit map is its scaled channel or 0."""
    torch.manual_seed(0)
    config = replace(TINY, dropout=0.25, num_classes=16)
    decoder = MLPDecoder(config).double().train()
    with torch.no_grad():
        decoder.classifier.weight.copy_(torch.eye(16)[:, :, None, None])
        decoder.classifier.bias.zero_()
    features = maps_of(64, 64)
    decoder.dropout = 0.0
    whole = decoder(features)
    decoder.dropout = 0.25
    dropped = decoder(features)
    kept = (dropped != 0).any(-1).any(-1)  # (B, K)
    assert 0 < kept.sum() < kept.numel()
    expected = whole / 0.75 * kept[:, :, None, None]
    torch.testing.assert_close(dropped, expected, rtol=0, atol=1e-10)


def test_fold_shares_the_encoder_and_does_not_change_the_model(
    tiny_model: SegFormer,
) -> None:
    pixels = torch.randn(1, 3, 61, 99)
    with torch.no_grad():
        expected = tiny_model(pixels)
        folded = tiny_model.fold()
        torch.testing.assert_close(folded(pixels), expected, rtol=0, atol=1e-5)
    own = dict(tiny_model.encoder.named_parameters())
    assert all(own[name] is p for name, p in folded.encoder.named_parameters())
    assert isinstance(tiny_model.decoder, MLPDecoder)
    with pytest.raises(ValueError, match="folded model cannot be saved"):
        folded.save_pretrained("anywhere")


def test_a_trained_model_accepts_other_image_sizes() -> None:
    torch.manual_seed(0)
    model = SegFormer(TINY)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    model.eval()
    for size in ((64, 64), (97, 45), (256, 31)):
        logits = model(torch.randn(1, 3, *size))
        assert logits.shape == (1, 5, -(-size[0] // 4), -(-size[1] // 4))
        assert logits.isfinite().all()
