import numpy as np
import pytest

from raster.label_maps import CLASSES, DEGREES, FEET, TRANSFORMS, UTM, WEB, blobs, write_raster
from segformer.raster.areas import GroundPlane, NoGroundArea, class_areas

rasterio = pytest.importorskip("rasterio", reason='needs the extra "geo"')
pytest.importorskip("rasterio.warp")

A, F = 6378137.0, 1 / 298.257223563  # WGS 84
E2 = F * (2 - F)


def ellipsoid_area(top: float, bottom: float, degrees_wide: float) -> float:
    """Square meters between two latitudes: the integral of M N cos over them, numerically."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    top, bottom = np.radians(top), np.radians(bottom)
    latitude = (top + bottom) / 2 + (top - bottom) / 2 * nodes
    w = 1 - E2 * np.sin(latitude) ** 2
    strip = A**2 * (1 - E2) * np.cos(latitude) / w**2
    return float((weights * strip).sum() * (top - bottom) / 2 * np.radians(degrees_wide))


def test_areas_in_a_projected_reference_system_are_pixels(tmp_path):
    labels = blobs(60, 50)
    labels[:5] = 255
    areas = class_areas(write_raster(tmp_path / "a.tif", labels), CLASSES)
    for i, name in enumerate(CLASSES.names):
        assert areas[name].pixels == (labels == i).sum()
        assert areas[name].area_m2 == pytest.approx(100 * (labels == i).sum(), rel=1e-12)
    assert sum(area.fraction for area in areas.values()) == pytest.approx(1)


def test_feet_are_converted(tmp_path):
    labels = blobs(20, 30)
    areas = class_areas(write_raster(tmp_path / "a.tif", labels, FEET), CLASSES)
    side = 5 * 1200 / 3937  # US survey feet
    assert areas["water"].area_m2 == pytest.approx((labels == 1).sum() * side**2, rel=1e-9)


def test_areas_in_degrees_are_those_on_the_ellipsoid(tmp_path):
    labels = blobs(40, 30)
    areas = class_areas(write_raster(tmp_path / "a.tif", labels, DEGREES), CLASSES)
    rows = [ellipsoid_area(60 - 0.002 * r, 60 - 0.002 * (r + 1), 0.001) for r in range(40)]
    for i, name in enumerate(CLASSES.names):
        expected = sum(rows[r] * (labels[r] == i).sum() for r in range(40))
        assert areas[name].area_m2 == pytest.approx(expected, rel=1e-8)


def test_the_whole_earth(tmp_path):
    transform = rasterio.Affine(1, 0, -180, 0, -1, 90)
    path = write_raster(
        tmp_path / "a.tif", np.ones((180, 360), np.uint8), DEGREES, transform=transform
    )
    areas = class_areas(path, CLASSES)
    assert areas["water"].area_m2 == pytest.approx(5.10065621724e14, rel=1e-9)


def test_a_rotated_grid_in_degrees(tmp_path):
    # The sum over a rotated square is nearly that of a plane of the scale at its center
    step, cosine, sine = 0.0001, np.cos(np.pi / 6), np.sin(np.pi / 6)
    transform = rasterio.Affine(step * cosine, step * sine, 10, step * sine, -step * cosine, 45)
    path = write_raster(
        tmp_path / "a.tif", np.ones((20, 20), np.uint8), DEGREES, transform=transform
    )
    pixel = ellipsoid_area(45.00005, 44.99995, 0.0001)
    assert class_areas(path, CLASSES)["water"].area_m2 == pytest.approx(400 * pixel, rel=1e-3)


def test_web_mercator_gives_true_areas(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((20, 20), np.uint8), WEB)
    with rasterio.open(path) as dataset:
        (left, right), (bottom, top) = rasterio.warp.transform(
            dataset.crs, DEGREES, dataset.bounds[::2], dataset.bounds[1::2]
        )
    expected = ellipsoid_area(top, bottom, right - left)
    assert class_areas(path, CLASSES)["water"].area_m2 == pytest.approx(expected, rel=1e-6)
    assert expected < 0.3 * 400 * 100  # at 60 degrees a square meter of the map is a quarter of one


@pytest.mark.parametrize("crs", [UTM, DEGREES, FEET, WEB])
def test_pixel_size_gives_the_pixel_area(tmp_path, crs):
    path = write_raster(tmp_path / "a.tif", np.ones((21, 21), np.uint8), crs)
    with rasterio.open(path) as dataset:
        ground = GroundPlane(dataset)
        across, down = ground.pixel_size((21, 21))
        pixel = ground.pixel_areas(rasterio.windows.Window(10, 10, 1, 1))[0, 0]
    assert across * down == pytest.approx(pixel, rel=1e-4)
    if crs == DEGREES:  # meters of a degree at 60 degrees north
        assert (across, down) == pytest.approx((55.8, 222.8), rel=1e-3)
    if crs == UTM:
        assert (across, down) == pytest.approx((10, 10), rel=1e-12)
    if crs == WEB:
        assert across == pytest.approx(down, rel=0.01)


def test_no_reference_system(tmp_path):
    path = write_raster(tmp_path / "a.tif", blobs(9, 9), None)
    with pytest.raises(NoGroundArea, match=r"a.tif has no coordinate reference system.*gdal_edit"):
        class_areas(path, CLASSES)


def test_a_reference_system_without_a_place_on_the_earth(tmp_path):
    path = write_raster(
        tmp_path / "a.tif",
        blobs(9, 9),
        'LOCAL_CS["site",UNIT["metre",1]]',
        transform=TRANSFORMS[UTM],
    )
    with pytest.raises(NoGroundArea, match="warp it to a projected one"):
        class_areas(path, CLASSES)


def test_a_value_that_is_no_class(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full((9, 9), 7, np.uint8))
    with pytest.raises(ValueError, match="81 pixels have the value 7, but the classes are 0..3"):
        class_areas(path, CLASSES)


def test_a_scene_without_data(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full((9, 9), 255, np.uint8))
    assert all(area.area_m2 == area.fraction == 0 for area in class_areas(path, CLASSES).values())
