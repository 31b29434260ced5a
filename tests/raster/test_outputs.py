"""Polygons, areas and STAC items on the command line and from Python."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from segformer.cli import main

pytest.importorskip("rasterio", reason='needs the extra "geo"')
pytest.importorskip("shapely", reason='needs the extra "geo"')
pytest.importorskip("pyogrio", reason='needs the extra "geo"')

import rasterio
from pyogrio.raw import read

from segformer.raster.stac_config import StacConfig


@pytest.fixture
def command(draw_scene, scene_model, tmp_path):
    """Words of a command that predicts a small scene."""
    scene_model.save_pretrained(tmp_path / "model")
    scene = draw_scene(150, 130)
    words = ["predict", str(scene), "--model", str(tmp_path / "model")]
    return [*words, "--out", str(tmp_path / "out")]


def test_everything_beside_the_label_map(command, tmp_path, capsys):
    options = ["--polygons", "gpkg", "--confidence", "--simplify", "2", "--min-area", "100"]
    assert main([*command, *options, "--acquired", "2024-05-31"]) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    found = {path.name for path in out.iterdir()}
    assert found == {
        "scene.tif",
        "scene.tif.aux.xml",
        "scene.qml",
        "scene_confidence.tif",
        "scene.gpkg",
        "scene.stac.json",
        "summary.json",
    }
    (row,) = json.loads((out / "summary.json").read_text())["images"]
    assert set(row["files"]) == found - {"summary.json"}
    with rasterio.open(out / "scene.tif") as dataset:
        labels, pixel = dataset.read(1), abs(dataset.transform.a * dataset.transform.e)
        names = json.loads(dataset.tags()["CLASS_NAMES"])
    counts = {name: int((labels == i).sum()) for i, name in enumerate(names)}
    assert row["class_areas_m2"] == pytest.approx(
        {name: count * pixel for name, count in counts.items() if count}
    )
    meta, _, _, fields = read(out / "scene.gpkg")
    values = dict(zip(meta["fields"], fields, strict=True))
    assert set(values["class_name"]) <= set(names)
    assert ((values["mean_confidence"] > 0.2) & (values["mean_confidence"] <= 1)).all()
    item = json.loads((out / "scene.stac.json").read_text())
    assert item["id"] == "scene" and item["properties"]["datetime"] == "2024-05-31T00:00:00Z"
    assert set(item["assets"]) == {"label_map", "confidence", "polygons", "model", "source"}
    assert item["assets"]["model"]["href"] == "../model/model.safetensors"
    assert item["assets"]["source"]["href"] == "../scene.tif"
    assert item["properties"]["mlm:total_parameters"] > 1000


def test_polygons_of_a_label_map_that_exists(command, tmp_path, capsys):
    assert main([*command, "--no-stac"]) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    assert not (out / "scene.stac.json").exists()
    before = (out / "scene.tif").stat().st_mtime_ns
    assert main([*command, "--skip-existing", "--polygons", "gpkg"]) == 0
    assert (out / "scene.tif").stat().st_mtime_ns == before
    (row,) = json.loads((out / "summary.json").read_text())["images"]
    assert {"scene.tif", "scene.gpkg", "scene.stac.json"} <= set(row["files"])
    assert "1 of them earlier" in capsys.readouterr().out


def test_nothing_is_predicted_for_files_that_cannot_be_written(command, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "scene.gpkg").write_text("mine")
    assert main([*command, "--polygons", "gpkg"]) == 1
    assert "scene.gpkg already exists" in capsys.readouterr().err
    assert not (out / "scene.tif").exists()
    assert main([*command, "--polygons", "gpkg", "--skip-classes", "lake"]) == 1
    assert "there is no class 'lake'" in capsys.readouterr().err
    assert (out / "scene.gpkg").read_text() == "mine"


def test_a_scene_without_a_reference_system(draw_scene, command, tmp_path, capsys):
    draw_scene(150, 130, crs=None)
    command.append("--scene=True")
    assert main([*command, "--polygons", "gpkg"]) == 1
    assert "--polygons cannot be used" in capsys.readouterr().err
    assert main(command) == 0
    assert not (tmp_path / "out" / "scene.stac.json").exists()
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["images"]
    assert "class_areas_m2" not in row


def test_times():
    assert StacConfig().acquisition_time is None
    assert StacConfig(acquired="2024-05-31").acquisition_time == datetime(2024, 5, 31, tzinfo=UTC)
    with pytest.raises(ValueError, match="acquired must be a time such as"):
        StacConfig(acquired="yesterday")


def test_an_item_in_pystac_has_no_dangling_assets(command, tmp_path):
    assert main([*command, "--polygons", "gpkg"]) == 0
    item = json.loads((tmp_path / "out" / "scene.stac.json").read_text())
    for asset in item["assets"].values():
        assert (tmp_path / "out" / asset["href"]).exists()
    west, south, east, north = item["bbox"]
    assert west < east and south < north
    assert np.isfinite(item["bbox"]).all()
