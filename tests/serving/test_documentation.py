"""The commands and the program of docs/serving.md, as written, on a service of the test."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from segformer.image import read_image, read_mask
from serving.live import Live, photo

TEXT = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("photo.jpg", "second.jpg")):
        Image.fromarray(photo(60, 80, seed)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_curl(live: Live, folder: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (commands,) = blocks("bash")
    answers = []
    for line in commands.replace(ADDRESS, live.url).splitlines():
        words = shlex.split(line)
        assert words[0] == "curl"
        result = subprocess.run(
            [curl, "--fail-with-body", "--silent", "--show-error", *words[1:]],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, (line, result.stdout, result.stderr)
        answers.append(result.stdout)
    assert json.loads(answers[0])["model"] == "tiny"
    assert json.loads(answers[-1])["models"][0]["name"] == "tiny"
    assert read_mask("label_map.png").shape == (60, 80)
    assert read_image("overlay.jpg").shape[1] >= 80
    assert json.loads(Path("polygons.json").read_text())["type"] == "FeatureCollection"
    assert len(json.loads(Path("coco.json").read_text())["results"]) == 2


def test_the_program(live: Live, folder: Path) -> None:
    (program,) = blocks("python")
    exec(compile(program.replace(ADDRESS, live.url), "serving.md", "exec"), {})
    assert (folder / "out/photo.png").is_file()


def test_the_pages_and_options_it_names_are_there(live: Live) -> None:
    from segformer.serving.options import ServeOptions

    known = {"--" + name.replace("_", "-") for name in ServeOptions.__dataclass_fields__}
    named = set(re.findall(r"`(--[\w-]+)", TEXT))
    assert named - {"--batch-size", "--no-access-log"} <= known
    for page in ("/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v1/models"):
        assert f"{page}`" in TEXT or page in "".join(blocks("bash"))
        assert live.ask("GET", page).status == 200
