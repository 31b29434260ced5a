"""STAC items as scenes: what they say of the values of their bands."""

import json

import numpy as np
import pytest

from scene_samples import draw_pixels, write_scene
from segformer.image import UnreadableImage
from segformer.image.scene import open_scene

rasterio = pytest.importorskip("rasterio", reason='needs the extra "geo"')


def write_item(folder, asset, properties=None, **changes):
    """An item with one asset of two bands, ``a.tif``; pixel (0, 0) holds -5 and (0, 1) holds -6."""
    pixels = draw_pixels(20, 30, 2).astype(changes.pop("dtype", np.int16))
    pixels[0, 0], pixels[0, 1] = -5, -6
    path = write_scene(folder / "a.tif", pixels, **changes)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "properties": properties or {},
        "assets": {"data": {"href": "a.tif", "type": "image/tiff; application=geotiff", **asset}},
    }
    (folder / "item.json").write_text(json.dumps(item))
    return folder / "item.json", pixels, path


NEW = [{"raster:scale": 0.5, "raster:offset": -10}, {"raster:scale": 2, "raster:offset": 1}]
OLD = [{"scale": 0.5, "offset": -10}, {"scale": 2, "offset": 1}]
SHARED = {"raster:scale": 2, "raster:offset": 1}


@pytest.mark.parametrize(
    ("asset", "properties"),
    [
        ({"bands": NEW}, {}),
        ({"raster:bands": OLD}, {}),
        ({"bands": [{"name": "red"}, {"name": "nir"}], "raster:bands": OLD}, {}),
        ({"bands": NEW[:1], **SHARED}, {}),
        ({"bands": [NEW[0], {"name": "nir"}]}, SHARED),
        ({"raster:bands": OLD[:1]}, SHARED),
        ({"bands": NEW, "raster:scale": 7}, {"raster:offset": 9}),
    ],
)
def test_scale_and_offset_of_an_item(tmp_path, asset, properties):
    item, stored, path = write_item(tmp_path, asset, properties)
    expected = stored * [0.5, 2.0] + [-10.0, 1.0]
    with open_scene(item) as scene:
        assert scene.read(scene.grid.window)[0] == pytest.approx(expected)
    with open_scene(item, bands=[2]) as scene:
        assert scene.read(scene.grid.window)[0][:, :, 0] == pytest.approx(expected[:, :, 1])
    for source, scaled in ((item, False), (path, True)):
        with open_scene(source, scaled=scaled) as scene:
            assert (scene.read(scene.grid.window)[0] == stored).all()


def test_an_offset_alone(tmp_path):
    item, stored, _ = write_item(tmp_path, {"raster:bands": [{"offset": -185}, {}]})
    with open_scene(item) as scene:
        assert (scene.read(scene.grid.window)[0] == stored - np.array([185, 0])).all()


def test_the_file_counts_where_it_says_something(tmp_path):
    item, stored, path = write_item(tmp_path, {"raster:bands": OLD, "nodata": -6}, nodata=-5)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (3, 1), (4, 0)
    with open_scene(item) as scene:
        values, valid = scene.read(scene.grid.window)
    assert not valid[0, 0] and valid[0, 1]
    expected = stored * [3.0, 2.0] + [4.0, 1.0]  # the second band of the file says nothing
    assert values[valid] == pytest.approx(expected[valid])


@pytest.mark.parametrize(
    ("asset", "properties"),
    [
        ({"bands": [{"nodata": -5}, {"nodata": -5}]}, {}),
        ({"raster:bands": [{"nodata": -5}, {"nodata": -5}]}, {}),
        ({"nodata": -5}, {}),
        ({}, {"nodata": -5}),
    ],
)
def test_nodata_of_an_item(tmp_path, asset, properties):
    item, _, _ = write_item(tmp_path, asset, properties)
    with open_scene(item) as scene:
        assert scene.nodata == -5
        valid = scene.read(scene.grid.window)[1]
    assert not valid[0, 0] and valid.sum() == valid.size - 1
    with open_scene(item, nodata=-6) as scene:
        valid = scene.read(scene.grid.window)[1]
    assert valid[0, 0] and not valid[0, 1]


@pytest.mark.parametrize("nodata", ["nan", -99999, 0.5])
def test_nodata_that_the_type_cannot_hold(tmp_path, nodata):
    item, _, _ = write_item(tmp_path, {"nodata": nodata})
    with open_scene(item) as scene:
        assert scene.nodata is None and scene.read(scene.grid.window)[1].all()


def test_nodata_of_resampled_bands(tmp_path):
    item, _, _ = write_item(tmp_path, {"nodata": -5})
    with open_scene(item, resolution=5) as scene:
        valid = scene.read(scene.grid.window)[1]
    assert not valid[0, 0] and valid[:, 10:].all()


def test_values_that_are_no_numbers(tmp_path):
    item, _, _ = write_item(tmp_path, {"raster:bands": [{"scale": "0.1"}]})
    with pytest.raises(UnreadableImage, match="asset 'data': raster:scale must be a number, not"):
        open_scene(item)
    item, _, _ = write_item(tmp_path, {"bands": {"red": {}}})
    with pytest.raises(UnreadableImage, match="not a STAC item"):
        open_scene(item)
