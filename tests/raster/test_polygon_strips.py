import numpy as np
import pytest

from raster.label_maps import blobs, write_raster
from segformer.raster import polygons_tracing
from segformer.raster.polygons_regions import Regions, signed_areas
from segformer.raster.polygons_simplifying import simplified, with_nodes
from segformer.raster.polygons_tracing import LabelStore

rasterio = pytest.importorskip("rasterio", reason='needs the extra "geo"')
shapely = pytest.importorskip("shapely", reason='needs the extra "geo"')

from rasterio.features import shapes  # noqa: E402


def spiral(height, width):
    """(H, W) two classes that wind around each other."""
    y, x = np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2
    return (((np.hypot(y, x) - 4 * np.arctan2(y, x) / np.pi) // 4) % 2).astype(np.uint8)


def checkers(height, width):
    """(H, W) pixels that touch at their corners, and a few that join some of them."""
    labels = (np.add.outer(np.arange(height), np.arange(width)) % 2).astype(np.uint8)
    labels[np.random.default_rng(0).random(labels.shape) < 0.2] = 1
    return labels


def noise(height, width, seed=0, classes=3):
    return np.random.default_rng(seed).integers(0, classes, (height, width)).astype(np.uint8)


MAPS = {
    "blobs": lambda seed: blobs(40, 50, seed=seed),
    "noise of two classes": lambda seed: noise(30, 40, seed, 2),
    "noise of four classes": lambda seed: noise(20, 30, seed, 4),
    "mostly one class": lambda seed: (noise(40, 40, seed, 10) == 0).astype(np.uint8),
    "spiral": lambda seed: spiral(40 + seed, 45),
    "checkers": lambda seed: checkers(20 + seed, 21),
    "one class": lambda seed: np.zeros((7 + seed, 5), np.uint8),
    "one column": lambda seed: noise(30, 1, seed, 2),
    "one row": lambda seed: noise(1, 30, seed, 2),
}


def store_of(kind, seed, *, masked):
    labels = MAPS[kind](seed)
    mask = np.ones(labels.shape, np.uint8)
    if masked:
        mask[np.random.default_rng(seed + 9).random(labels.shape) < 0.1] = 0
    return LabelStore(labels, mask)


def traced_whole(store):
    """Polygons and class ids by GDAL, of the whole raster at once."""
    found = list(shapes(store.ids, store.mask, connectivity=4))
    polygons = [
        shapely.Polygon(shape["coordinates"][0], shape["coordinates"][1:]) for shape, _ in found
    ]
    return np.array(polygons, object), np.array([int(value) for _, value in found])


def traced(store, rows=None, monkeypatch=None, values=None):
    """The regions, traced in strips of so many rows, or whole."""
    if rows is not None:
        height = len(store.ids)
        strips = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
        monkeypatch.setattr(polygons_tracing, "_strips", lambda edges: iter(strips))
    return Regions.joined(list(store.trace(store.count_edges(), values)))


def described(polygons, class_ids):
    """Exactly the same for the same polygons in another order."""
    encoded = shapely.to_wkb(shapely.normalize(polygons))
    return sorted(zip(encoded, (int(i) for i in class_ids), strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("kind", MAPS)
def test_strips_give_the_polygons_of_the_whole(kind, rows, masked, monkeypatch):
    for seed in range(6):
        store = store_of(kind, seed, masked=masked)
        regions = traced(store, rows, monkeypatch)
        polygons = regions.polygons()
        assert shapely.is_valid(polygons).all()
        assert described(polygons, regions.class_ids) == described(*traced_whole(store))
        is_positive = signed_areas(regions.corners, regions.ring_starts) > 0
        assert np.array_equal(np.flatnonzero(is_positive), regions.region_starts[:-1])


@pytest.mark.parametrize("limit", [1, 50, 400, 10**9])
def test_strips_of_a_number_of_edges(limit, monkeypatch):
    monkeypatch.setattr(polygons_tracing, "_STRIP_EDGES", limit)
    store = store_of("blobs", 0, masked=True)
    edges = store.count_edges()
    strips = list(polygons_tracing._strips(edges))
    assert [strip.start for strip in strips] == [0, *(strip.stop for strip in strips[:-1])]
    assert strips[-1].stop == len(store.ids)
    for strip in strips:
        assert edges[strip].sum() <= limit or strip.stop == strip.start + 1
    assert (len(strips) == 1) == (limit == 10**9)
    regions = traced(store)
    assert described(regions.polygons(), regions.class_ids) == described(*traced_whole(store))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_confidences_of_strips(tmp_path, rows, monkeypatch):
    store = store_of("blobs", 3, masked=True)
    values = np.random.default_rng(0).integers(0, 255, store.ids.shape).astype(np.uint8)
    path = write_raster(tmp_path / "c.tif", values)
    with rasterio.open(path) as dataset:
        regions = traced(store, rows, monkeypatch, dataset)
    covers = shapely.STRtree(regions.polygons())
    y, x = np.nonzero(store.mask)
    points, owners = covers.query(shapely.points(x + 0.5, y + 0.5), predicate="intersects")
    assert len(points) == len(y)
    expected = np.bincount(owners, values[y[points], x[points]].astype(float), len(regions))
    np.testing.assert_allclose(regions.means(), expected / np.bincount(owners))


@pytest.mark.parametrize("kind", ["blobs", "noise of four classes", "checkers"])
def test_edges_are_counted(kind):
    store = store_of(kind, 0, masked=True)
    edges = store.count_edges()
    assert edges.sum() == round(shapely.length(traced(store).polygons()).sum())
    store.leave_out(np.array([1]))
    assert store.count_edges().sum() == round(shapely.length(traced(store).polygons()).sum())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", MAPS)
def test_simplification_needs_corners_only_at_nodes(kind, masked, monkeypatch):
    # The same as with a corner at each pixel of each outline
    store = store_of(kind, 1, masked=masked)
    size = (10.0, 7.5)
    regions = traced(store, 3, monkeypatch)
    dense = shapely.transform(shapely.segmentize(regions.polygons(), 1.0), np.rint)
    expected = shapely.coverage_simplify(shapely.transform(dense, lambda xy: xy * size), 20)
    expected = shapely.transform(expected, lambda xy: np.rint(xy / size))
    found = simplified([regions], store.find_nodes(), 20, size)
    assert described(found.polygons(), found.class_ids) == described(expected, regions.class_ids)


def test_nodes_are_corners_of_all_outlines_that_meet():
    labels = np.zeros((4, 4), np.uint8)
    labels[:2, 1:3] = 1
    labels[2:, 2:] = 2
    store = LabelStore(labels, np.ones((4, 4), np.uint8))
    nodes = store.find_nodes()
    places = {(int(node) >> 32, int(node) & 0xFFFFFFFF) for node in nodes}
    assert places == {(0, 1), (0, 3), (2, 2), (2, 3), (4, 2), (2, 4)}
    regions = traced(store)
    turned = np.sort((nodes & 0xFFFFFFFF) << 32 | nodes >> 32)
    dense = with_nodes(regions, nodes, turned)
    for region, (plain, more) in enumerate(zip(regions.polygons(), dense.polygons(), strict=True)):
        assert plain.equals(more), region
        on_outline = [p for p in places if shapely.Point(p[1], p[0]).distance(plain.boundary) == 0]
        assert {(int(y), int(x)) for x, y in more.exterior.coords} >= set(on_outline)


def test_batches_and_choices():
    regions = traced(store_of("noise of four classes", 0, masked=False))
    polygons = regions.polygons()
    chosen = np.random.default_rng(0).random(len(regions)) < 0.3
    part = regions.take(chosen)
    assert described(part.polygons(), part.class_ids) == described(
        polygons[chosen], regions.class_ids[chosen]
    )
    assert len(Regions.joined([]).polygons()) == 0


def test_batches_have_all_regions(monkeypatch):
    monkeypatch.setattr("segformer.raster.polygons_regions._BATCH_CORNERS", 20)
    monkeypatch.setattr("segformer.raster.polygons_regions._BATCH_REGIONS", 4)
    regions = traced(store_of("noise of four classes", 0, masked=False))
    batches = list(regions.batches())
    assert all(len(batch) <= 4 for batch in batches)
    assert all(len(batch) == 1 or len(batch.corners) <= 20 for batch in batches)
    found = np.concatenate([batch.polygons() for batch in batches])
    assert shapely.equals_exact(found, regions.polygons(), 0).all()
