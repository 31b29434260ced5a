"""The command line as a person meets it: in a process of its own, or called with words."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import draw_dataset, run_python
from segformer import SegFormer
from segformer.cli import COMMANDS, main


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "segformer", *words], capture_output=True, text=True, check=False
    )


def test_help_lists_the_commands_without_importing_torch() -> None:
    code = (
        "import sys; from segformer.cli import main; main(['--help']);"
        "assert not {'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", ["predict", "train", "evaluate", "serve"])
def test_help_of_a_command_teaches_and_needs_no_torch(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys; from segformer.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "Example: segformer" in result.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_tells_what_defaults_mean(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: segformer {command}")
    assert "None" not in text


def test_unknown_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predct"]) == 2
    assert "did you mean predict?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["train", "d", "--batch-sise", "3"])
    assert stop.value.code == 2
    assert main(["--version"]) == 0


def test_predict(tmp_path: Path, tiny_model: SegFormer, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (50, 40), (9, 99, 199)).save(tmp_path / name)
    (tmp_path / "c.jpg").write_text("broken")
    words = [
        *("predict", str(tmp_path / "a.png"), str(tmp_path / "b.png")),
        *("--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")),
        *("--window", "64", "--stride", "48", "--scales", "0.75", "1", "1.25", "--flip"),
    ]
    assert main(words) == 0
    assert "2 of 2 images segmented" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "out/a.png")).shape == (40, 50)
    words.insert(3, str(tmp_path / "c.jpg"))
    assert main([*words, "--overwrite"]) == 3
    captured = capsys.readouterr()
    assert "2 of 3 images segmented" in captured.out
    assert "c.jpg: not an image in a known format" in captured.err
    assert len(json.loads((tmp_path / "out/summary.json").read_text())["failed"]) == 1


def test_errors_are_one_sentence_without_a_stack() -> None:
    for words, message in (
        (("predict", "x.jpg", "--model", "nowhere"), "nowhere: no such model"),
        (("predict", "x.jpg", "--window", "10", "--stride", "20"), "leaves gaps"),
        (("evaluate", "nowhere", "--model", "human-parsing-b0"), "nowhere: no such data set"),
        (("train", "nowhere"), "nowhere: no such data set"),
        (("train", "--resume", "nowhere"), "nowhere: there is no run to resume"),
        (("predict", "x.jpg", "--out", __file__), "test_cli.py"),
        (("data", "check", "nowhere"), "nowhere: no such data set"),
    ):
        result = run(*words)
        assert result.returncode in (1, 2), words
        assert message in result.stderr, (words, result.stderr)
        assert "Traceback" not in result.stderr


def test_a_reader_that_stops_early_is_no_error() -> None:
    program = "from segformer.cli import main; raise SystemExit(main(['train', '--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, message = process.communicate(timeout=100)
    assert message == b""


def test_data_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    assert main(["data", "check", str(dataset)]) == 0
    shown = capsys.readouterr().out
    assert "split train: 6 images of 64x48 (6)" in shown
    assert "ready to train" in shown
    (dataset / "masks/train/00.png").unlink()
    assert main(["data", "check", str(dataset)]) == 1
    shown = capsys.readouterr().out
    assert "00.png: there is no mask for this image" in shown
    assert "training would fail" in shown


def test_train_evaluate_predict_from_recipe_to_image(
    tmp_path: Path, tiny_variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = draw_dataset(tmp_path / "shapes")
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(
        "variant: tiny\ncrop_size: 32\nshort_side: 48\nbatch_size: 2\n"
        "max_steps: 99\nnum_workers: 0\n"
    )
    out = tmp_path / "run"
    words = ["train", str(dataset), "--recipe", str(recipe), "--max-steps", "4", "--out", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown
    assert f"best model: {out / 'best'}" in shown.replace("\n", "")
    recorded = (out / "config.yaml").read_text()
    assert "max_steps: 4" in recorded
    assert "crop_size: 32" in recorded

    report = tmp_path / "report"
    words = ["evaluate", str(dataset), "--model", str(out / "best"), "--out", str(report)]
    assert main(words) == 0
    scores = json.loads((report / "report.json").read_text())
    trained = json.loads((out / "report.json").read_text())
    assert scores["miou"] == trained["miou"]
    assert scores["protocol"]["scales"] == [1.0]


def test_resume_takes_only_a_longer_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--resume", "run", "--lr", "3"], ["--resume=run", "--cache", "true"]):
        assert main(["train", *words]) == 1
        assert "the only other options it takes are --epochs" in capsys.readouterr().err


def test_options_of_the_other_task_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "d", "--task", "classify", "--dice-weight", "1"]) == 1
    assert "--dice-weight is an option of task segment" in capsys.readouterr().err
    assert main(["train", "d", "--mixup-alpha", "1"]) == 1
    assert "--mixup-alpha is an option of task classify" in capsys.readouterr().err


def test_the_configuration_of_a_run_is_a_recipe(tmp_path: Path, tiny_variant: str) -> None:
    dataset, recipe = draw_dataset(tmp_path / "shapes"), tmp_path / "a.yaml"
    recipe.write_text(
        f"dataset: {dataset}\nout: {tmp_path / 'first'}\nvariant: tiny\ncrop_size: 32\n"
        "short_side: 48\nbatch_size: 6\nmax_steps: 3\nnum_workers: 0\n"
    )
    assert main(["train", "--recipe", str(recipe)]) == 0
    again = str(tmp_path / "first" / "config.yaml")
    second = tmp_path / "second"
    assert main(["train", "--recipe", again, "--epochs", "1", "--out", str(second)]) == 0
    assert "max_steps: 1" in (second / "config.yaml").read_text()  # of the epochs, not the recipe
