"""Every command and every example of the guides, run as written on small drawn data sets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from checkpoints.hub_server import HubServer
from checkpoints.test_hub import hub  # noqa: F401  # a fixture
from conftest import TINY, randomize
from guide_samples import SAMPLES
from page_runner import GUIDE_FOLDER, code_blocks, run_guide
from segformer import SegFormerClassifier
from test_readme import publish

GUIDES = sorted(path.stem for path in GUIDE_FOLDER.glob("*.md") if path.stem != "README")

SMALLER = {
    "--epochs": "1",
    "--max-steps": "2",
    "--batch-size": "2",
    "--crop-size": "32",
    "--short-side": "48",
    "--num-workers": "0",
    "--precision": "float32",
}
"""What a training of a guide is run with instead, so that it takes seconds."""

RESULTS = {
    "people-and-clothes": "cut-out.png",
    "coco-json": "predictions.json",
    "labeling": "tasks.json",
}
"""What the last example of a guide writes."""


@pytest.fixture
def encoder(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    """A small encoder under the name of the published one."""
    torch.manual_seed(0)
    model = SegFormerClassifier(TINY)
    randomize(model)
    publish(hub, "nvidia/mit-b0", model, tmp_path / "mit")


def test_each_guide_is_run_by_a_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.rglob("*.py"))
    assert set(SAMPLES) <= set(GUIDES)
    for guide in set(GUIDES) - set(SAMPLES):
        assert f'run_guide("{guide}"' in tests or f"docs/guides/{guide}.md" in tests, guide


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize("guide", SAMPLES)
def test_every_command_and_example_runs(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.chdir(user)
    shown = code_blocks(GUIDE_FOLDER / f"{guide}.md")
    SAMPLES[guide](user, "".join(text for language, text in shown if language == "yaml"))
    done = run_guide(guide, SMALLER, check_listed_files)
    assert {words[0] for words in done} >= {"data", "train", "evaluate", "predict"}
    assert (user / RESULTS.get(guide, "masks/summary.json")).is_file()


def check_listed_files(language: str, text: str) -> None:
    if language == "text" and not text.startswith("segformer"):
        for path in listed_files(text):
            assert Path(path).exists(), path


def listed_files(tree: str) -> list[str]:
    """Paths in a drawing of folders: each is indented below its folder."""
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        while parents and parents[-1][0] >= indent:
            parents.pop()
        folder = parents[-1][1] if parents else ""
        names = line.split("#")[0].split()
        paths += [folder + name for name in names if name != "..."]
        if len(names) == 1 and names[0].endswith("/"):
            parents.append((indent, folder + names[0]))
    return paths


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide: str) -> None:
    text = (GUIDE_FOLDER / f"{guide}.md").read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", text):
        if not target.startswith("https://"):
            page = (GUIDE_FOLDER / target).read_bytes().decode("utf-8", "replace")
            lines = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}
            assert heading in {"", *anchors}, f"{target}#{heading}"


def test_every_guide_is_in_the_index() -> None:
    index = (GUIDE_FOLDER.parent / "README.md").read_text(encoding="utf-8")
    for guide in GUIDES:
        assert f"(guides/{guide}.md)" in index, guide
