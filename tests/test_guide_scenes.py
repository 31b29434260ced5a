"""The guide of scenes and polygons, run as written on a small drawn scene."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
pytest.importorskip("pyogrio", reason="needs the extra geo")
pytest.importorskip("shapely", reason="needs the extra geo")

from rasterio.transform import Affine  # noqa: E402

from page_runner import GUIDE_FOLDER, code_blocks, run_guide  # noqa: E402
from segformer.data.opening import open_dataset  # noqa: E402

SMALLER = {
    "--max-steps": "16",
    "--val-every": "8",
    "--crop-size": "64",
    "--batch-size": "4",
    "--num-workers": "0",
}
"""What the training is run with instead, so that it takes seconds."""

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


def draw_scene(folder: Path) -> None:
    """A lake, dark in the infrared bands, in 13 bands of int16; some pixels have no data."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:512, :512]
    lake = (np.sin(x / 41) + np.cos(y / 37)) > 0.6
    bands = rng.normal(1500, 120, (13, 512, 512)) * np.linspace(1, 0.6, 13)[:, None, None]
    bands[6:, lake] *= 0.2
    bands[:, :10, :10] = 0
    label = lake.astype(np.int16)
    label[-6:] = -1
    folder.mkdir()
    profile = {
        "driver": "GTiff", "height": 512, "width": 512, "dtype": "int16", "crs": "EPSG:4326",
        "transform": Affine(9e-5, 0, -0.78, 0, -9e-5, 38.13),
    }  # fmt: skip
    name = "Spain_7370579"
    with rasterio.open(folder / f"{name}_S2Hand.tif", "w", count=13, nodata=0, **profile) as file:
        file.write(bands.astype(np.int16))
    with rasterio.open(folder / f"{name}_LabelHand.tif", "w", count=1, **profile) as file:
        file.write(label, 1)


def write_description(language: str, text: str) -> None:
    if language == "yaml":
        Path("flood/dataset.yaml").write_text(text)


def test_every_command_and_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_scene(Path("flood"))
    done = run_guide("scenes", SMALLER, write_description)
    names = [" ".join(words[:2]) if words[0] == "data" else words[0] for words in done]
    assert names == ["data check", "data show", "train", "evaluate", "predict", "data tile"]
    printed = capsys.readouterr().out
    predicted, labeled = (
        float(re.search(rf"^{word}: (\d+\.\d+) square kilometers$", printed, re.MULTILINE)[1])
        for word in ("predicted", "labeled")
    )
    assert abs(predicted - labeled) < 0.5 * labeled


def test_label_rasters_as_the_guide_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They give the same tiles as polygons that were made from them."""
    monkeypatch.chdir(tmp_path)
    draw_scene(Path("flood"))
    blocks = code_blocks(GUIDE_FOLDER / "scenes.md")
    (polygons,) = (text for language, text in blocks if language == "yaml")
    (raster,) = (text for language, text in blocks if (language, text[:7]) == ("text", "scenes:"))
    exec(compile(blocks[1][1], "scenes.md", "exec"), {})
    sizes = "".join(line for line in polygons.splitlines(True) if "_" in line.split(":")[0])
    found = []
    for text in (polygons, raster + sizes):
        Path("flood/dataset.yaml").write_text(text)
        found.append([open_dataset("flood", split) for split in ("train", "val")])
    for ours, theirs in zip(*found, strict=True):
        assert [sample.name for sample in ours] == [sample.name for sample in theirs]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(ours.read(a)[1], theirs.read(b)[1])
