"""What a notebook shows: predictions, and the progress of many."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformer import Predictor, SegFormer, progress
from segformer.prediction import predictor as predictor_module
from segformer.prediction.prediction import Prediction
from segformer.progress import ProgressBar, in_notebook


@pytest.fixture
def predictor(tiny_model: SegFormer) -> Predictor:
    return Predictor(tiny_model, device="cpu", size=(32, 32))


@pytest.fixture
def prediction(predictor: Predictor, photograph: np.ndarray) -> Prediction:
    return predictor(np.ascontiguousarray(photograph.repeat(3, 1)))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook's cell shows, in order; this process passes for its kernel."""
    shown: list[str] = []

    def display(page: str, *, display_id: bool) -> Any:
        assert display_id
        shown.append(page)
        return SimpleNamespace(update=shown.append)

    fake = SimpleNamespace(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(predictor_module, "in_notebook", lambda: True)
    return shown


def test_a_prediction_is_shown_as_a_small_overlay(prediction: Prediction) -> None:
    data = prediction._repr_jpeg_()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert image.width == 640  # of 1536
        assert image.height > 213  # the legend is below
    assert len(data) < 200_000


def test_the_formatter_of_notebooks_finds_it(prediction: Prediction) -> None:
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython is not installed")
    content, _ = formatters.DisplayFormatter().format(prediction)
    assert content["image/jpeg"] == prediction._repr_jpeg_()
    assert "label_map" in content["text/plain"]


def test_a_stream_shows_its_progress(
    predictor: Predictor, photograph: np.ndarray, pages: list[str]
) -> None:
    failed: list[Exception] = []
    found = list(
        predictor.stream(
            [photograph, b"no image", photograph], on_error=lambda _, error: failed.append(error)
        )
    )
    assert (len(found), len(failed)) == (2, 1)
    assert '<progress value="0" max="3">' in pages[0]
    assert '<progress value="3" max="3">' in pages[-1]
    assert "predicting: 3/3" in pages[-1]


def test_a_stream_of_unknown_length(
    predictor: Predictor, photograph: np.ndarray, pages: list[str]
) -> None:
    list(predictor.stream(iter([photograph] * 2)))
    assert "<progress></progress> predicting: 2, " in pages[-1]
    shown = len(pages)
    list(predictor.stream([photograph], progress=False))
    assert len(pages) == shown


def test_names_are_escaped(pages: list[str]) -> None:
    with ProgressBar("<b>clip</b>", None, "frames") as bar:
        bar.advance()
    assert "&lt;b&gt;clip" in pages[-1]


def test_scripts_show_nothing(
    predictor: Predictor, photograph: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not in_notebook()
    list(predictor.stream([photograph]))
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_in_a_notebook_itself(tiny_model: SegFormer, tmp_path: Path) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    from nbformat.v4 import new_code_cell, new_notebook

    tiny_model.save_pretrained(tmp_path / "model")
    cell = new_code_cell(
        "import numpy as np, segformer\n"
        f"predictor = segformer.Predictor({str(tmp_path / 'model')!r}, size=32)\n"
        "*_, last = predictor.stream([np.zeros((40, 50, 3), np.uint8)] * 3)\n"
        "last"
    )
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = new_notebook(cells=[cell])
    client.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
    assert {"text/html", "image/jpeg"} <= kinds
    pages = [o["data"]["text/html"] for o in cell["outputs"] if "text/html" in o.get("data", {})]
    assert 'value="3" max="3"' in pages[0]
