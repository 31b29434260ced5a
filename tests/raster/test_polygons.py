import json

import cv2
import numpy as np
import pytest

from raster.label_maps import CLASSES, DEGREES, FEET, TRANSFORMS, UTM, WEB, blobs, write_raster
from segformer.classes import ClassSet
from segformer.files import OutputExists
from segformer.raster.areas import NoGroundArea, class_areas
from segformer.raster.polygons import write_polygons
from segformer.raster.polygons_config import PolygonConfig
from segformer.raster.polygons_regions import TooManyPolygons

rasterio = pytest.importorskip("rasterio", reason='needs the extra "geo"')
shapely = pytest.importorskip("shapely", reason='needs the extra "geo"')
pytest.importorskip("pyogrio", reason='needs the extra "geo"')

from pyogrio.raw import read  # noqa: E402
from rasterio.features import rasterize  # noqa: E402


def read_back(path):
    """Polygons and a dictionary of attributes of a GeoPackage."""
    meta, _, geometry, fields = read(path)
    return shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True)), meta


def counted_regions(labels, valid) -> int:
    masks = [((labels == i) & valid).astype(np.uint8) for i in np.unique(labels[valid])]
    return sum(cv2.connectedComponents(mask, connectivity=4)[0] - 1 for mask in masks)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


@pytest.mark.parametrize("crs", [UTM, DEGREES, FEET, WEB])
@pytest.mark.parametrize("make", [blobs, lambda h, w: noise((h, w))])
def test_polygons_are_the_regions(tmp_path, crs, make):
    labels = make(60, 70)
    labels[10:20, 15:40] = 255
    source = write_raster(tmp_path / "a.tif", labels, crs)
    count = write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES)
    polygons, fields, meta = read_back(tmp_path / "a.gpkg")
    assert count == len(polygons) == counted_regions(labels, labels != 255)
    assert shapely.is_valid(polygons).all()
    assert rasterio.crs.CRS.from_user_input(meta["crs"]) == rasterio.crs.CRS.from_string(crs)
    burned = rasterize(
        zip(polygons, (int(v) for v in fields["class_id"]), strict=True),
        labels.shape,
        fill=255,
        transform=TRANSFORMS[crs],
        dtype="uint8",
    )
    np.testing.assert_array_equal(burned, labels)
    np.testing.assert_array_equal(
        fields["class_name"], np.array(CLASSES.names, object)[fields["class_id"]]
    )
    areas = class_areas(source, CLASSES)
    for i, name in enumerate(CLASSES.names):
        of_class = fields["area_m2"][fields["class_id"] == i].sum()
        assert of_class == pytest.approx(areas[name].area_m2, rel=1e-7)


def test_a_hole_is_a_hole(tmp_path):
    labels = np.ones((9, 9), np.uint8)
    labels[3:6, 3:6] = 2
    labels[4, 4] = 255
    write_polygons(write_raster(tmp_path / "a.tif", labels), tmp_path / "a.gpkg", classes=CLASSES)
    polygons, fields, _ = read_back(tmp_path / "a.gpkg")
    by_class = dict(zip(fields["class_id"], polygons, strict=True))
    assert [len(by_class[i].interiors) for i in (1, 2)] == [1, 1]
    assert [by_class[i].area for i in (1, 2)] == [7200, 800]
    assert by_class[1].exterior.is_ccw and not by_class[1].interiors[0].is_ccw


def test_pixels_that_touch_at_corners_are_apart(tmp_path):
    labels = np.array([[1, 0], [0, 1]], np.uint8)
    source = write_raster(tmp_path / "a.tif", labels)
    assert write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES) == 4


@pytest.mark.parametrize("crs", [UTM, DEGREES, FEET, WEB])
@pytest.mark.parametrize("make", [blobs, lambda h, w: noise((h, w))])
def test_simplified_polygons_have_no_gaps_or_overlaps(tmp_path, crs, make):
    labels = make(80, 80)
    source = write_raster(tmp_path / "a.tif", labels, crs)
    plain = write_polygons(source, tmp_path / "plain.gpkg", classes=CLASSES)
    tolerance = {UTM: 40, DEGREES: 300, FEET: 6, WEB: 20}[crs]
    count = write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, simplify=tolerance)
    assert count == plain
    polygons, fields, _ = read_back(tmp_path / "a.gpkg")
    before, _, _ = read_back(tmp_path / "plain.gpkg")
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    # No gap inside: the union is one polygon without holes
    union = shapely.union_all(polygons)
    assert shapely.get_num_geometries(union) == 1 and not shapely.get_num_interior_rings(union)
    if make is blobs:
        corners = [shapely.get_num_coordinates(each).sum() for each in (polygons, before)]
        assert corners[0] < 0.4 * corners[1]
        total = sum(area.area_m2 for area in class_areas(source, CLASSES).values())
        assert fields["area_m2"].sum() == pytest.approx(total, rel=0.02)


def test_small_regions_join_their_largest_neighbor(tmp_path):
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    labels[5:7, 3:5] = 2  # 400 m2 inside of background
    labels[10, 9] = 3
    source = write_raster(tmp_path / "a.tif", labels)
    write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, min_area=401)
    polygons, fields, _ = read_back(tmp_path / "a.gpkg")
    assert sorted(fields["class_id"]) == [0, 1]
    assert fields["area_m2"].sum() == 40000
    assert shapely.area(polygons).sum() == 40000
    kept = write_polygons(
        source, tmp_path / "a.gpkg", classes=CLASSES, min_area=400, overwrite=True
    )
    assert kept == 3


@pytest.mark.parametrize("crs", [UTM, DEGREES])
def test_minimum_area_of_noise(tmp_path, crs):
    labels = noise((60, 60), 3)
    labels[20:30, 5:30] = 255
    source = write_raster(tmp_path / "a.tif", labels, crs)
    pixel = class_areas(source, CLASSES)["water"]
    smallest = 9.5 * pixel.area_m2 / pixel.pixels
    write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, min_area=smallest)
    polygons, fields, _ = read_back(tmp_path / "a.gpkg")
    assert fields["area_m2"].min() >= smallest
    # No region was lost: all were merged, and nothing into pixels without data
    total = sum(area.area_m2 for area in class_areas(source, CLASSES).values())
    assert fields["area_m2"].sum() == pytest.approx(total, rel=1e-9)
    assert shapely.coverage_is_valid(shapely.segmentize(polygons, 1000)) or len(polygons) > 1


def test_a_small_region_alone_is_left_out(tmp_path):
    labels = np.full((9, 9), 255, np.uint8)
    labels[2, 2], labels[5:8, 5:8] = 1, 2
    source = write_raster(tmp_path / "a.tif", labels)
    write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, min_area=300)
    assert list(read_back(tmp_path / "a.gpkg")[1]["class_name"]) == ["forest"]


def test_classes_that_are_skipped(tmp_path):
    labels = blobs(40, 40)
    source = write_raster(tmp_path / "a.tif", labels)
    write_polygons(
        source, tmp_path / "a.gpkg", classes=CLASSES, skip_classes=("background", "field")
    )
    _, fields, _ = read_back(tmp_path / "a.gpkg")
    assert set(fields["class_id"]) == {1, 2}


@pytest.mark.parametrize("make", [blobs, lambda h, w: noise((h, w))])
def test_mean_confidence(tmp_path, make):
    labels = make(50, 40)
    labels[:, 7] = 255
    values = np.random.default_rng(1).integers(0, 201, labels.shape).astype(np.uint8)
    values[labels == 255] = 255
    source = write_raster(tmp_path / "a.tif", labels, blockysize=3)
    confidence = write_raster(tmp_path / "c.tif", values, blockysize=3)
    with rasterio.open(confidence, "r+") as dataset:
        dataset.scales = (0.005,)
    for simplify in (0, 30):
        write_polygons(
            source,
            tmp_path / "a.gpkg",
            classes=CLASSES,
            confidence=confidence,
            simplify=simplify,
            overwrite=True,
        )
        _, fields, _ = read_back(tmp_path / "a.gpkg")
        write_polygons(source, tmp_path / "b.gpkg", classes=CLASSES, overwrite=True)
        plain, _, _ = read_back(tmp_path / "b.gpkg")
        for polygon, mean in zip(plain, fields["mean_confidence"], strict=True):
            inside = rasterize([polygon], labels.shape, transform=TRANSFORMS[UTM]) == 1
            assert mean == pytest.approx(0.005 * values[inside].astype(float).mean(), rel=1e-9)


def test_mean_confidence_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("segformer.raster.polygons_confidence._BLOCK_PIXELS", 200)
    test_mean_confidence(tmp_path, blobs)


def test_a_confidence_of_another_size(tmp_path):
    source = write_raster(tmp_path / "a.tif", blobs(9, 9))
    confidence = write_raster(tmp_path / "c.tif", blobs(9, 8))
    with pytest.raises(ValueError, match=r"c.tif has 8 x 9 pixels on another grid than"):
        write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, confidence=confidence)


def test_geoparquet(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason='needs the extra "geoparquet"')
    labels = blobs(40, 40)
    source = write_raster(tmp_path / "a.tif", labels)
    count = write_polygons(source, tmp_path / "a.parquet", classes=CLASSES, simplify=20)
    write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, simplify=20)
    table = pq.read_table(tmp_path / "a.parquet")
    polygons, fields, _ = read_back(tmp_path / "a.gpkg")
    assert table.num_rows == count
    assert shapely.equals(shapely.from_wkb(table["geometry"].to_pylist()), polygons).all()
    for name, values in fields.items():
        assert table[name].to_pylist() == list(values)
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    assert column["encoding"] == "WKB" and column["geometry_types"] == ["Polygon"]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert column["bbox"] == pytest.approx(shapely.total_bounds(polygons).tolist())
    assert column["orientation"] == "counterclockwise"
    assert all(polygon.exterior.is_ccw for polygon in polygons)
    box = table["bbox"][0].as_py()
    assert tuple(box.values()) == polygons[0].bounds


def test_geoparquet_in_geopandas(tmp_path):
    geopandas = pytest.importorskip("geopandas", reason="reads GeoParquet")
    pytest.importorskip("pyarrow", reason='needs the extra "geoparquet"')
    source = write_raster(tmp_path / "a.tif", blobs(40, 40), DEGREES)
    write_polygons(source, tmp_path / "a.parquet", classes=CLASSES)
    frame = geopandas.read_parquet(tmp_path / "a.parquet")
    assert frame.crs == "EPSG:4326"
    utm = frame.to_crs(frame.estimate_utm_crs())
    np.testing.assert_allclose(utm.area, frame.area_m2, rtol=2e-3)
    west = geopandas.read_parquet(tmp_path / "a.parquet", bbox=(15.0, 59.9, 15.001, 60.0))
    assert 0 < len(west) < len(frame)


def test_genuine_labels(tmp_path, shared_data):
    source = shared_data / "multispectral" / "Spain_7370579_LabelHand.tif"
    if not source.exists():
        pytest.skip("no multispectral chip")
    with rasterio.open(source) as dataset:
        labels, profile = dataset.read(1), dataset.profile
    values = np.where(labels < 0, 255, labels).astype(np.uint8)
    path = write_raster(
        tmp_path / "a.tif", values, profile["crs"].to_string(), transform=profile["transform"]
    )
    classes = ClassSet(("land", "water"))
    count = write_polygons(path, tmp_path / "a.gpkg", classes=classes)
    assert count == counted_regions(values, values != 255)
    _, fields, _ = read_back(tmp_path / "a.gpkg")
    areas = class_areas(path, classes)
    water = fields["area_m2"][fields["class_id"] == 1].sum()
    assert water == pytest.approx(areas["water"].area_m2, rel=1e-7)
    # Pixels of Sentinel-2 are 10 m wide
    assert areas["water"].area_m2 / areas["water"].pixels == pytest.approx(80, rel=0.3)
    write_polygons(path, tmp_path / "s.gpkg", classes=classes, simplify=15, min_area=2000)
    simple, _, _ = read_back(tmp_path / "s.gpkg")
    assert shapely.coverage_is_valid(simple) and len(simple) < count


def test_a_scene_without_data(tmp_path):
    source = write_raster(tmp_path / "a.tif", np.full((9, 9), 255, np.uint8))
    assert write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, simplify=5) == 0
    polygons, fields, meta = read_back(tmp_path / "a.gpkg")
    assert len(polygons) == 0 and meta["geometry_type"] == "Polygon" and meta["crs"] == UTM
    assert list(fields) == ["class_id", "class_name", "area_m2"]


def test_classes_from_the_metadata(tmp_path):
    source = write_raster(tmp_path / "a.tif", blobs(20, 20))
    with pytest.raises(ValueError, match="does not say what its classes are"):
        write_polygons(source, tmp_path / "a.gpkg")
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(
            CLASS_NAMES=json.dumps(CLASSES.names), CLASS_COLORS=json.dumps(["#000000"] * 4)
        )
    write_polygons(source, tmp_path / "a.gpkg")
    assert set(read_back(tmp_path / "a.gpkg")[1]["class_name"]) == set(CLASSES.names)


def test_bad_requests(tmp_path):
    source = write_raster(tmp_path / "a.tif", blobs(20, 20))
    with pytest.raises(ValueError, match="no class 'lake'; the classes are background, water"):
        write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, skip_classes=("lake",))
    with pytest.raises(ValueError, match=r"GeoPackage \(.gpkg\) or GeoParquet"):
        write_polygons(source, tmp_path / "a.shp", classes=CLASSES)
    with pytest.raises(ValueError, match="min_area must be 0 or more"):
        PolygonConfig(min_area=-1)
    with pytest.raises(ValueError, match="polygons must be gpkg or parquet"):
        PolygonConfig(polygons="shp")
    (tmp_path / "b.gpkg").write_text("mine")
    with pytest.raises(OutputExists, match=r"b.gpkg already exists.*--overwrite"):
        write_polygons(source, tmp_path / "b.gpkg", classes=CLASSES)
    assert (tmp_path / "b.gpkg").read_text() == "mine"
    plain = write_raster(tmp_path / "n.tif", blobs(9, 9), None)
    with pytest.raises(NoGroundArea, match="no coordinate reference system"):
        write_polygons(plain, tmp_path / "n.gpkg", classes=CLASSES)
    assert not list(tmp_path.glob(".partial*"))


def test_too_many_polygons(tmp_path):
    source = write_raster(tmp_path / "a.tif", noise((50, 50)))
    with pytest.raises(TooManyPolygons, match=r"a.tif: the outlines of its .*larger --min-area"):
        write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, max_memory=10000)
    write_polygons(source, tmp_path / "a.gpkg", classes=CLASSES, max_memory=400000, min_area=50000)


def test_too_many_polygons_to_simplify(tmp_path):
    source = write_raster(tmp_path / "a.tif", noise((50, 50)))
    memory = {"classes": CLASSES, "max_memory": 3_500_000}
    with pytest.raises(TooManyPolygons, match=r"a.tif: the outlines .* without --simplify"):
        write_polygons(source, tmp_path / "a.gpkg", simplify=10, **memory)
    assert not (tmp_path / "a.gpkg").exists()
    assert write_polygons(source, tmp_path / "a.gpkg", **memory)
