"""`segformer predict` of georeferenced scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rasterio", reason="scenes need the extra geo")

import rasterio

from conftest import run_python
from scene_samples import draw_pixels, write_scene
from segformer import SegFormer
from segformer.cli import main
from segformer.raster.config import SceneConfig, memory_bytes


@pytest.fixture
def model(tmp_path: Path, tiny_model: SegFormer) -> str:
    tiny_model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_georeferenced_file_gives_a_georeferenced_label_map(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_scene(tmp_path / "scene.tif", draw_pixels(90, 120))
    out = tmp_path / "out"
    words = ["predict", str(scene), "--model", model, "--out", str(out), "--window", "64"]
    assert main([*words, "--max-memory", "100GB"]) == 0
    with rasterio.open(out / "scene.tif") as dataset:
        assert dataset.crs.to_string() == "EPSG:32632"
        assert (dataset.height, dataset.width) == (90, 120)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"]
    (row,) = summary["images"]
    assert row["files"] == ["scene.tif", "scene.tif.aux.xml", "scene.qml", "scene.stac.json"]
    assert sum(row["class_fractions"].values()) == pytest.approx(1, abs=1e-4)
    capsys.readouterr()
    assert main(words) == 1
    assert "scene.stac.json already exist" in capsys.readouterr().err
    assert main([*words, "--skip-existing"]) == 0
    assert "1 of them earlier" in capsys.readouterr().out
    assert main([*words, "--overwrite"]) == 0


def test_plain_images_stay_what_they_are(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(draw_pixels(40, 50)).save(tmp_path / "plain.tif")
    words = ["predict", "--model", model, "--window", "64", "--out"]
    assert main([*words, str(tmp_path / "a"), str(tmp_path / "plain.tif")]) == 0
    assert (tmp_path / "a/plain.png").exists()
    # A scene option makes a scene of any image
    assert main([*words, str(tmp_path / "b"), str(tmp_path / "plain.tif"), "--overlap", "8"]) == 0
    with rasterio.open(tmp_path / "b/plain.tif") as dataset:
        assert dataset.crs is None
    scene = write_scene(tmp_path / "scene.tif", draw_pixels(40, 50))
    both = [str(scene), str(tmp_path / "plain.tif")]
    assert main([*words, str(tmp_path / "c"), *both]) == 1
    assert "predict them by separate commands" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "c"), *both, "--scene", "False"]) == 0
    assert (tmp_path / "c/scene.png").exists()


def test_scene_options_reach_the_scene(tmp_path: Path, model: str) -> None:
    scene = write_scene(tmp_path / "scene.tif", draw_pixels(100, 120, 4))
    words = ["predict", str(scene), "--model", model, "--out", str(tmp_path / "out")]
    words += ["--window", "64", "--resolution", "20", "--where", "5", "10", "30", "25"]
    assert main([*words, "--bands", "3", "2", "1"]) == 0
    with rasterio.open(tmp_path / "out/scene.tif") as dataset:
        assert (dataset.height, dataset.width) == (25, 30)
        assert dataset.transform[:6] == (20, 0, 500_100, 0, -20, 5_299_800)
        assert (np.asarray(dataset.read(1)) != 255).all()


def test_one_bad_scene_stops_no_other(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_scene(tmp_path / "good.tif", draw_pixels(40, 50))
    bad = write_scene(tmp_path / "bad.tif", draw_pixels(40, 50, 4))
    words = ["predict", str(bad), str(good), "--model", model, "--out", str(tmp_path / "out")]
    assert main([*words, "--window", "64"]) == 3
    assert "takes 3 channels, this has 4 bands (1, 2, 3, 4)" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [row["image"] for row in summary["images"]] == [str(good)]
    assert [row["image"] for row in summary["failed"]] == [str(bad)]


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("500mb", 5 * 10**8)]
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize("options", [{"max_memory": "much"}, {"overlap": 6}, {"resolution": 0}])
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[-1]):
        SceneConfig(**options)  # type: ignore[arg-type]


def test_the_help_needs_neither_torch_nor_rasterio() -> None:
    code = (
        "import sys; from segformer.cli import main\n"
        "try: main(['predict', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'rasterio'} & sys.modules.keys())"
    )
    done = run_python(code)
    assert "--max-memory" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
