"""The examples that convert models for phones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segformer.checkpoints.opening import SHIPPED

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "package", "out", "printed"),
    [
        ("litert.py", "litert_torch", "mine.tflite", "largest difference"),
        ("coreml.py", "coremltools", "mine.mlpackage", "written: "),
    ],
)
def test_the_example_converts_the_shipped_model(
    program: str, package: str, out: str, printed: str, tmp_path: Path
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    words = [sys.executable, str(EXAMPLES / program), SHIPPED, str(tmp_path / out), "128"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    files = [tmp_path / out, *(tmp_path / out).rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) > 7e6
