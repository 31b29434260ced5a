"""`segformer predict`, and what all commands have of the terminal."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from conftest import run_python
from segformer import ClassSet, SegFormer, SegFormerClassifier, progress
from segformer.cli import COMMANDS, main
from segformer.cli.terminal import end_number_lists, number_lists, printable, show
from segformer.prediction.predictor import Predictor


@dataclass
class Inner:
    scales: tuple[float, ...] = ()
    size: tuple[int, int] | None = None


@dataclass
class Outer:
    images: tuple[str, ...]
    inner: Inner
    crop_sizes: tuple[int, ...] | None = None


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images and a model beside it; it is the current folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (50, 40), (9, 99, 199)).save(folder / name)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def model(tmp_path: Path, tiny_model: SegFormer) -> str:
    tiny_model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    SegFormerClassifier.from_variant("b0", num_classes=7).save_pretrained(tmp_path / "classifier")
    return str(tmp_path / "classifier")


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_files_are_not_replaced_unless_asked(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a_overlay.jpg").write_bytes(b"precious")
    words = ["predict", "a.jpg", "--model", model, "--out", "."]
    assert main(words) == 1
    assert "a_overlay.jpg already exists" in capsys.readouterr().err
    assert names(photos) == ["a.jpg", "a_overlay.jpg", "b.png"]
    assert (photos / "a_overlay.jpg").read_bytes() == b"precious"
    assert main([*words, "--overwrite"]) == 0
    assert names(photos) == ["a.jpg", "a.png", "a_overlay.jpg", "b.png", "summary.json"]
    assert main(["predict", "b.png", "--model", model, "--out", ".", "--overwrite"]) == 1
    assert "is one of the images to predict" in capsys.readouterr().err


def test_twice_the_same_command(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", ".", "--model", model]
    assert main(words) == 0
    results = names(photos / "predictions")
    assert results == ["a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg", "summary.json"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "already exist" in error
    assert "--skip-existing" in error
    assert main([*words, "--skip-existing"]) == 0
    assert "2 of 2 images segmented into predictions, 2 of them earlier" in capsys.readouterr().out
    assert main([*words, "--overwrite"]) == 0
    assert main(["predict", ".", "--model", model, "--out", "elsewhere"]) == 0
    assert names(photos / "elsewhere") == results


def test_the_number_list_ends_at_the_file(photos: Path, model: str) -> None:
    words = ["predict", "--model", model, "--scales", "0.75", "1", "a.jpg", "b.png", "--flip"]
    assert main([*words, "--confidence"]) == 0
    with Image.open("predictions/b_confidence.png") as image:
        assert image.mode == "L"
        assert image.size == (50, 40)
        assert np.asarray(image).min() >= 255 // 5  # the best of five classes
    assert len(names(photos / "predictions")) == 7


def test_number_lists_end_at_the_first_other_word() -> None:
    options = number_lists(Outer)
    assert options == {"--scales", "--crop-sizes"}
    words = "a --scales 1 -2.5 b --crop_sizes 3 --x 4 c -- --scales d".split()
    expected = "a b --x 4 c --scales 1 -2.5 --crop_sizes 3 -- --scales d".split()
    assert end_number_lists(words, options) == expected


def test_exit_codes_tell_some_from_all(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").write_text("broken")
    assert main(["predict", ".", "--model", model]) == 3
    assert "broken.jpg: not an image" in capsys.readouterr().err
    assert main(["predict", "broken.jpg", "--model", model, "--out", "x"]) == 1
    assert json.loads(Path("x/summary.json").read_text())["finished"]


def test_an_output_folder_that_cannot_be_written_to(
    photos: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(Predictor, "__init__", never)
    assert main(["predict", "a.jpg", "--model", model, "--out", "b.png"]) == 1
    assert "cannot write into b.png" in capsys.readouterr().err
    assert main(["predict", "a.jpg", "--model", model, "--out", "/proc/version/x"]) == 1


def test_a_classifier(photos: Path, classifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.jpg").write_text("broken")
    options = ["--model", classifier, "--size", "64", "64", "--flip"]
    words = ["predict", "a.jpg", "b.png", *options]
    assert main(["predict", "broken.jpg", *words[1:]]) == 3
    written = json.loads(Path("predictions/classes.json").read_text())
    assert [len(row["classes"]) for row in written["images"]] == [5, 5]
    assert "broken.jpg" in written["failed"][0]["error"]
    assert written["finished"]
    assert main(words) == 1
    assert "classes.json already exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "option",
    ["--confidence", "--no-overlay", "--overlay", "--skip-existing", "--window 64", "--scales 2"],
)
def test_options_that_a_classifier_has_not(
    photos: Path, classifier: str, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["predict", "a.jpg", "--model", classifier, *option.split()]) == 1
    assert "the model is a classifier" in capsys.readouterr().err
    assert names(photos) == ["a.jpg", "b.png"]


def test_quiet_shows_results_only(
    photos: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=120))
    assert main(["predict", ".", "--model", model, "--out", "loud"]) == 0
    assert "predicting" in screen.getvalue()
    (photos / "predictions").mkdir()
    screen.seek(0)
    screen.truncate()
    assert main(["predict", ".", "--model", model, "--quiet"]) == 0
    assert screen.getvalue() == ""
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "2 of 2 images segmented" in captured.out
    assert not logging.getLogger("segformer").isEnabledFor(logging.INFO)


@pytest.mark.parametrize("command", [[], ["predict"], ["info"], ["convert"]])
def test_every_help_tells_common_options_and_exit_codes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main([*command, "--help"]) == 0
    except SystemExit as stop:
        assert stop.code == 0
    shown = capsys.readouterr().out
    for words in ("--quiet", "--verbose", "3 some inputs failed", "130 interrupted"):
        assert words in shown


def test_help_needs_no_torch_and_names_all_commands() -> None:
    code = "import sys; from segformer.cli import main; main([]); assert 'torch' not in sys.modules"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)


def test_names_from_files_cannot_control_the_terminal(
    photos: Path, tmp_path: Path, tiny_model: SegFormer, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model.classes = ClassSet(tuple(f"\x1b[31mred{i}\u202e" for i in range(5)))
    tiny_model.save_pretrained(tmp_path / "evil")
    (photos / "a.jpg").rename(photos / "a\x1b[2J.jpg")
    (photos / "\x1b]0;c\x07.jpg").write_text("broken")
    assert main(["predict", ".", "--model", str(tmp_path / "evil")]) == 3
    captured = capsys.readouterr()
    for stream in (captured.out, captured.err):
        assert not {"\x1b", "\x07", "\u202e"} & set(stream)
    assert r"\x1b[2J.jpg" in captured.out
    assert r"\x1b]0;c\x07.jpg" in captured.err
    table = Table("\x1b[31mname")
    table.add_row("\x1b[2Jcell [bold]")
    show(table)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]" in shown
    assert shown.count("\n") == 5
    assert printable("caf\u00e9 \u6c34\n\udc80") == "caf\u00e9 \u6c34\n\\udc80"
