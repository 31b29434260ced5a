"""Other classes, channels or heads than a file has: adapted on request, logged, nothing more."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch

from conftest import TINY
from segformer import ClassSet, MixTransformer, SegFormer, SegFormerClassifier
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.formats import NVLABS
from segformer.model.pretrained import adapt_in_channels


@pytest.fixture
def stored(tmp_path: Path, tiny_model: SegFormer) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_another_number_of_classes_renews_the_classifier_alone(
    caplog: pytest.LogCaptureFixture, stored: Path, tiny_model: SegFormer
) -> None:
    with caplog.at_level(logging.INFO, logger="segformer"):
        model = SegFormer.from_pretrained(stored, num_classes=9)
    assert "it has 5 classes, not 9; the classifier is re-initialized" in caplog.text
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 9, 16, 16)
    assert len(model.classes) == 9
    for name, tensor in tiny_model.state_dict().items():
        if "classifier" not in name:
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model.decoder.classifier.weight.std() > 0
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="segformer"):
        same = SegFormer.from_pretrained(stored, num_classes=5)
    assert caplog.text == ""
    assert torch.equal(same.decoder.classifier.weight, tiny_model.decoder.classifier.weight)


def test_other_names_for_as_many_classes(stored: Path, tiny_model: SegFormer) -> None:
    classes = ClassSet(("v", "w", "x", "y", "z"))
    model = SegFormer.from_pretrained(stored, classes=classes)
    assert model.classes == classes
    assert torch.equal(model.decoder.classifier.weight, tiny_model.decoder.classifier.weight)
    assert len(SegFormer.from_pretrained(stored, classes=ClassSet(("a", "b"))).classes) == 2
    binary = SegFormer.from_pretrained(stored, classes=ClassSet(("a", "b")), num_classes=1)
    assert binary.config.num_classes == 1


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_channels(
    caplog: pytest.LogCaptureFixture, stored: Path, tiny_model: SegFormer, channels: int
) -> None:
    with caplog.at_level(logging.INFO, logger="segformer"):
        model = SegFormer.from_pretrained(stored, in_channels=channels)
    assert f"first convolution is adapted to {channels}" in caplog.text
    assert len(model.preprocessing.mean) == channels
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():  # an image whose channels are alike looks the same
        expected = tiny_model(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(model(gray.expand(-1, channels, -1, -1)), expected)
        encoder = MixTransformer.from_pretrained(stored, in_channels=channels)
        assert encoder(gray.expand(-1, channels, -1, -1))[0].shape == (1, 8, 16, 16)


def test_the_colors_keep_their_weights_beside_a_fourth_band() -> None:
    weight = torch.randn(8, 3, 7, 7)
    adapted = adapt_in_channels(weight, 4)
    torch.testing.assert_close(adapted[:, :3], weight * 3 / 4)
    torch.testing.assert_close(adapted[:, 3], weight.mean(1) * 3 / 4)
    torch.testing.assert_close(adapt_in_channels(weight, 1)[:, 0], weight.sum(1))
    assert adapt_in_channels(weight, 3) is weight


def test_a_classifier_or_encoder_becomes_a_segmenter_only_if_asked(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    classifier = SegFormerClassifier(TINY)
    classifier.save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        CheckpointError,
        match=r"holds a classifier without decoder; pass num_classes=.* or load it with SegFormerC",
    ):
        SegFormer.from_pretrained(tmp_path / "classifier")
    with caplog.at_level(logging.INFO, logger="segformer"):
        model = SegFormer.from_pretrained(tmp_path / "classifier", num_classes=3)
    assert "it has no decoder; the decoder is re-initialized" in caplog.text
    for name, tensor in classifier.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name
    assert model(torch.zeros(1, 3, 64, 64)).isfinite().all()
    encoder = NVLABS.from_ours({f"encoder.{n}": t for n, t in model.encoder.state_dict().items()})
    torch.save(encoder, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=r"an encoder without head; .*MixTransformer"):
        SegFormerClassifier.from_pretrained(tmp_path / "encoder.pth")
    assert SegFormerClassifier.from_pretrained(tmp_path / "encoder.pth", num_classes=4)


def test_a_misfit_says_its_likely_cause(tmp_path: Path, stored: Path) -> None:
    config = stored / "config.json"
    text = config.read_text()
    for change, cause in (
        (('"num_channels": 3', '"num_channels": 4'), "the file is for 3 channels, not 4"),
        (('"decoder_hidden_size": 16', '"decoder_hidden_size": 24'), "is 16 wide, not 24"),
        (("[\n    1,\n    2,\n    1,\n    1\n  ]", "[1, 2, 2, 1]"), r"depths \(1, 2, 1, 1\), not"),
    ):
        assert change[0] in text
        config.write_text(text.replace(*change))
        with pytest.raises(CheckpointError, match=cause) as caught:
            SegFormer.from_pretrained(stored)
        assert re.search(r"expected \(.*\), found \(|missing", str(caught.value))


def test_weights_that_lack_a_stage(tmp_path: Path, tiny_model: SegFormer) -> None:
    tensors = NVLABS.from_ours(tiny_model.state_dict())
    kept = {n: t for n, t in tensors.items() if "block3" not in n}
    torch.save(kept, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth: the encoder is incomplete: .*stages.2"):
        SegFormer.from_pretrained(tmp_path / "x.pth")
    mixed = {**tensors, "backbone.block2.0.attn.kv.weight": torch.zeros(31, 16)}
    torch.save(mixed, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"key_value.weight: expected \(32, 16\), found \(31"):
        SegFormer.from_pretrained(tmp_path / "x.pth")


def test_a_folder_with_several_files(tmp_path: Path, tiny_model: SegFormer) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save(NVLABS.from_ours(tiny_model.state_dict()), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several files of weights; .*a.pth, b.pth"):
        SegFormer.from_pretrained(tmp_path)
    (tmp_path / "b.pth").rename(tmp_path / ".b.pth")  # hidden: left by a writer that was killed
    assert SegFormer.from_pretrained(tmp_path).config.num_classes == 5


def test_a_model_of_another_kind_of_smp(tmp_path: Path, stored: Path) -> None:
    (stored / "config.json").write_text('{"_model_class": "Unet"}')
    with pytest.raises(CheckpointError, match="a Unet of segmentation_models.pytorch"):
        SegFormer.from_pretrained(stored)
