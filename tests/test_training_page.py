"""Every command and every example of docs/training.md, run as written on a small data set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import draw_dataset
from page_runner import code_blocks, commands
from segformer.cli import main

PAGE = Path(__file__).parent.parent / "docs/training.md"
TEXT = PAGE.read_text(encoding="utf-8")

SMALLER = {"--epochs": "1", "--max-time": "3s"}
"""What a training of the page is run with instead, so that it takes seconds."""

SMALL = "--crop-size 32 --short-side 48 --num-workers 0 --precision float32".split()


def smaller(words: list[str]) -> list[str]:
    """The words of a command; a training is made smaller."""
    if words[0] != "train":
        return words
    if "--resume" in words:
        return [{"100": "2"}.get(word, word) for word in words]
    words = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    batch = [] if "--batch-size" in words else ["--batch-size", "2"]
    return [*words, *SMALL, *batch]


def test_every_command_and_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_dataset(tmp_path / "shapes")
    run = 0
    for language, text in code_blocks(PAGE):
        if language == "python":
            code = text.replace("epochs=50", "epochs=1, crop_size=32, short_side=48, num_workers=0")
            exec(compile(code, "training.md", "exec"), {})
        elif language == "":
            for words in commands(text):
                assert main(smaller(words)) == 0, words
                run += 1
    assert run == 9
    assert "from 10 steps" in capsys.readouterr().out
    assert len(list(Path("runs/kept/checkpoints").iterdir())) == 1
    listed = re.search(r"^runs/shapes/\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert listed is not None
    for line in listed[1].splitlines():
        for name in line.split("#")[0].split():
            if name != "tensorboard/":
                assert (Path("runs/shapes") / name).exists(), name
    columns = Path("runs/shapes/metrics.csv").read_text().splitlines()[0].split(",")
    assert all(f"`{column}`" in TEXT for column in columns)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (Path(__file__).parent.parent / "docs" / target).is_file(), target
