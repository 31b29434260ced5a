"""Label Studio itself: it connects the backend, and stores the masks that a person would see.

Needs Label Studio's own program, which is large and has dependencies of its own: install it into
another environment and name its program in the variable LABEL_STUDIO.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from layout_samples import class_ids, read_split
from segformer import Predictor, SegFormer
from segformer.data.layouts.label_studio import decode_brush
from segformer.serving.models import serve_model
from serving.live import NAMES, form, named, photo, running, wait_until

pytestmark = pytest.mark.slow

PROGRAM = os.environ.get("LABEL_STUDIO") or shutil.which("label-studio")
TOKEN = "0123456789abcdef0123456789abcdef01234567"


class LabelStudio:
    """A Label Studio of one test."""

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = folder / "log"
        words = [
            *(str(PROGRAM), "start", "--no-browser", "--data-dir", str(folder / "data")),
            *("--port", self.url.rpartition(":")[2], "--internal-host", "127.0.0.1"),
            *("--username", "a@example.org", "--password", "abcd1234", "--user-token", TOKEN),
        ]
        environment = {
            **os.environ,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "USE_DEFAULT_BANNED_SUBNETS": "false",  # the backend is on this machine
            "ML_TIMEOUT_SETUP": "30",
            "PYTHONPATH": "",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, body: Any = None, media_type: str = "") -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}"}
        headers["Content-Type"] = media_type or "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                text = answer.read()
        except HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from None
        return json.loads(text) if text else None


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[LabelStudio]:
    if not PROGRAM:
        pytest.skip("Label Studio is not installed; name its program in LABEL_STUDIO")
    (tmp_path / "studio").mkdir()
    found = LabelStudio(tmp_path / "studio")
    try:
        wait_until(found.is_up, 300)
        yield found
    finally:
        found.process.terminate()
        found.process.wait(60)


def test_a_project_is_labeled_in_advance_and_exported(
    studio: LabelStudio,
    tiny_model: SegFormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = "".join(f'<Label value="{name}"/>' for name in NAMES[1:])
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<BrushLabels name="tag" toName="image">{labels}</BrushLabels></View>'
    )
    project = studio.ask("POST", "/api/projects", {"title": "photographs", "label_config": config})[
        "id"
    ]
    image = photo()
    Image.fromarray(image).save(tmp_path / "a.png")
    body, media_type = form(("file", (tmp_path / "a.png").read_bytes()))
    studio.ask("POST", f"/api/projects/{project}/import", body, media_type)

    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    predictor = Predictor(named(tiny_model), device="cpu")
    with running(serve_model("tiny", predictor), label_studio_url=studio.url) as live:
        connection = {"url": f"{live.url}/label-studio", "project": project, "title": "segformer"}
        backend = studio.ask("POST", "/api/ml", connection)
        assert backend["model_version"] == "tiny"
        tasks = studio.ask("GET", f"/api/tasks?project={project}&fields=all")["tasks"]
        studio.ask(
            "POST",
            f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}",
            {"selectedItems": {"all": False, "included": [tasks[0]["id"]]}},
        )
    (prediction,) = studio.ask("GET", f"/api/predictions?task={tasks[0]['id']}")
    expected = predictor(image).label_map
    found = np.zeros_like(expected)
    for region in prediction["result"]:
        rle = bytes(region["value"]["rle"])
        mask = decode_brush(rle, region["original_height"], region["original_width"], "region")
        found[mask] = NAMES.index(region["value"]["brushlabels"][0])
    assert (found == expected).all()
    assert prediction["model_version"] == "tiny"

    annotation = {"result": prediction["result"]}
    studio.ask("POST", f"/api/tasks/{tasks[0]['id']}/annotations", annotation)
    exported = studio.ask("GET", f"/api/projects/{project}/export?exportType=JSON")
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "project.json").write_text(json.dumps(exported))
    Image.fromarray(image).save(folder / "a.png")
    split = read_split(folder, "label-studio", "all")
    read = np.array(split.classes.names)[class_ids(split)]
    assert (read == np.array(NAMES)[expected]).all()
