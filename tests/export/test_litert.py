"""The example that converts a model for LiteRT."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segformer.checkpoints.opening import SHIPPED

EXAMPLE = Path(__file__).parents[2] / "examples/litert.py"


@pytest.mark.slow
def test_the_example_converts_the_shipped_model(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="litert-torch is not installed")
    words = [sys.executable, str(EXAMPLE), SHIPPED, str(tmp_path / "mine.tflite"), "128"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout
    assert (tmp_path / "mine.tflite").stat().st_size > 10e6
