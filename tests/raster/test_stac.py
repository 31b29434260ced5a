import json
import re
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from raster.label_maps import CLASSES, DEGREES, UTM, blobs, write_raster
from segformer.classes import ClassSet
from segformer.image import Preprocessing
from segformer.raster.areas import NoGroundArea
from segformer.raster.stac import ModelFacts, acquisition_time, scene_item

rasterio = pytest.importorskip("rasterio", reason='needs the extra "geo"')
shapely = pytest.importorskip("shapely", reason='needs the extra "geo"')

BANDS = ("B4", "B3", "B2")
MODEL = ModelFacts(
    "nvidia/segformer-b0", CLASSES, Preprocessing(), BANDS, 512, framework_version="2.13.0+cpu"
)


def make_item(tmp_path, labels=None, crs=UTM, model=MODEL, **options):
    labels = blobs(40, 50) if labels is None else labels
    path = write_raster(tmp_path / "scene.tif", labels, crs, **options.pop("raster", {}))
    options.setdefault("source", "https://example.org/scene.tif")
    return scene_item(path, model, folder=tmp_path, **options)


def test_the_item_is_valid(tmp_path):
    pystac = pytest.importorskip("pystac", reason="reads STAC items")
    pytest.importorskip("jsonschema", reason="validates STAC items")
    from pystac.validation import JsonSchemaSTACValidator

    labels = blobs(40, 50)
    labels[:10] = 255
    polygons = tmp_path / "scene.gpkg"
    confidence = write_raster(tmp_path / "c.tif", blobs(40, 50), nodata=0)
    content = make_item(tmp_path, labels, polygons=polygons, confidence=confidence)
    item = pystac.Item.from_dict(json.loads(json.dumps(content)))
    # The schemas of STAC itself come with pystac; nothing is fetched
    JsonSchemaSTACValidator().validate_core(
        content, pystac.STACObjectType.ITEM, item.to_dict()["stac_version"]
    )
    assert item.ext.has("mlm") and item.ext.mlm.architecture == "SegFormer"
    assert item.ext.proj.code == "EPSG:32633" and item.ext.proj.shape == [40, 50]
    assert item.assets["model"].ext.mlm.artifact_type


def test_the_fields_of_the_model_extension(tmp_path):
    """What the published schema asks for, version 1.4.0."""
    item = make_item(tmp_path)
    properties = item["properties"]
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert properties["mlm:tasks"] == ["semantic-segmentation"]
    assert properties["mlm:framework_version"] == "2.13.0+cpu"
    (given,), (result,) = properties["mlm:input"], properties["mlm:output"]
    assert given["bands"] == list(BANDS) == [band["name"] for band in properties["bands"]]
    assert given["input"]["shape"] == [-1, 3, 512, 512]
    assert len(given["input"]["dim_order"]) == 4 and given["input"]["data_type"] == "float32"
    red = given["value_scaling"][0]
    assert red["type"] == "z-score"
    assert (100 - red["mean"]) / red["stddev"] == pytest.approx((100 / 255 - 0.485) / 0.229)
    assert result["result"]["shape"] == [-1, 4, 128, 128]
    assert [c["value"] for c in result["classification:classes"]] == [0, 1, 2, 3]
    models = [a for a in item["assets"].values() if "mlm:model" in a["roles"]]
    assert [model["href"] for model in models] == ["https://huggingface.co/nvidia/segformer-b0"]
    assert all(("mlm:artifact_type" in a) == (a in models) for a in item["assets"].values())
    assert all(re.fullmatch(r"[0-9a-zA-Z_.-]+", key) for key in properties["mlm:hyperparameters"])


def test_class_names_of_any_language(tmp_path):
    classes = ClassSet(("水", "low vegetation", "low-vegetation"))
    model = ModelFacts("m", classes, Preprocessing(), BANDS, 512)
    item = make_item(tmp_path, np.zeros((9, 9), np.uint8), model=model)
    found = item["assets"]["label_map"]["bands"][0]["classification:classes"]
    assert [c["name"] for c in found] == ["class-0", "low-vegetation", "low-vegetation-2"]
    assert [c["title"] for c in found] == list(classes.names)
    assert all(re.fullmatch("[0-9A-F]{6}", c["color_hint"]) for c in found)
    assert item["properties"]["mlm:name"] == "segformer-m"


def test_the_footprint_of_all_pixels(tmp_path):
    item = make_item(tmp_path, crs=DEGREES)
    assert item["bbox"] == pytest.approx([15.0, 60 - 0.08, 15.05, 60.0])
    footprint = shapely.geometry.shape(item["geometry"])
    assert footprint.area == pytest.approx(0.05 * 0.08)
    assert footprint.exterior.is_ccw


@pytest.mark.parametrize("size", [(60, 80), (900, 1200)])
def test_the_footprint_leaves_no_data_out(tmp_path, size):
    labels = np.ones(size, np.uint8)
    half = size[0] // 2
    labels[:half, : size[1] // 2] = 255
    item = make_item(tmp_path, labels, DEGREES)
    footprint = shapely.geometry.shape(item["geometry"])
    everything = shapely.box(15, 60 - 0.002 * size[0], 15 + 0.001 * size[1], 60)
    assert footprint.area / everything.area == pytest.approx(0.75, abs=0.01)
    assert not footprint.contains(shapely.Point(15 + 0.0002 * size[1], 60 - 0.0004 * size[0]))


def test_a_footprint_across_the_antimeridian(tmp_path):
    transform = rasterio.Affine(0.1, 0, 178, 0, -0.1, 10)
    item = make_item(
        tmp_path, np.ones((20, 40), np.uint8), DEGREES, raster={"transform": transform}
    )
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"] == pytest.approx([178, 8, -178, 10])


def test_a_scene_without_data(tmp_path):
    item = make_item(tmp_path, np.full((9, 9), 255, np.uint8))
    assert item["geometry"] is None and "bbox" not in item


def test_links_are_relative(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    model = ModelFacts(str(tmp_path / "model"), CLASSES, Preprocessing(), BANDS, 512)
    item = make_item(tmp_path, model=model, source=tmp_path.parent / "in" / "scene.tif")
    hrefs = {key: asset["href"] for key, asset in item["assets"].items()}
    assert hrefs == {
        "label_map": "./scene.tif",
        "model": "./model/model.safetensors",
        "source": "../in/scene.tif",
    }


def test_a_scene_that_is_a_stac_item(tmp_path):
    item = make_item(tmp_path, source="https://example.org/item.json")
    assert [link["rel"] for link in item["links"]] == ["derived_from"]
    assert "source" not in item["assets"]


def test_time_of_acquisition(tmp_path):
    path = write_raster(tmp_path / "a.tif", blobs(9, 9))
    assert acquisition_time([path]) is None
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:05:06 07:08:09")
    found = acquisition_time([path])
    assert found == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert make_item(tmp_path, acquired=found)["properties"]["datetime"] == "2024-05-06T07:08:09Z"
    east = datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    item = make_item(tmp_path, acquired=east)
    assert item["properties"]["datetime"] == "2023-12-31T23:00:00Z"
    assert make_item(tmp_path)["properties"]["datetime"] == item["properties"]["created"]


def test_no_reference_system(tmp_path):
    with pytest.raises(NoGroundArea, match="no place on the earth"):
        make_item(tmp_path, crs=None)


def test_a_reference_system_without_a_code(tmp_path):
    properties = make_item(tmp_path, crs="+proj=utm +zone=33 +ellps=bessel +units=m")["properties"]
    assert properties["proj:code"] is None and properties["proj:wkt2"].startswith("PROJCRS")
