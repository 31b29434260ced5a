from dataclasses import replace

import pytest
import torch

from conftest import TINY
from segformer import SegFormer, SegFormerClassifier, SegFormerConfig
from segformer.config import DECODERS, VARIANTS, count_macs, tensor_shapes

# The paper's tables 1 and 6: encoder and decoder (150 classes) in millions, GMACs, image size
PUBLISHED = {
    "b0": (3.32, 0.43, 8.4, 512),
    "b1": (13.15, 0.56, 15.9, 512),
    "b2": (24.20, 3.27, 62.4, 512),
    "b3": (44.07, 3.27, 79.0, 512),
    "b4": (60.84, 3.27, 95.7, 512),
    "b5": (81.44, 3.27, 183.3, 640),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_macs_are_the_published_ones(variant: str) -> None:
    encoder, decoder, gmacs, size = PUBLISHED[variant]
    with torch.device("meta"):
        model = SegFormer.from_variant(variant, num_classes=150)
    assert round(count_parameters(model.encoder) / 1e6, 2) == encoder
    assert round(count_parameters(model.decoder) / 1e6, 2) == decoder
    macs = count_macs(model.config, size, size)
    assert (macs.encoder + macs.decoder) / 1e9 == pytest.approx(gmacs, rel=2e-3)


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_folding_removes_the_widest_product() -> None:
    config = SegFormerConfig.from_variant("b2", num_classes=150)
    macs = count_macs(config, 512, 512)
    assert (macs.decoder - macs.decoder_folded) / 1e9 == pytest.approx(38.7, abs=0.05)


def test_macs_follow_odd_sizes() -> None:
    config = SegFormerConfig.from_variant("b0")
    small, large = count_macs(config, 97, 131), count_macs(config, 100, 132)
    assert small == large  # both have the same maps


@pytest.mark.parametrize("name", ["B3", "mit-b3", "mit_b3", "MiT-B3"])
def test_variant_names(name: str) -> None:
    assert SegFormerConfig.from_variant(name).variant == "b3"


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match="no SegFormer variant 'b6'; the variants are b0, b1"):
        SegFormerConfig.from_variant("b6")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": (32, 64, 160)}, "four positive integers"),
        ({"num_attention_heads": (3, 2, 5, 8)}, "3 attention heads do not divide 32"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1"),
        ({"drop_path": 1.0}, "probability"),
    ],
)
def test_impossible_configurations(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegFormerConfig(**fields)


def test_stochastic_depth_rises_over_all_blocks() -> None:
    model = SegFormerClassifier.from_variant("b0", drop_path=0.1)
    rates = [b.drop_path.probability for s in model.encoder.stages for b in s.blocks]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


CONFIGS = {
    **{name: SegFormerConfig.from_variant(name) for name in VARIANTS},
    "tiny": replace(TINY, in_channels=5, mlp_ratio=3, num_classes=7, sr_ratios=(2, 1, 2, 1)),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_tensor_shapes_are_those_of_the_models(name: str, decoder: str) -> None:
    config = replace(CONFIGS[name], decoder=decoder)
    with torch.device("meta"):
        models = {
            ("encoder.", "decoder."): SegFormer(config),
            ("encoder.", "head."): SegFormerClassifier(config),
        }
    for parts, model in models.items():
        expected = {n: tuple(tensor.shape) for n, tensor in model.state_dict().items()}
        assert tensor_shapes(config, parts) == expected
        for part in parts:
            of_part = {n: shape for n, shape in expected.items() if n.startswith(part)}
            assert tensor_shapes(config, [part]) == of_part
