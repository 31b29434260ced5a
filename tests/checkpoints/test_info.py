from __future__ import annotations

import json
from pathlib import Path

import pytest

from segformer import SegFormer, SegFormerClassifier
from segformer.checkpoints.info import describe
from segformer.checkpoints.opening import open_checkpoint
from segformer.checkpoints.writing import convert
from segformer.cli import main
from segformer.config import ORIGINAL_EPS


def test_info_of_the_model_inside(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for words in ("SegFormer-B0, segmentation", "Hub (transformers)", "apache-2.0", "3.72 M"):
        assert words in shown
    assert "upper-clothes" in shown


def test_info_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SegFormer.from_variant("b2", num_classes=150, eps=ORIGINAL_EPS)
    model.save_pretrained(tmp_path / "b2")
    convert(tmp_path / "b2", tmp_path / "b2.pth", "nvlabs")
    assert main(["info", str(tmp_path / "b2.pth"), "--json", "--size", "512", "512"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["variant"], found["format"], found["kind"]) == ("b2", "NVlabs", "segmenter")
    expected = {
        part: sum(p.numel() for p in getattr(model, part).parameters())
        for part in ("encoder", "decoder")
    }
    assert found["parameters"] == expected
    assert sum(found["macs"][p] for p in expected) / 1e9 == pytest.approx(62.4, abs=0.1)
    assert found["macs"]["decoder_folded"] < 0.2 * found["macs"]["decoder"]
    assert found["eps"]["block"] == 1e-6
    assert len(found["classes"]) == 150


def test_info_of_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SegFormerClassifier.from_variant("b0", num_classes=10).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "center crop 224 x 224" in shown
    assert describe(open_checkpoint(tmp_path))["parameters"]["head"] == 2570


def test_errors_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--size", "8", "8"]) == 1
    assert "8 x 8 pixels are too small" in capsys.readouterr().err
    assert main(["info", "nowhere"]) == 1
    assert main(["convert", "nowhere", str(tmp_path / "x.pth"), "--format", "nvlabs"]) == 1
    words = ["convert", "human-parsing-b0", str(tmp_path / "x.pth"), "--format", "nvlabs"]
    assert main(words) == 0
    assert "Hub (transformers) segmenter ->" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "x.pth")]) == 0
