"""`segformer compare`, called with words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.test_evaluate import save_segmenter
from conftest import draw_dataset, run_python
from segformer import ClassSet, SegFormerClassifier, SegFormerConfig
from segformer.checkpoints import opening
from segformer.cli import main


@pytest.fixture
def words(tmp_path: Path, tiny_config: SegFormerConfig) -> list[str]:
    """A command line that works; options can be appended."""
    first = save_segmenter(tmp_path / "first", tiny_config, ("noise", "box", "disc"))
    second = save_segmenter(tmp_path / "second", tiny_config, ("disc", "box", "noise"))
    dataset = draw_dataset(tmp_path / "shapes", val=4)
    return [
        *("compare", first, second, "--dataset", str(dataset), "--out", str(tmp_path / "out")),
        *("--resamples", "100", "--short-side", "48", "--device", "cpu"),
    ]


def test_files_and_exit_codes(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "95 % interval" in shown
    entries = json.loads((tmp_path / "out/comparison.json").read_text())
    assert (entries["a"], entries["b"]) == (words[1], words[2])
    assert (entries["resamples"], entries["images"]) == (100, 4)
    assert entries["protocol"]["short_side"] == 48
    assert main(words) == 1
    assert "comparison.json" in capsys.readouterr().err
    (tmp_path / "shapes/images/val/00.png").write_bytes(b"broken")
    assert main([*words, "--overwrite", "--seed", "7"]) == 3
    assert "skipped images: 1" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/comparison.json").read_text())["seed"] == 7


def test_what_is_refused(
    tmp_path: Path,
    words: list[str],
    tiny_config: SegFormerConfig,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([*words, "--resamples", "3"]) == 1
    assert "--resamples must be at least 100" in capsys.readouterr().err
    classifier = SegFormerClassifier(tiny_config, ClassSet.numbered(5))
    classifier.save_pretrained(tmp_path / "classifier")
    assert main(["compare", words[1], str(tmp_path / "classifier"), *words[3:]]) == 1
    assert "only segmentation models can be compared" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/comparison.html").write_text("mine")
    monkeypatch.setattr(opening, "open_checkpoint", None)  # refused before a model is opened
    assert main(words) == 1
    assert (tmp_path / "out/comparison.html").read_text() == "mine"


def test_the_base_installation_is_enough(words: list[str]) -> None:
    hidden = ["lightning", "matplotlib", "tensorboard", "transformers", "torchmetrics"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        f"from segformer.cli import main\nsys.exit(main({words}))"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from segformer.cli import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "Example: segformer compare" in result.stdout
    for option in ("--dataset", "--resamples", "--match-classes", "--val-fraction", "--window"):
        assert option in result.stdout
