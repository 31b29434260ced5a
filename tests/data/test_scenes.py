"""Data sets of scenes: labels on tiles, the division in blocks, and the messages for the user."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
pyogrio = pytest.importorskip("pyogrio", reason="needs the extra geo")
shapely = pytest.importorskip("shapely", reason="needs the extra geo")

from rasterio.transform import Affine  # noqa: E402
from rasterio.warp import transform  # noqa: E402

from segformer import SegmentationTrainConfig, resume, train  # noqa: E402
from segformer.cli import main  # noqa: E402
from segformer.data.dataset import Dataset  # noqa: E402
from segformer.data.loader import DrawSampler, TrainingCrops, crop_loader  # noqa: E402
from segformer.data.opening import open_dataset, splits  # noqa: E402
from segformer.data.transforms import Augmentation  # noqa: E402
from segformer.image import Preprocessing, SceneTile, read_image  # noqa: E402
from segformer.training.loop import TrainingLoop  # noqa: E402

UTM = "EPSG:32630"
ORIGIN = (500_000.0, 4_200_000.0)
PIXEL = 10.0


def placed(x: float, y: float, pixel: float = PIXEL) -> Affine:
    """North up, with this upper left corner."""
    return Affine(pixel, 0, x, 0, -pixel, y)


PLACE = placed(*ORIGIN)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
    pytest.mark.filterwarnings("ignore:'crs' was not provided"),
]


def draw_scene(
    path: Path, size: tuple[int, int] = (200, 240), bands: int = 4, *, crs: str | None = UTM,
    place: Affine = PLACE, dtype: str = "int16", nodata: float | None = None, seed: int = 0,
) -> NDArray[np.integer]:  # fmt: skip
    """Noise; returns (bands, H, W)."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 250, (bands, *size)).astype(dtype)
    if nodata is not None:
        values[:, :, :30] = nodata
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=size[0], width=size[1], count=bands, dtype=dtype,
        crs=crs, transform=place if crs else None, nodata=nodata,
    ) as file:  # fmt: skip
        file.write(values)
    return values


def polygon(points: object) -> object:
    """A polygon given in (column, row) of the scene, in coordinates."""
    x, y = PLACE * np.asarray(points, np.float64).T
    return shapely.Polygon(np.stack([x, y], 1))


def blobs(count: int, size: tuple[int, int] = (200, 240), seed: int = 1) -> list[object]:
    """Star-shaped polygons with corners at odd places."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(6, 30, 9)
        center = rng.uniform((0, 0), size[::-1])
        ring = center + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        found.append(polygon(ring))
    return found


def write(
    path: Path, polygons: list[object], kinds: list[object] | None = None, crs: str | None = UTM,
    layer: str | None = None, append: bool = False,
) -> None:  # fmt: skip
    """A vector file with the column "kind"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [] if kinds is None else [np.array(kinds)]
    if kinds is not None and any(kind is None or isinstance(kind, str) for kind in kinds):
        columns = [np.array(kinds, object)]
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array(polygons, object)), columns, ["kind"][: len(columns)],
        geometry_type="Polygon", crs=crs, layer=layer, append=append,
    )  # fmt: skip


def describe(root: Path, **entries: object) -> Path:
    """A description of ``scene.tif`` with ``labels.gpkg``, and other entries."""
    basis = {
        "scenes": [{"image": "scene.tif", "labels": "labels.gpkg"}],
        "names": ["dry", "water"],
        "background": "dry",
        "tile_size": 40,
        "block_size": 80,
        "block_gap": 8,
    }
    merged = {key: value for key, value in {**basis, **entries}.items() if value is not None}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(yaml.safe_dump(merged))
    return root


def windows(dataset: Dataset) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom, right of each tile."""
    found = [sample.image.window for sample in dataset]
    return [(window.top, window.left, window.bottom, window.right) for window in found]


def whole_map(*datasets: Dataset, size: tuple[int, int] = (200, 240)) -> NDArray[np.int64]:
    """The class ids of all tiles, put where they lie; -1 where no tile is."""
    found = np.full(size, -1)
    for dataset in datasets:
        for sample in dataset:
            top, left, bottom, right = windows(Dataset(Path(), "", (sample,), dataset.classes))[0]
            found[top:bottom, left:right] = dataset.read(sample)[1]
    return found


def centers(size: tuple[int, int] = (200, 240)) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the centers of all pixels."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return PLACE * np.stack([columns, rows])


def test_polygons_cover_the_pixels_whose_centers_they_contain(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif")
    polygons = blobs(12)
    write(tmp_path / "labels.gpkg", polygons)
    root = describe(tmp_path, val_fraction=0, tile_size=48, block_size=96)
    train = open_dataset(root, "train")
    assert splits(root) == ["train"]
    expected = shapely.contains_xy(shapely.union_all(polygons), *centers())
    np.testing.assert_array_equal(whole_map(train), expected)
    assert 0.1 < expected.mean() < 0.9


def test_all_touched_covers_each_pixel_that_a_polygon_meets(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif")
    polygons = blobs(5)
    write(tmp_path / "labels.gpkg", polygons)
    root = describe(tmp_path, val_fraction=0, all_touched=True)
    found = whole_map(open_dataset(root, "train"))
    x, y = centers()
    half = PIXEL / 2
    pixels = shapely.box(x - half, y - half, x + half, y + half)
    expected = shapely.intersects(pixels, shapely.union_all(polygons))
    # An edge may pass through a corner of a pixel, where rounding decides
    sure = shapely.area(shapely.intersection(pixels, shapely.union_all(polygons))) > 1e-3 * PIXEL**2
    assert (found[sure] == 1).all()
    assert (found[~expected] == 0).all()
    assert (sure != expected).mean() < 0.01
    inside = shapely.contains_xy(shapely.union_all(polygons), x, y)
    assert expected.sum() > 1.1 * inside.sum()


def test_a_large_polygon_is_cut_to_the_tile_without_a_change(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif")
    angles = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    radius = 70 + 25 * np.sin(23 * angles)
    ring = (120, 100) + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    write(tmp_path / "labels.gpkg", [polygon(ring)])
    root = describe(tmp_path, val_fraction=0)
    expected = shapely.contains_xy(polygon(ring), *centers())
    np.testing.assert_array_equal(whole_map(open_dataset(root, "train")), expected)


@pytest.mark.parametrize("name", ["labels.geojson", "labels.shp"])
def test_polygons_in_another_reference_system_are_reprojected(tmp_path: Path, name: str) -> None:
    draw_scene(tmp_path / "scene.tif")
    polygons = blobs(8)

    def to_degrees(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(transform(UTM, "EPSG:4326", points[:, 0], points[:, 1]), 1)

    write(tmp_path / name, list(shapely.transform(polygons, to_degrees)), crs="EPSG:4326")
    scenes = [{"image": "scene.tif", "labels": name}]
    found = whole_map(open_dataset(describe(tmp_path, scenes=scenes, val_fraction=0), "train"))
    union = shapely.union_all(polygons)
    # Coordinates of GeoJSON have seven decimals, which is a centimeter
    sure = shapely.distance(shapely.points(*centers()), union.boundary) > 0.1
    expected = shapely.contains_xy(union, *centers())
    np.testing.assert_array_equal(found[sure], expected[sure])
    assert sure.mean() > 0.95


def test_class_column_background_and_order(tmp_path: Path) -> None:
    """Later polygons cover earlier ones; without background, the rest is not labeled."""
    draw_scene(tmp_path / "scene.tif")
    polygons = blobs(9)
    kinds = ["lake", "river", "field", "cloud", "lake", "field", "river", "water", "field"]
    write(tmp_path / "labels.gpkg", polygons, kinds)
    mapping = {"lake": "water", "river": 1, "cloud": 255}
    names = ["dry", "water", "field"]
    entries = {"names": names, "class_column": "kind", "label_mapping": mapping, "val_fraction": 0}
    for background, rest in (("dry", 0), (None, 255)):
        root = describe(tmp_path, **entries, background=background, allow_missing_classes=True)
        dataset = open_dataset(root, "train")
        expected = np.full((200, 240), rest)
        for shape, kind in zip(polygons, kinds, strict=True):
            ids = {"lake": 1, "river": 1, "water": 1, "field": 2, "cloud": 255}
            expected[shapely.contains_xy(shape, *centers())] = ids[kind]
        found = whole_map(dataset)
        seen = found >= 0
        np.testing.assert_array_equal(found[seen], expected[seen])
        # Tiles without a labeled pixel are left out
        assert (expected[~seen] == 255).all()
        assert seen.all() == (background == "dry")


def test_numbers_as_classes(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif")
    polygons = blobs(6)
    kinds = [10.0, 20.0, 20.0, 10.0, 20.0, 10.0]
    write(tmp_path / "labels.gpkg", polygons, kinds)
    entries = {"class_column": "kind", "label_mapping": {10: "dry", 20: "water"}}
    root = describe(tmp_path, **entries, background=None, val_fraction=0)
    expected = np.full((200, 240), 255)
    for shape, kind in zip(polygons, kinds, strict=True):
        expected[shapely.contains_xy(shape, *centers())] = kind == 20
    found = whole_map(open_dataset(root, "train"))
    np.testing.assert_array_equal(found[found >= 0], expected[found >= 0])


def test_labeled_area_and_missing_data_are_ignored(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif", nodata=0)
    polygons = blobs(12)
    write(tmp_path / "labels.gpkg", polygons)
    area = polygon([(10, 20), (150, 10), (160, 170), (20, 150)])
    write(tmp_path / "area.gpkg", [area])
    scenes = [{"image": "scene.tif", "labels": "labels.gpkg", "area": "area.gpkg"}]
    dataset = open_dataset(describe(tmp_path, scenes=scenes, val_fraction=0), "train")
    expected = np.where(shapely.contains_xy(shapely.union_all(polygons), *centers()), 1, 0)
    expected[~shapely.contains_xy(area, *centers())] = 255
    expected[:, :30] = 255
    found = whole_map(dataset)
    np.testing.assert_array_equal(found[found >= 0], expected[found >= 0])
    assert (expected[found < 0] == 255).all()
    image, _ = dataset.read(next(s for s in dataset if s.image.window.left == 0))
    assert image.dtype == np.float32
    assert np.isnan(image[:, :30]).all()


def write_labels(path: Path, values: NDArray[np.integer], place: Affine, crs: str | None) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1], count=1,
        dtype=values.dtype, crs=crs, transform=place if crs else None,
    ) as file:  # fmt: skip
        file.write(values, 1)


def test_label_rasters_on_the_same_and_on_other_pixels(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif")
    values = np.random.default_rng(3).integers(-1, 2, (200, 240)).astype(np.int16)
    scenes = [{"image": "scene.tif", "labels": "labels.tif"}]
    root = describe(
        tmp_path, scenes=scenes, background=None, val_fraction=0, label_mapping={-1: 255}
    )
    expected = np.where(values == -1, 255, values)
    for crs in (UTM, None):  # without a place, a raster of the same size is taken pixel by pixel
        write_labels(tmp_path / "labels.tif", values, PLACE, crs)
        np.testing.assert_array_equal(whole_map(open_dataset(root, "train")), expected)
    # Pixels of twice the size, over a part of the scene
    coarse = placed(ORIGIN[0] + 200, ORIGIN[1] - 100, 2 * PIXEL)
    write_labels(tmp_path / "labels.tif", values[:50, :60], coarse, UTM)
    part = np.repeat(np.repeat(expected[:50, :60], 2, 0), 2, 1)
    expected = np.full((200, 240), 255)
    expected[10:110, 20:140] = part
    found = whole_map(open_dataset(root, "train"))
    np.testing.assert_array_equal(found[found >= 0], expected[found >= 0])
    assert (expected[found < 0] == 255).all()


def distance(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Pixels between two rectangles, in the direction in which they are further apart."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


@pytest.mark.parametrize("seed", range(6))
def test_training_tiles_keep_a_distance_from_validation(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(300, 700)), int(rng.integers(300, 700)))
    tile, gap = int(rng.integers(32, 60)), int(rng.integers(1, 20))
    block = tile + 2 * gap + int(rng.integers(0, 60))
    draw_scene(tmp_path / "scene.tif", size, 1)
    write(tmp_path / "labels.gpkg", blobs(60, size, seed))
    fraction = float(rng.uniform(0.15, 0.5))
    entries = {"tile_size": tile, "block_size": block, "block_gap": gap, "split_seed": seed}
    root = describe(tmp_path, **entries, val_fraction=fraction, tile_overlap=tile // 3)
    train, val = windows(open_dataset(root, "train")), windows(open_dataset(root, "val"))
    assert min(distance(a, b) for a in train for b in val) >= gap
    assert all(d - b == tile and c - a == tile for a, b, c, d in (*train, *val))
    assert all(a >= 0 and b >= 0 and c <= size[0] and d <= size[1] for a, b, c, d in train + val)
    # Nearly all pixels are used: the blocks are held out whole, and beside them only the gap is not
    used = np.zeros(size, bool)
    for top, left, bottom, right in (*train, *val):
        used[top:bottom, left:right] = True
    assert used.mean() > 1 - 4 * gap * fraction * 1.5 / block - 0.02
    held = np.zeros(size, bool)
    for top, left, bottom, right in val:
        held[top:bottom, left:right] = True
    assert 0.4 * fraction < held.mean() < 2 * fraction + 0.1


def test_the_division_depends_on_the_seed_alone(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif", (400, 400), 1)
    write(tmp_path / "labels.gpkg", blobs(40, (400, 400)))
    names = {}
    for seed in (0, 0, 1):
        root = describe(tmp_path / f"{len(names)}", path="..", split_seed=seed)
        found = [[sample.name for sample in open_dataset(root, split)] for split in splits(root)]
        assert names.setdefault(seed, found) == found
        assert found[0] == sorted(found[0])
    assert names[0] != names[1]


def test_scenes_of_the_same_place_hold_out_the_same_blocks(tmp_path: Path) -> None:
    """Two dates of one place, and a third scene that overlaps with other pixels."""
    for number in range(2):
        draw_scene(tmp_path / f"date_{number}.tif", (240, 240), 1, seed=number)
    moved = placed(ORIGIN[0] + 103, ORIGIN[1] - 107)
    draw_scene(tmp_path / "moved.tif", (240, 240), 1, place=moved)
    write(tmp_path / "labels.gpkg", blobs(30, (260, 260)))
    scenes = [{"image": "*.tif", "labels": "labels.gpkg"}]
    root = describe(tmp_path, scenes=scenes, val_fraction=0.25)
    train, val = open_dataset(root, "train"), open_dataset(root, "val")

    def places(dataset: Dataset, gap: float = 0) -> list[object]:
        found = []
        for sample in dataset:
            window = sample.image.window
            top, left, bottom, right = window.top, window.left, window.bottom, window.right
            at = moved if sample.image.file.name == "moved.tif" else PLACE
            (west, north), (east, south) = at * (left, top), at * (right, bottom)
            found.append(shapely.box(west - gap, south - gap, east + gap, north + gap))
        return found

    held = shapely.union_all(places(val))
    assert not any(shape.intersects(held) for shape in places(train, 8 * PIXEL - 1))
    dates = [
        {s.name.removeprefix(f"date_{number}") for s in val if s.name.startswith(f"date_{number}")}
        for number in range(2)
    ]
    assert dates[0] == dates[1]
    assert any("another scene shows the same place" in note for note in train.notes)


def test_splits_of_whole_scenes_and_a_test_scene_without_labels(tmp_path: Path) -> None:
    far = [placed(ORIGIN[0] + 1e5 * i, ORIGIN[1]) for i in range(3)]
    for name, place in zip("abc", far, strict=True):
        draw_scene(tmp_path / f"scenes/{name}.tif", place=place)
        moved = (place.c - ORIGIN[0], 0)
        shapes = shapely.transform(blobs(8), lambda points, by=moved: points + by)
        write(tmp_path / f"labels/{name}.gpkg", list(shapes))
    scenes = [
        {"image": "scenes/a.tif", "labels": "labels/{stem}.gpkg", "split": "train"},
        {"image": "scenes/b.tif", "labels": "labels/{stem}.gpkg", "split": "val"},
        {"image": "scenes/c.tif", "split": "test"},
    ]
    root = describe(tmp_path, scenes=scenes)
    assert splits(root) == ["train", "val", "test"]
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        dataset = open_dataset(root, split)
        assert {sample.image.file.stem for sample in dataset} == {name}
        assert len(dataset) == 30
        assert dataset.has_masks == (split != "test")


def draw_task(root: Path, bands: int = 5) -> Path:
    """A scene in which the first band tells the class."""
    values = draw_scene(root / "scene.tif", (200, 240), bands, nodata=0)
    polygons = blobs(12)
    inside = shapely.contains_xy(shapely.union_all(polygons), *centers())
    values[0][inside & (values[0] > 0)] += 600
    with rasterio.open(root / "scene.tif", "r+") as file:
        file.write(values)
    write(root / "labels.gpkg", polygons)
    return describe(root)


def crops_of(dataset: Dataset, **options: object) -> TrainingCrops:
    normal = Preprocessing(mean=(100.0,) * 5, std=(50.0,) * 5, rescale=1.0)
    return TrainingCrops(
        dataset, Augmentation(crop_size=32, short_side=40), normal, seed=3, **options
    )


def test_workers_give_the_same_crops_as_one_process(tmp_path: Path) -> None:
    dataset = open_dataset(draw_task(tmp_path), "train")
    for sample in dataset:  # the scene is open in this process before others begin
        dataset.read(sample)
    found = []
    for workers, cache in ((0, "false"), (2, "false"), (2, "true")):
        sampler = DrawSampler(len(dataset), 4, 1, 0, 6, seed=3)
        found.append(list(crop_loader(crops_of(dataset, cache=cache), sampler, workers)))
    for other in found[1:]:
        for (pixels, ids), (their_pixels, their_ids) in zip(found[0], other, strict=True):
            assert (pixels == their_pixels).all()
            assert (ids == their_ids).all()


def test_spawned_workers_can_read_the_tiles(tmp_path: Path) -> None:
    dataset = open_dataset(draw_task(tmp_path), "train")
    copied = pickle.loads(pickle.dumps(dataset))
    for sample, other in zip(dataset, copied, strict=True):
        for ours, theirs in zip(dataset.read(sample), copied.read(other), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(pickle.dumps(dataset)) < 200_000


@pytest.mark.parametrize(("dtype", "bands"), [("int16", 5), ("uint8", 3), ("uint16", 4)])
def test_tiles_that_are_written_are_the_tiles_that_are_read(
    tmp_path: Path, dtype: str, bands: int
) -> None:
    draw_scene(tmp_path / "scene.tif", bands=bands, dtype=dtype, nodata=0)
    write(tmp_path / "labels.gpkg", blobs(12))
    root = describe(tmp_path)
    assert main(["data", "tile", str(root), str(tmp_path / "tiles")]) == 0
    for split in ("train", "val"):
        scene, files = open_dataset(root, split), open_dataset(tmp_path / "tiles", split)
        assert [sample.name for sample in scene] == [sample.name for sample in files]
        for ours, theirs in zip(scene, files, strict=True):
            (image, ids), (stored, mask) = scene.read(ours), files.read(theirs)
            assert image.dtype == stored.dtype
            np.testing.assert_array_equal(image, stored)
            np.testing.assert_array_equal(ids, mask)
            for file in (theirs.image, theirs.mask):
                with rasterio.open(file) as written:
                    window = ours.image.window
                    assert written.transform == PLACE * Affine.translation(window.left, window.top)
                    assert written.crs == UTM
    assert main(["data", "tile", str(root), str(tmp_path / "other"), "--size", "32"]) == 1


def test_training_resumes_and_is_the_same_from_tiles_in_files(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_task(tmp_path / "task")
    options = SegmentationTrainConfig(
        variant=tiny_variant, crop_size=32, short_side=40, batch_size=2, max_steps=6, val_every=1,
        checkpoint_every=2, num_workers=0, precision="float32", loggers=("csv",),
        oversample_threshold=0.9,
    )  # fmt: skip
    train(root, tmp_path / "whole", options)
    assert main(["data", "tile", str(root), str(tmp_path / "tiles")]) == 0
    train(tmp_path / "tiles", tmp_path / "files", options)

    step, done = TrainingLoop._step, []

    def interrupted(self: TrainingLoop, batches: object) -> float:
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(root, tmp_path / "broken", options)
    resume(tmp_path / "broken")
    weights = [tmp_path / run / "last/model.safetensors" for run in ("whole", "files", "broken")]
    assert len({path.read_bytes() for path in weights}) == 1


def errors_of(root: Path, split: str = "train") -> str:
    with pytest.raises(ValueError) as caught:
        open_dataset(root, split)
    return str(caught.value)


def test_what_the_user_is_told_about_polygons(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif")
    polygons = blobs(6)
    labels = tmp_path / "labels.gpkg"
    write(labels, polygons, ["lake", "lake", "wood", "wood", None, "lake"], layer="hand")
    column = {"class_column": "kind", "label_mapping": {"lake": "water"}}
    errors = errors_of(describe(tmp_path, **column))
    assert "'wood' (2 polygons), empty (1 polygons)" in errors
    assert "label_mapping" in errors
    errors = errors_of(describe(tmp_path, class_column="class"))
    assert "has no column 'class' (class_column); columns are kind" in errors
    errors = errors_of(describe(tmp_path, background=None))
    assert "write class_column: COLUMN, or background: NAME" in errors
    errors = errors_of(describe(tmp_path, names=["a", "b", "c"], background="a"))
    assert "3 classes; write class_column" in errors
    scenes = [{"image": "scene.tif", "labels": "labels.gpkg", "layer": "foot"}]
    assert "there is no layer 'foot'; layers are hand" in errors_of(
        describe(tmp_path, scenes=scenes)
    )
    write(labels, polygons, layer="other", append=True)
    assert "2 layers with geometries: hand, other; choose one with layer" in errors_of(
        describe(tmp_path)
    )
    labels.unlink()
    assert "labels.gpkg: no such file" in errors_of(describe(tmp_path))
    labels.write_text("no polygons")
    assert "cannot be read as polygons" in errors_of(describe(tmp_path))
    labels.unlink()
    pyogrio.raw.write(
        labels, shapely.to_wkb(np.array([shape.boundary for shape in polygons])), [], [],
        geometry_type="LineString", crs=UTM,
    )  # fmt: skip
    assert "6 geometries that are not polygons (LineString)" in errors_of(describe(tmp_path))


def test_what_the_user_is_told_about_places(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif", crs=None)
    write(tmp_path / "labels.gpkg", blobs(6))
    errors = errors_of(describe(tmp_path))
    assert "scene.tif: the scene has no coordinate reference system" in errors
    draw_scene(tmp_path / "scene.tif")
    write(tmp_path / "labels.shp", blobs(6), crs=None)
    scenes = [{"image": "scene.tif", "labels": "labels.shp"}]
    assert "needs its .prj file" in errors_of(describe(tmp_path, scenes=scenes))
    far = shapely.transform(np.array(blobs(6)), lambda points: points + 1e5)
    write(tmp_path / "far.gpkg", list(far))
    scenes = [{"image": "scene.tif", "labels": "far.gpkg"}]
    assert "no polygon lies in the scene" in errors_of(describe(tmp_path, scenes=scenes))
    write_labels(tmp_path / "labels.tif", np.zeros((50, 50), np.uint8), PLACE, None)
    scenes = [{"image": "scene.tif", "labels": "labels.tif"}]
    errors = errors_of(describe(tmp_path, scenes=scenes, background=None))
    assert "labels of 50 x 50 pixels cannot be placed on the scene of 240 x 200" in errors


def test_what_the_user_is_told_about_bands_values_and_blocks(tmp_path: Path) -> None:
    draw_scene(tmp_path / "scene.tif")
    draw_scene(tmp_path / "other.tif", bands=3)
    write(tmp_path / "labels.gpkg", blobs(12))
    scenes = [{"image": name, "labels": "labels.gpkg"} for name in ("scene.tif", "other.tif")]
    errors = errors_of(describe(tmp_path, scenes=scenes))
    assert f"other.tif: has 3 bands, but {tmp_path}/scene.tif has 4" in errors
    assert "choose those that all scenes have with bands: [1, 2, 3]" in errors
    chosen = describe(tmp_path, scenes=scenes, bands=[3, 1])
    dataset = open_dataset(chosen, "train")
    assert dataset.channels == 2
    sample = dataset.samples[0]
    whole = SceneTile(sample.image.file, sample.image.window)
    stored = read_image(whole, 4 if "scene" in sample.name else 3)
    np.testing.assert_array_equal(dataset.read(sample)[0], stored[:, :, [2, 0]])
    assert "channels names 2 channels" in errors_of(describe(tmp_path, channels=["red", "nir"]))
    assert "there is no band 9" in errors_of(describe(tmp_path, bands=[9]))

    write_labels(tmp_path / "labels.tif", np.full((200, 240), 7, np.uint8), PLACE, UTM)
    rasters = [{"image": "scene.tif", "labels": "labels.tif"}]
    errors = errors_of(describe(tmp_path, scenes=rasters, background=None))
    assert "values outside the classes: 7" in errors

    assert "too few to hold some out" in errors_of(describe(tmp_path, block_size=1000))
    assert "block_size is 50, but a tile of 40 pixels and a gap of 8 on both sides need 56" in (
        errors_of(describe(tmp_path, block_size=50))
    )
    assert "scenes replaces train" in errors_of(describe(tmp_path, train="images"))
    assert "unknown keys: tiles" in errors_of(describe(tmp_path, tiles=3))
    assert "keys that need scenes: tile_size" in errors_of(
        describe(tmp_path, scenes=None, background=None, block_size=None, block_gap=None)
    )
    gone = [{"image": "x.tif", "labels": "labels.gpkg"}]
    assert "x.tif: no such file" in errors_of(describe(tmp_path, scenes=gone))
    assert "labels are missing" in errors_of(describe(tmp_path, scenes=[{"image": "scene.tif"}]))
    lost = [{"image": "scene.tif", "labels": "labels.gpkg", "split": "validation"}]
    assert "split must be train, val or test" in errors_of(describe(tmp_path, scenes=lost))
