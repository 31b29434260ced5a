"""Every command and every example of the README, run as written, in an empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import draw_dataset
from data.test_class_folders import draw_classes
from segformer.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_command_and_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: object
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photograph).save("holiday.jpg")
    draw_dataset(tmp_path / "shapes")
    draw_classes(tmp_path / "colors")
    commands = examples = 0
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            examples += 1
            continue
        for line in text.strip().splitlines():
            words = shlex.split(line, comments=True)
            if words[0] == "make":
                targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert words[1] in targets
                continue
            assert words[0] == "segformer"
            if words[1] == "train":  # fifty epochs as written take a minute: two teach as much
                words[words.index("--epochs") + 1] = "2"
            assert main(words[1:]) == 0, line
            commands += 1
    assert (commands, examples) == (8, 3)
    for path in ("masks/holiday.png", "masks/holiday_overlay.jpg", "masks/summary.json"):
        assert Path(path).is_file()
    assert {p.name for p in Path("my-model").iterdir()} >= {"config.json", "model.safetensors"}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_another_head_on_the_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import own_head

        own_head.main(steps=3)
    finally:
        sys.path.pop(0)
    assert "heat map of 16 x 16" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_demo_writes_overlays_and_ids(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import portraits

        portraits.main(str(tmp_path))
    finally:
        sys.path.pop(0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "astronaut.png", "astronaut_overlay.jpg", "grace_hopper.png", "grace_hopper_overlay.jpg",
    }  # fmt: skip
