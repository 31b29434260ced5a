"""Other classes, other bands, other heads than a file has: asked for, said, and nothing more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from conftest import TINY
from segformer import LabelSet, MixTransformer, SegFormer, SegFormerClassifier
from segformer.checkpoints.dialects import NVLABS
from segformer.checkpoints.store import adapt_bands
from segformer.checkpoints.tensors import CheckpointError
from segformer.progress import console


@pytest.fixture
def stored(tmp_path: Path, tiny_model: SegFormer) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_another_number_of_classes_renews_the_classifier_alone(
    stored: Path, tiny_model: SegFormer
) -> None:
    with console.capture() as said:
        model = SegFormer.from_pretrained(stored, num_classes=9)
    assert "its 5 classes are not these 9; the classifier starts anew" in said.get()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 9, 16, 16)
    assert len(model.labels) == 9
    for name, tensor in tiny_model.state_dict().items():
        if "classifier" not in name:
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model.decoder.classifier.weight.std() > 0
    with console.capture() as said:
        same = SegFormer.from_pretrained(stored, num_classes=5)
    assert said.get() == ""
    assert torch.equal(same.decoder.classifier.weight, tiny_model.decoder.classifier.weight)


def test_other_names_for_as_many_classes(stored: Path, tiny_model: SegFormer) -> None:
    labels = LabelSet(("v", "w", "x", "y", "z"))
    model = SegFormer.from_pretrained(stored, labels=labels)
    assert model.labels == labels
    assert torch.equal(model.decoder.classifier.weight, tiny_model.decoder.classifier.weight)
    assert len(SegFormer.from_pretrained(stored, labels=LabelSet(("a", "b"))).labels) == 2
    binary = SegFormer.from_pretrained(stored, labels=LabelSet(("a", "b")), num_classes=1)
    assert binary.config.num_classes == 1


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_other_bands(stored: Path, tiny_model: SegFormer, bands: int) -> None:
    with console.capture() as said:
        model = SegFormer.from_pretrained(stored, in_channels=bands)
    assert f"first convolution is adapted to {bands}" in said.get()
    assert len(model.preprocessing.mean) == bands
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():  # a picture whose bands are alike looks the same
        expected = tiny_model(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(model(grey.expand(-1, bands, -1, -1)), expected)
        encoder = MixTransformer.from_pretrained(stored, in_channels=bands)
        assert encoder(grey.expand(-1, bands, -1, -1))[0].shape == (1, 8, 16, 16)


def test_the_colours_keep_their_weights_beside_a_fourth_band() -> None:
    weight = torch.randn(8, 3, 7, 7)
    adapted = adapt_bands(weight, 4)
    torch.testing.assert_close(adapted[:, :3], weight * 3 / 4)
    torch.testing.assert_close(adapted[:, 3], weight.mean(1) * 3 / 4)
    torch.testing.assert_close(adapt_bands(weight, 1)[:, 0], weight.sum(1))
    assert adapt_bands(weight, 3) is weight


def test_a_classifier_or_encoder_becomes_a_segmenter_only_if_asked(tmp_path: Path) -> None:
    classifier = SegFormerClassifier(TINY)
    classifier.save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        CheckpointError,
        match=r"holds a classifier without decoder; with num_classes=.* or load it with SegFormerC",
    ):
        SegFormer.from_pretrained(tmp_path / "classifier")
    with console.capture() as said:
        model = SegFormer.from_pretrained(tmp_path / "classifier", num_classes=3)
    assert "no decoder in it; the decoder starts anew" in said.get()
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
        (('"num_channels": 3', '"num_channels": 4'), "the file is for 3 bands, not 4"),
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
    with pytest.raises(CheckpointError, match=r"which of its files is the model\? .*a.pth, b.pth"):
        SegFormer.from_pretrained(tmp_path)
    (tmp_path / "b.pth").unlink()
    assert SegFormer.from_pretrained(tmp_path).config.num_classes == 5


def test_a_model_of_another_kind_of_smp(tmp_path: Path, stored: Path) -> None:
    (stored / "config.json").write_text('{"_model_class": "Unet"}')
    with pytest.raises(CheckpointError, match="a Unet of segmentation_models.pytorch"):
        SegFormer.from_pretrained(stored)
