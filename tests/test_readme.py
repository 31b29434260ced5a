"""Every command and every example of the README, run as written, in an empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from checkpoints.hub_server import HubServer, Repository
from checkpoints.test_hub import hub  # noqa: F401  # a fixture
from conftest import draw_dataset
from data.test_class_folders import draw_classes
from page_runner import code_blocks
from segformer import SegFormer, SegFormerClassifier
from segformer.cli import main

ROOT = Path(__file__).parent.parent
BLOCKS = code_blocks(ROOT / "README.md")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def publish(
    server: HubServer, name: str, model: SegFormer | SegFormerClassifier, folder: Path
) -> None:
    """Random weights under the name of a published model."""
    model.save_pretrained(folder)
    server.repositories[name] = Repository()
    server.repositories[name].commit({path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.fixture
def user_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    photograph: np.ndarray,
    hub: HubServer,  # noqa: F811
) -> Path:
    """The files that the README's reader has, and the published models that it names."""
    folder = tmp_path / "user"
    (folder / "photos").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in ("photo.jpg", "photos/first.jpg", "photos/second.jpg"):
        Image.fromarray(photograph).save(name)
    draw_dataset(folder / "my-data")
    (text,) = (text for language, text in BLOCKS if language == "yaml")
    (folder / "my-data/dataset.yaml").write_text(text)
    draw_classes(folder / "my-classes")
    ade = "nvidia/segformer-b0-finetuned-ade-512-512"
    publish(hub, ade, SegFormer.from_variant("b0", num_classes=150), tmp_path / "ade")
    publish(hub, "nvidia/mit-b0", SegFormerClassifier.from_variant("b0"), tmp_path / "mit")
    return folder


def test_every_command_and_example_runs(user_folder: Path) -> None:
    commands = examples = 0
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            examples += 1
        elif language == "":
            for line in text.strip().splitlines():
                commands += run(line)
    assert commands == 10
    assert examples == 4
    for path in ("masks/photo.png", "masks/photo_overlay.jpg", "masks/summary.json"):
        assert Path(path).is_file()
    assert Path("masks-ade/second.png").is_file()
    assert {p.name for p in Path("my-model").iterdir()} >= {"config.json", "model.safetensors"}
    run_folder = {p.name for p in Path("runs/roads").iterdir()}
    assert run_folder >= {
        "best", "last", "metrics.csv", "curves.png", "confusion.png", "val_examples.jpg",
        "report.json",
    }  # fmt: skip


def run(line: str) -> bool:
    """Run a line of the README if it is a command of this package; else check it."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return False
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert words[2] in (".", "torch", *(f".[{e}]" for e in project["optional-dependencies"]))
        return False
    assert words[0] == "segformer", line
    if words[1] == "train":  # one epoch, not fifty; starting processes takes longer than that
        words[words.index("--epochs") + 1] = "1"
        words += ["--num-workers", "0"]
    assert main(words[1:]) == 0, line
    return True


def test_the_data_set_description_is_complete() -> None:
    (text,) = (text for language, text in BLOCKS if language == "yaml")
    assert yaml.safe_load(text).keys() == {
        "path", "train", "val", "masks_dir", "ignore_index", "names",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


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
