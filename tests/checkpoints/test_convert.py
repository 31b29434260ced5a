"""Conversion between formats: what is written, and what is never replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from conftest import TINY, randomize
from segformer import MixTransformer, SegFormer, SegFormerClassifier, SegFormerConfig
from segformer.checkpoints.writing import convert
from segformer.cli import main
from segformer.files import OutputExists


def pixels_like(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def source(tmp_path: Path, tiny_model: SegFormer) -> Path:
    tiny_model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("name", ["x.pth", "x.bin", "x.safetensors", "hf"])
@pytest.mark.parametrize("format", ["hf", "nvlabs", "smp", "segformer"])
def test_converted_folders_load_in_transformers(format: str, name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if name == "hf":
        name = format if format in ("hf", "smp") else "y.pth"
    config = SegFormerConfig.from_variant("b0", num_classes=7)  # SMP's folders name a variant
    model = randomize(SegFormer(config)).eval()
    model.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / name, format)
    convert(tmp_path / name, tmp_path / "back", "hf")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "float32"
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "back")
    pixels = pixels_like(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), theirs(pixels).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("format", ["nvlabs", "mmseg"])
def test_converted_encoders_load_in_transformers(format: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = randomize(MixTransformer(TINY)).eval()
    torch.save(encoder.state_dict(), tmp_path / "ours.pth")
    convert(tmp_path / "ours.pth", tmp_path / "theirs.pth", format)
    convert(tmp_path / "theirs.pth", tmp_path / "hf", "hf")
    theirs = transformers.SegformerModel.from_pretrained(tmp_path / "hf")
    pixels = pixels_like(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state
        torch.testing.assert_close(encoder(pixels)[-1], expected, rtol=0, atol=1e-4)


def test_a_converted_classifier_loads_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = randomize(SegFormerClassifier(TINY)).eval()
    model.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "x.pth", "nvlabs")
    convert(tmp_path / "x.pth", tmp_path / "hf", "hf", dtype=torch.float16)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float16"
    whole = transformers.SegformerForImageClassification
    theirs = whole.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    pixels = pixels_like(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), theirs(pixels).logits, rtol=0, atol=1e-2)


def test_existing_files_are_replaced_only_if_asked(tmp_path: Path, source: Path) -> None:
    for name, format in (("x.pth", "nvlabs"), ("folder", "hf")):
        destination = tmp_path / name
        convert(source, destination, format)
        files = [destination] if destination.is_file() else sorted(destination.iterdir())
        before = [file.read_bytes() for file in files]
        files[0].write_bytes(b"mine")
        with pytest.raises(OutputExists, match=rf"{files[0].name}.* already exist.*--overwrite"):
            convert(source, destination, format)
        assert files[0].read_bytes() == b"mine"
        convert(source, destination, format, overwrite=True)
        assert [file.read_bytes() for file in files] == before
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "notes.txt").touch()
    convert(source, tmp_path / "beside", "hf")  # what it would not replace is no reason


def test_the_source_is_never_replaced(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(source)
    os.link(source / "model.safetensors", tmp_path / "hard.safetensors")
    monkeypatch.chdir(source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for destination, format in (
        (source, "hf"),
        (Path(), "hf"),
        (tmp_path / "link", "hf"),
        (source / "inside", "hf"),
        (source / "x.pth", "nvlabs"),
        (source / "model.safetensors", "nvlabs"),
        (tmp_path / "hard.safetensors", "nvlabs"),
    ):
        with pytest.raises(ValueError, match="is the model to be converted, or lies in its folder"):
            convert(source, destination, format, overwrite=True)
    weights = source / "model.safetensors"
    for destination in (weights, source, tmp_path / "link"):  # the source is a file in the folder
        with pytest.raises(ValueError, match="is the model to be converted"):
            convert(weights, destination, "hf", overwrite=True)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    convert(weights, source / "x.pth", "nvlabs")


def test_the_command_refuses_and_overwrites(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(source), str(tmp_path / "x.pth"), "--format", "nvlabs"]
    assert main(words) == 0
    assert main(words) == 1
    assert "x.pth already exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
