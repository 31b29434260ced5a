"""The guide of 13-band images, run as written on a small drawn chip."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from page_runner import run_guide
from segformer import SegFormer

SMALLER = {
    "--max-steps": "16",
    "--val-every": "8",
    "--crop-size": "64",
    "--batch-size": "4",
    "--num-workers": "0",
}
"""What the training is run with instead, so that it takes seconds."""


def draw_chip(folder: Path) -> None:
    """A lake, dark in the infrared bands, in 13 bands of int16; some pixels have no data."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    lake = (np.sin(x / 21) + np.cos(y / 17)) > 0.6
    bands = rng.normal(1500, 120, (13, 256, 256)) * np.linspace(1, 0.6, 13)[:, None, None]
    bands[6:, lake] *= 0.2
    bands[:, :10, :10] = 0
    label = lake.astype(np.int16)
    label[-6:] = -1
    folder.mkdir()
    name = "Spain_7370579"
    image = bands.astype(np.int16)
    tags = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(
        folder / f"{name}_S2Hand.tif",
        image,
        photometric="minisblack",
        planarconfig="separate",
        extratags=tags,
    )
    tifffile.imwrite(folder / f"{name}_LabelHand.tif", label)


def write_description(language: str, text: str) -> None:
    if language == "yaml":
        Path("water/dataset.yaml").write_text(text)


def test_every_command_and_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_chip(Path("chips"))
    done = run_guide("water-from-sentinel-2", SMALLER, write_description)
    assert [words[0] for words in done] == ["data", "train", "evaluate", "predict"]
    printed = capsys.readouterr().out
    assert "channel water-vapor: mean " in printed
    assert re.search(r"^\d+\.\d square kilometers$", printed, re.MULTILINE)

    preprocessing = SegFormer.from_pretrained("runs/water/best").preprocessing
    assert preprocessing.nodata == 0
    assert preprocessing.rgb_channels == (3, 2, 1)
    report = json.loads(Path("evaluation/report.json").read_text())
    # Better than one class everywhere, which has an mIoU of half the larger fraction
    fractions = [entry["fraction"] for entry in report["classes"].values()]
    assert report["miou"] > max(fractions) / 2 + 0.1
    overlay = Path("masks/Spain_7370579_S2Hand_overlay.jpg")
    assert overlay.is_file()
