"""A run that is killed at random moments ends like one that is not."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import draw_dataset


def rows_of(run: Path) -> list[dict[str, str]]:
    """Metrics without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in r.items() if k not in ("minutes", "images_per_s")} for r in rows]


@pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")
@pytest.mark.parametrize(("workers", "seed"), [(0, 1), (2, 2)])
def test_killed_at_random_moments_also_while_writing(
    tmp_path: Path, workers: int, seed: int
) -> None:
    """SIGKILL in the middle of checkpoints, models, rows and renames, and by the clock."""
    dataset = draw_dataset(tmp_path / "shapes")
    script = Path(__file__).with_name("killed_runs.py")
    result = subprocess.run(
        [sys.executable, str(script), str(dataset), str(tmp_path), str(workers), str(seed)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) >= 2  # kills; fewer where processes start slowly
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert rows_of(broken) == rows_of(whole)
    models = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert len(models) >= 4  # last, best and those in checkpoints
    assert models == sorted(path.relative_to(broken) for path in broken.rglob("*.safetensors"))
    assert not list(broken.rglob(".*"))  # nothing half-written is left
    for model in models:
        assert (broken / model).read_bytes() == (whole / model).read_bytes(), model
