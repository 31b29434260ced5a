"""Opening and reading scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="scenes need the extra geo")
pytest.importorskip("pyogrio", reason="areas need the extra geo")

import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

from scene_samples import UTM, draw_pixels, write_scene
from segformer.image import UnreadableImage, read_image
from segformer.image.scene import open_scene
from segformer.image.scene_grid import Window, place

Draw = Callable[..., Path]


def test_windows_are_the_file_s_pixels(draw_scene: Draw) -> None:
    path = draw_scene(90, 110)
    whole = read_image(path)
    with open_scene(path) as scene:
        assert (scene.height, scene.width) == (90, 110)
        assert scene.crs.to_string() == UTM
        assert scene.dtype == np.uint8
        pixels, valid = scene.read(Window(20, 30, 40, 50))
        assert (pixels == whole[20:60, 30:80]).all()
        assert valid.all()


def test_pixels_beyond_the_border_have_no_data(draw_scene: Draw) -> None:
    path = draw_scene(50, 60)
    with open_scene(path) as scene:
        pixels, valid = scene.read(Window(-10, 40, 30, 40))
    expected = np.zeros((30, 40), bool)
    expected[10:, :20] = True
    assert (valid == expected).all()
    assert (pixels[10:, :20] == read_image(path)[:20, 40:60]).all()
    assert not pixels[~expected].any()


def test_bands_by_number_and_by_name(tmp_path: Path) -> None:
    pixels = draw_pixels(20, 30, 5)
    path = write_scene(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("blue", "green", "red", "nir", "swir")
    with open_scene(path, bands=[4, "Red", "2"]) as scene:
        assert scene.bands == ("nir", "red", "green")
        assert (scene.read(scene.grid.window)[0] == pixels[:, :, [3, 2, 1]]).all()
    with pytest.raises(ValueError, match="no band thermal; bands 1 to 5: blue, green, red"):
        open_scene(path, bands=["thermal"])


def test_one_file_per_band(tmp_path: Path) -> None:
    pixels = draw_pixels(40, 60, 2).astype(np.uint16) * 9
    fine = write_scene(tmp_path / "B04.tif", pixels[:, :, :1])
    coarse = write_scene(
        tmp_path / "B11.tif",
        pixels[::2, ::2, 1:],
        transform=from_origin(500_000, 5_300_000, 20, 20),
    )
    with open_scene([coarse, fine]) as scene:
        assert scene.bands == ("B11", "B04")
        assert (scene.height, scene.width) == (40, 60)
        read, valid = scene.read(scene.grid.window)
        assert valid.all()
        assert (read[:, :, 1] == pixels[:, :, 0]).all()
        assert read[10, 11, 0] == pytest.approx(float(pixels[10, 10, 1]), abs=400)
        assert read[:, :, 0].mean() == pytest.approx(pixels[::2, ::2, 1].mean(), rel=0.01)
    moved = write_scene(
        tmp_path / "B12.tif", pixels[:, :, :1], transform=from_origin(0, 5_300_000, 10, 10)
    )
    with pytest.raises(UnreadableImage, match="B12.tif: does not cover the same area"):
        open_scene([fine, moved])
    other = write_scene(tmp_path / "B08.tif", pixels[:, :, :1], crs="EPSG:32633")
    with pytest.raises(UnreadableImage, match="files of one scene must have the same CRS"):
        open_scene([fine, other])


def test_no_data_is_where_any_band_lacks_it_or_all_of_8_bits(tmp_path: Path) -> None:
    pixels = draw_pixels(20, 20, 3)
    pixels[:5] = 0
    pixels[10, 10, 1] = 0
    with open_scene(write_scene(tmp_path / "bytes.tif", pixels, nodata=0)) as scene:
        valid = scene.read(scene.grid.window)[1]
        assert not valid[:5].any()
        assert valid[5:].all()
    path = write_scene(tmp_path / "shorts.tif", pixels.astype(np.int16), nodata=0)
    with open_scene(path) as scene:
        valid = scene.read(scene.grid.window)[1]
        assert valid.sum() == 15 * 20 - 1
        assert not valid[10, 10]
    floats = pixels.astype(np.float32)
    floats[0, 0, 0] = np.nan
    floats[3, 3] = -9999
    with open_scene(write_scene(tmp_path / "floats.tif", floats, nodata=-9999)) as scene:
        valid = scene.read(scene.grid.window)[1]
        assert np.argwhere(~valid).tolist() == [[0, 0], [3, 3]]


def test_alpha_and_masks_say_where_there_is_no_data(tmp_path: Path) -> None:
    pixels = draw_pixels(20, 20, 4)
    pixels[:, :, 3] = 255
    pixels[4:8, :, 3] = 0
    path = write_scene(tmp_path / "alpha.tif", pixels, photometric="RGB", alpha="yes")
    with open_scene(path) as scene:
        assert len(scene.bands) == 3
        valid = scene.read(scene.grid.window)[1]
        assert not valid[4:8].any()
        assert valid.sum() == 16 * 20
    path = write_scene(tmp_path / "mask.tif", pixels[:, :, :3])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(pixels[:, :, 3] > 0)
    with open_scene(path) as scene:
        assert scene.read(scene.grid.window)[1].sum() == 16 * 20


def test_resolution_resamples_on_the_fly(draw_scene: Draw) -> None:
    path = draw_scene(80, 120)
    with open_scene(path, resolution=20) as scene:
        assert (scene.height, scene.width) == (40, 60)
        assert scene.transform.a == 20
        whole, valid = scene.read(scene.grid.window)
        assert valid.all()
        part, _ = scene.read(Window(7, 13, 20, 30))
        assert (part == whole[7:27, 13:43]).all()
        means = read_image(path).reshape(40, 2, 60, 2, 3).mean((1, 3))
        assert np.abs(whole - means).mean() < 6
    with pytest.raises(ValueError, match="resolution 5000"):
        open_scene(path, resolution=5000)


def test_area_in_another_crs(draw_scene: Draw, tmp_path: Path) -> None:
    path = draw_scene(100, 120)
    ring = [(500_200, 5_299_900), (500_800, 5_299_900), (500_800, 5_299_500), (500_200, 5_299_500)]
    shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    feature = {
        "type": "Feature",
        "properties": {},
        "geometry": transform_geom(UTM, "EPSG:4326", shape, precision=9),
    }
    area = tmp_path / "field.geojson"
    area.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with open_scene(path, area=area) as scene:
        assert scene.window.top in (9, 10)
        assert 40 <= scene.height <= 42
        assert 60 <= scene.width <= 62
        pixels, valid = scene.read(Window(-5, -5, scene.height + 10, scene.width + 10))
        assert valid.sum() == pytest.approx(40 * 60, abs=60)
        top, left = scene.window.top - 5, scene.window.left - 5
        there = read_image(path)[top : top + len(valid), left : left + valid.shape[1]]
        assert (pixels[valid] == there[valid]).all()
        around, everywhere = scene.read(Window(-5, -5, 20, 20), surroundings=True)
        assert everywhere.all()
        assert (around == there[:20, :20]).all()
    feature["geometry"] = {"type": "Point", "coordinates": [9, 47]}
    area.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.raises(ValueError, match="there are no polygons"):
        open_scene(path, area=area)
    feature["geometry"] = {"type": "Polygon", "coordinates": [[(1, 1), (1, 2), (2, 2), (1, 1)]]}
    area.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.raises(ValueError, match="lies outside of the scene"):
        open_scene(path, area=area)


def test_an_area_needs_a_crs(draw_scene: Draw, tmp_path: Path) -> None:
    path = draw_scene(50, 50, crs=None)
    with pytest.raises(ValueError, match="has no CRS, so an area cannot be placed"):
        open_scene(path, area=tmp_path / "field.geojson")
    with open_scene(path, resolution=20) as scene:
        assert scene.crs is None
        assert scene.read(scene.grid.window)[1].all()


def test_where_is_a_window_of_pixels(draw_scene: Draw) -> None:
    path = draw_scene(50, 60)
    with open_scene(path, where=(10, 20, 30, 40)) as scene:
        assert (scene.height, scene.width) == (30, 30)
        assert place(scene.transform, 0, 0) == (500_100, 5_299_800)
        assert (scene.read(scene.grid.window)[0] == read_image(path)[20:50, 10:40]).all()
    with pytest.raises(ValueError, match="none of the 60 x 50 pixels"):
        open_scene(path, where=(60, 0, 5, 5))


def test_scale_and_offset_of_the_file(tmp_path: Path) -> None:
    stored = draw_pixels(20, 20, 2).astype(np.int16)
    stored[3, 4] = -1
    path = write_scene(tmp_path / "scaled.tif", stored, nodata=-1)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5, 2.0), (-10.0, 1.0)
    with open_scene(path) as scene:
        assert scene.dtype == np.float32
        values, valid = scene.read(scene.grid.window)
        assert not valid[3, 4]
        assert np.isnan(values[3, 4]).all()
        expected = stored * [0.5, 2.0] + [-10.0, 1.0]
        assert values[valid] == pytest.approx(expected[valid])
    with open_scene(path, scaled=False) as scene:
        assert (scene.read(scene.grid.window)[0] == stored).all()


def test_statistics_are_declared_or_of_the_pixels_with_data(tmp_path: Path) -> None:
    pixels = draw_pixels(300, 400, 2).astype(np.int16)
    pixels[:200] = -7
    path = write_scene(tmp_path / "a.tif", pixels, nodata=-7)
    with open_scene(path) as scene:
        means, stds = scene.statistics()
    assert means == pytest.approx(pixels[200:].mean((0, 1)), rel=0.02)
    assert stds == pytest.approx(pixels[200:].std((0, 1)), rel=0.02)
    assert list(tmp_path.iterdir()) == [path]
    with rasterio.open(path, "r+") as dataset:
        for band in (1, 2):
            dataset.update_tags(band, STATISTICS_MEAN=f"{band * 10}", STATISTICS_STDDEV="3")
    with open_scene(path) as scene:
        assert scene.statistics() == ((10, 20), (3, 3))


def test_stac_items(draw_scene: Draw, tmp_path: Path) -> None:
    for name in ("B04", "B03"):
        write_scene(tmp_path / f"{name}.tif", draw_pixels(30, 40, 1))
    draw_scene(30, 40, "preview.tif")
    kind = "image/tiff; application=geotiff; profile=cloud-optimized"
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "assets": {
            "thumbnail": {"href": "preview.tif", "type": kind, "roles": ["thumbnail"]},
            "green": {"href": "B03.tif", "type": kind, "roles": ["data"]},
            "red": {"href": "./B04.tif", "type": kind, "roles": ["data"]},
            "metadata": {"href": "x.xml", "type": "application/xml"},
        },
    }
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item))
    with open_scene(path, bands=["red", "green"]) as scene:
        assert scene.bands == ("red", "green")
        assert scene.files[0].endswith("B04.tif")
        assert scene.read(scene.grid.window)[1].all()
    path.write_text('{"type": "FeatureCollection"}')
    with pytest.raises(UnreadableImage, match="not a STAC item"):
        open_scene(path)


def test_a_vrt_is_a_scene(draw_scene: Draw, tmp_path: Path) -> None:
    path = draw_scene(40, 50)
    import rasterio.shutil

    rasterio.shutil.copy(str(path), str(tmp_path / "scene.vrt"), driver="VRT")
    with open_scene(tmp_path / "scene.vrt") as scene:
        assert (scene.read(scene.grid.window)[0] == read_image(path)).all()


def test_files_that_cannot_be_read(tmp_path: Path, draw_scene: Draw) -> None:
    with pytest.raises(UnreadableImage, match=r"none\.tif: no such file"):
        open_scene(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("no scene")
    with pytest.raises(UnreadableImage, match=r"text\.tif: cannot be read"):
        open_scene(tmp_path / "text.tif")
    path = draw_scene(300, 300)
    path.write_bytes(path.read_bytes()[:100_000])
    with open_scene(path) as scene, pytest.raises(UnreadableImage, match=r"scene\.tif: cannot"):
        scene.read(Window(200, 0, 100, 300))


def test_the_chip_of_real_data(shared_data: Path) -> None:
    path = shared_data / "multispectral/Spain_7370579_S2Hand.tif"
    with open_scene(path, bands=["B4", "B3", "B2"]) as scene:
        pixels, valid = scene.read(Window(0, 0, 512, 512))
    whole = read_image(path, 13, as_8_bit=False)
    assert (pixels == whole[:, :, [3, 2, 1]]).all()
    assert valid.all()
