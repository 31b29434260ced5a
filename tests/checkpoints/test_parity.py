"""The same numbers as every codebase whose weights are read."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.record_smp import CLASSES, INPUT_SHAPE, OUTPUTS, VARIANTS, digest, draw, sample
from conftest import TINY, randomize
from segformer import MixTransformer, SegFormer, SegFormerClassifier, SegFormerConfig
from segformer.checkpoints.formats import HUB_IN_MEMORY, NVLABS, OPENMMLAB, SMP
from segformer.checkpoints.writing import convert
from segformer.config import OPENMMLAB_EPS, ORIGINAL_EPS

transformers = pytest.importorskip("transformers")

CONFIGS = {
    "tiny": TINY,
    "b0": SegFormerConfig.from_variant("b0", num_classes=150),
    "b5": SegFormerConfig.from_variant("b5", num_classes=150),
}


def pixels_like(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def transformers_config(config: SegFormerConfig) -> transformers.SegformerConfig:
    return transformers.SegformerConfig(
        hidden_sizes=list(config.hidden_sizes),
        depths=list(config.depths),
        num_attention_heads=list(config.num_attention_heads),
        decoder_hidden_size=config.decoder_hidden_size,
        num_labels=config.num_classes,
    )


@pytest.mark.parametrize("size", CONFIGS)
@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_transformers(size: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, ours = {
        "segmentation": (transformers.SegformerForSemanticSegmentation, SegFormer),
        "classification": (transformers.SegformerForImageClassification, SegFormerClassifier),
    }[kind]
    theirs = randomize(whole(transformers_config(CONFIGS[size]))).eval()
    theirs.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "in_memory.pth")  # transformers 5's other names
    pixels = pixels_like(1, 3, 64, 97)
    with torch.no_grad():
        model = ours.from_pretrained(tmp_path)
        again = ours.from_pretrained(tmp_path / "in_memory.pth")
        expected = theirs(pixels).logits
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(again(pixels), expected, rtol=0, atol=1e-4)
        expected = theirs.double()(pixels.double()).logits
        torch.testing.assert_close(model.double()(pixels.double()), expected, rtol=0, atol=1e-9)


def test_gradients_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = randomize(transformers.SegformerForSemanticSegmentation(transformers_config(TINY)))
    theirs.save_pretrained(tmp_path)
    model = SegFormer.from_pretrained(tmp_path).double()
    theirs.eval().double()
    pixels = pixels_like(2, 3, 64, 64).double()
    model(pixels).square().sum().backward()
    theirs(pixels).logits.square().sum().backward()
    ours = HUB_IN_MEMORY.from_ours({n: p.grad for n, p in model.named_parameters()})
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_smp(variant: str, tmp_path: Path) -> None:
    recorded = json.loads(OUTPUTS.read_text())[variant]
    config = SegFormerConfig.from_variant(
        variant, num_classes=CLASSES, decoder_hidden_size=VARIANTS[variant]
    )
    with torch.device("meta"):
        shapes = SMP.from_ours(SegFormer(config).state_dict())
    assert digest(shapes.items()) == recorded["names"]
    tensors = {name: draw(name, tuple(tensor.shape)) for name, tensor in shapes.items()}
    torch.save(tensors, tmp_path / "smp.pth")
    model = SegFormer.from_pretrained(tmp_path / "smp.pth").double()
    assert model.config == replace(config, eps=ORIGINAL_EPS)
    # from_pretrained rounds to float32, the record was made in float64
    model.load_state_dict(dict(SMP.to_ours(tensors, tensors.__getitem__)))
    pixels = draw("pixels", INPUT_SHAPE)
    with torch.no_grad():
        for maps, expected in zip(model.encoder(pixels), recorded["features"], strict=True):
            assert sample(maps) == pytest.approx(expected, rel=0, abs=1e-9)
        assert sample(model(pixels)) == pytest.approx(recorded["logits"], rel=0, abs=1e-9)


def heads_attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """(B, N, C), (B, M, C) twice -> (B, N, C): softmax(q k^T / sqrt(d)) v in each head."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def plain_encoder(
    pixels: Tensor, config: SegFormerConfig, tensors: dict[str, Tensor], names: dict[str, str]
) -> list[Tensor]:
    """The encoder as the paper's section 3.1 and the released code have it, over named tensors."""

    def layer(function, key: str, *args: object, **numbers: object) -> Tensor:
        name = names[key].format(**numbers)
        joint = "" if name.endswith("_") else "."
        return function(*args, tensors[f"{name}{joint}weight"], tensors[f"{name}{joint}bias"])

    def norm(eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight.flatten(1), bias)

    maps, outputs = pixels, []
    for s, (heads, r, depth) in enumerate(
        zip(config.num_attention_heads, config.sr_ratios, config.depths, strict=True)
    ):
        where = {"s": s, "n": s + 1}
        stride, padding = (2, 1) if s else (4, 3)
        maps = layer(partial(F.conv2d, stride=stride, padding=padding), "merge", maps, **where)
        height, width = maps.shape[2:]
        x = maps.flatten(2).transpose(1, 2)
        x = layer(partial(norm, config.eps.merging), "merge_norm", x, **where)
        for b in range(depth):
            where["b"] = b
            y = layer(partial(norm, config.eps.block), "norm1", x, **where)
            reduced = y
            if r > 1:
                grid = y.transpose(1, 2).unflatten(2, (height, width))
                grid = layer(partial(F.conv2d, stride=r), "sr", grid, **where)
                reduced = grid.flatten(2).transpose(1, 2)
                reduced = layer(partial(norm, config.eps.reduction), "sr_norm", reduced, **where)
            if "qkv" in names:
                query = layer(linear, "qkv", y, **where).chunk(3, -1)[0]
                key, value = layer(linear, "qkv", reduced, **where).chunk(3, -1)[1:]
            else:
                query = layer(linear, "q", y, **where)
                key, value = layer(linear, "kv", reduced, **where).chunk(2, -1)
            attended = heads_attend(query, key, value, heads)
            x = x + layer(linear, "proj", attended, **where)
            y = layer(partial(norm, config.eps.block), "norm2", x, **where)
            y = layer(linear, "fc1", y, **where).transpose(1, 2).unflatten(2, (height, width))
            y = layer(partial(F.conv2d, padding=1, groups=y.shape[1]), "dw", y, **where)
            y = F.gelu(y).flatten(2).transpose(1, 2)
            x = x + layer(linear, "fc2", y, **where)
        x = layer(partial(norm, config.eps.stage), "norm", x, **where)
        maps = x.transpose(1, 2).unflatten(2, (height, width))
        outputs.append(maps)
    return outputs


NVLABS_BLOCK = "backbone.block{n}.{b}."
NVLABS_NAMES = {
    "merge": "backbone.patch_embed{n}.proj",
    "merge_norm": "backbone.patch_embed{n}.norm",
    "norm1": NVLABS_BLOCK + "norm1",
    "sr": NVLABS_BLOCK + "attn.sr",
    "sr_norm": NVLABS_BLOCK + "attn.norm",
    "q": NVLABS_BLOCK + "attn.q",
    "kv": NVLABS_BLOCK + "attn.kv",
    "proj": NVLABS_BLOCK + "attn.proj",
    "norm2": NVLABS_BLOCK + "norm2",
    "fc1": NVLABS_BLOCK + "mlp.fc1",
    "dw": NVLABS_BLOCK + "mlp.dwconv.dwconv",
    "fc2": NVLABS_BLOCK + "mlp.fc2",
    "norm": "backbone.norm{n}",
}
OPENMMLAB_BLOCK = "backbone.layers.{s}.1.{b}."
OPENMMLAB_NAMES = {
    "merge": "backbone.layers.{s}.0.projection",
    "merge_norm": "backbone.layers.{s}.0.norm",
    "norm1": OPENMMLAB_BLOCK + "norm1",
    "sr": OPENMMLAB_BLOCK + "attn.sr",
    "sr_norm": OPENMMLAB_BLOCK + "attn.norm",
    "qkv": OPENMMLAB_BLOCK + "attn.attn.in_proj_",
    "proj": OPENMMLAB_BLOCK + "attn.attn.out_proj",
    "norm2": OPENMMLAB_BLOCK + "norm2",
    "fc1": OPENMMLAB_BLOCK + "ffn.layers.0",
    "dw": OPENMMLAB_BLOCK + "ffn.layers.1",
    "fc2": OPENMMLAB_BLOCK + "ffn.layers.4",
    "norm": "backbone.layers.{s}.2",
}


def batch_norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    statistics = (tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"])
    return F.batch_norm(x, *statistics, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def nvlabs_head(features: list[Tensor], tensors: dict[str, Tensor]) -> Tensor:
    size = features[0].shape[2:]
    projected = []
    for n in (4, 3, 2, 1):
        weight = tensors[f"decode_head.linear_c{n}.proj.weight"][:, :, None, None]
        maps = F.conv2d(features[n - 1], weight, tensors[f"decode_head.linear_c{n}.proj.bias"])
        projected.append(F.interpolate(maps, size, mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(projected, 1), tensors["decode_head.linear_fuse.conv.weight"])
    fused = batch_norm(fused, tensors, "decode_head.linear_fuse.bn").relu()
    name = "decode_head.linear_pred"
    return F.conv2d(fused, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def openmmlab_head(features: list[Tensor], tensors: dict[str, Tensor]) -> Tensor:
    size = features[0].shape[2:]
    projected = []
    for s in range(4):
        maps = F.conv2d(features[s], tensors[f"decode_head.convs.{s}.conv.weight"])
        maps = batch_norm(maps, tensors, f"decode_head.convs.{s}.bn").relu()
        projected.append(F.interpolate(maps, size, mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(projected, 1), tensors["decode_head.fusion_conv.conv.weight"])
    fused = batch_norm(fused, tensors, "decode_head.fusion_conv.bn").relu()
    return F.conv2d(
        fused, tensors["decode_head.conv_seg.weight"], tensors["decode_head.conv_seg.bias"]
    )


@pytest.mark.parametrize("size", CONFIGS)
@pytest.mark.parametrize("codebase", ["nvlabs", "openmmlab"])
def test_plain_transcriptions(size: str, codebase: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    format, decoder, eps, names, head = {
        "nvlabs": (NVLABS, "original", ORIGINAL_EPS, NVLABS_NAMES, nvlabs_head),
        "openmmlab": (OPENMMLAB, "openmmlab", OPENMMLAB_EPS, OPENMMLAB_NAMES, openmmlab_head),
    }[codebase]
    width = 256 if codebase == "openmmlab" else CONFIGS[size].decoder_hidden_size
    config = replace(CONFIGS[size], decoder=decoder, decoder_hidden_size=width, eps=eps)
    tensors = format.from_ours(randomize(SegFormer(config)).state_dict())
    torch.save({"meta": {}, "state_dict": tensors}, tmp_path / "theirs.pth")
    model = SegFormer.from_pretrained(tmp_path / "theirs.pth")
    assert model.config == config
    pixels = pixels_like(1, 3, 64, 97)
    with torch.no_grad():
        expected = head(plain_encoder(pixels, config, tensors, names), tensors)
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model.fold()(pixels), expected, rtol=0, atol=1e-4)
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
        expected = head(plain_encoder(pixels.double(), config, tensors, names), tensors)
        double = model.double()(pixels.double())
        torch.testing.assert_close(double, expected, rtol=0, atol=1e-9)


def test_eps_of_the_origin_moves_outputs_a_little() -> None:
    torch.manual_seed(0)
    model = SegFormer.from_pretrained("human-parsing-b0")
    pixels = pixels_like(1, 3, 256, 256)
    logits = {}
    for name, eps in {"hf": None, "nvlabs": ORIGINAL_EPS, "mmseg": OPENMMLAB_EPS}.items():
        config = replace(model.config, eps=eps) if eps else model.config
        other = SegFormer(config, model.classes).eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            logits[name] = other(pixels)
    for name in ("nvlabs", "mmseg"):
        difference = (logits[name] - logits["hf"]).abs().max()
        assert 1e-6 < difference < 1e-1


def test_an_encoder_alone_has_the_features_of_the_whole(tmp_path: Path) -> None:
    model = randomize(SegFormer(TINY)).eval()
    model.save_pretrained(tmp_path / "hf")
    pixels = pixels_like(1, 3, 64, 64)
    for source in ("hf", "nvlabs.pth", "smp.pth"):
        if source != "hf":
            convert(tmp_path / "hf", tmp_path / source, source.removesuffix(".pth"))
        encoder = MixTransformer.from_pretrained(tmp_path / source, out_indices=(1, 3))
        assert encoder.out_channels == (16, 32)
        assert encoder.strides == (8, 32)
        with torch.no_grad():
            for maps, i in zip(encoder(pixels), (1, 3), strict=True):
                torch.testing.assert_close(maps, model.encoder(pixels)[i], rtol=0, atol=0)
