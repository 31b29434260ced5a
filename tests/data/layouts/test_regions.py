import numpy as np
import pytest

from segformer.data.layouts.regions import (
    Region,
    crop_region,
    paint,
    polygon_region,
    run_length_region,
)

SQUARE = np.array([(2, 1), (6, 1), (6, 4), (2, 4)], float)


def painted(*regions: Region, height: int = 8, width: int = 10, small: bool = True) -> np.ndarray:
    return paint(regions, height, width, background=0, ignore_index=255, small_on_top=small)


def inside(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel centers inside a polygon, one by one, by the even-odd rule."""
    found = np.zeros((height, width), bool)
    for row, column in np.ndindex(height, width):
        x, y = column + 0.5, row + 0.5
        crossings = 0
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            if (y0 <= y) != (y1 <= y) and x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x:
                crossings += 1
        found[row, column] = crossings % 2
    return found


def test_a_rectangle_covers_exactly_its_pixels() -> None:
    ids = painted(polygon_region([SQUARE], 8, 10, 3, "a"))
    expected = np.zeros((8, 10), int)
    expected[1:4, 2:6] = 3
    assert (ids == expected).all()


def test_polygons_equal_a_test_of_every_pixel_center() -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        height, width = generator.integers(3, 30, 2)
        count = generator.integers(3, 9)
        points = generator.uniform(-5, 35, (count, 2))
        if points.max(0).min() <= 0 or (points.min(0) >= (width, height)).any():
            continue
        ids = painted(polygon_region([points], height, width, 1, "a"), height=height, width=width)
        assert (ids == inside(points, height, width)).all()


def test_neighbors_neither_overlap_nor_leave_gaps() -> None:
    corner = np.array([4.3, 3.7])
    frame = np.array([(0, 0), (10, 0), (10, 8), (0, 8)], float)
    masks = [
        painted(polygon_region([np.array([corner, a, b])], 8, 10, 1, "a"))
        for a, b in zip(frame, np.roll(frame, -1, 0), strict=True)
    ]
    assert (np.sum(masks, axis=0) == 1).all()


def test_several_polygons_of_one_object_are_united() -> None:
    ids = painted(polygon_region([SQUARE, SQUARE + np.array((2, 1))], 8, 10, 1, "a"))
    assert ids[2, 3] == ids[2, 5] == ids[4, 7] == 1


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(1, 1), (5, 5)], "2 points has no area"),
        ([(1, 1), (5, np.nan), (3, 3)], "not finite"),
        ([(11, 1), (15, 1), (13, 5)], "outside the image of 10 x 8"),
        ([(1e300, 1), (1e300, 1), (1e301, 5)], "outside the image"),
    ],
)
def test_polygons_without_pixels_are_refused(
    points: list[tuple[float, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"entry 7: .*{message}"):
        polygon_region([np.array(points)], 8, 10, 1, "entry 7")


def test_what_lies_outside_is_cut_off() -> None:
    points = np.array([(-1e12, -1e12), (1e12, -1e12), (1e12, 1e12), (-1e12, 1e12)])
    assert (painted(polygon_region([points], 8, 10, 1, "a")) == 1).all()


def test_small_regions_lie_on_large_ones_or_late_ones_on_early_ones() -> None:
    large = polygon_region([SQUARE - 1, SQUARE], 8, 10, 1, "large")
    small = polygon_region([SQUARE], 8, 10, 2, "small")
    assert painted(small, large)[2, 3] == 2
    assert painted(small, large, small=False)[2, 3] == 1


def test_ignored_regions_cover_only_what_no_other_region_does() -> None:
    crowd = polygon_region([np.array([(0, 0), (10, 0), (10, 8), (0, 8)], float)], 8, 10, 255, "c")
    ids = painted(polygon_region([SQUARE], 8, 10, 1, "a"), crowd, small=False)
    assert ids[2, 3] == 1
    assert ids[7, 9] == 255


def test_the_same_pixels_as_two_classes_are_refused() -> None:
    first, second = (polygon_region([SQUARE], 8, 10, i, f"entry {i}") for i in (1, 2))
    with pytest.raises(ValueError, match="entry 1 and entry 2 mark the same pixels"):
        painted(first, second)
    assert painted(first, first).max() == 1


def test_more_than_255_classes_need_two_bytes() -> None:
    assert painted(polygon_region([SQUARE], 8, 10, 300, "a")).max() == 300


def test_run_lengths_as_pycocotools_writes_them() -> None:
    expected = np.zeros((5, 6), bool)
    expected[1:4, 2:5] = expected[0, 0] = True
    counts = [0, 1, 10, 3, 2, 3, 2, 3, 6]
    for given in ("01:2H0004", b"01:2H0004", counts):
        region = run_length_region(given, (5, 6), 1, "a")
        assert (painted(region, height=5, width=6) == expected).all()


def test_run_lengths_round_trip_through_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for _ in range(50):
        height, width = (int(v) for v in generator.integers(1, 60, 2))
        mask = (generator.random((height, width)) < generator.random()).astype(np.uint8)
        encoded = coco.encode(np.asfortranarray(mask))
        region = run_length_region(encoded["counts"], encoded["size"], 1, "a")
        assert (painted(region, height=height, width=width) == mask).all()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_polygons_agree_with_pycocotools_up_to_the_outline() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 9))
        points = np.stack([160 + 100 * np.cos(angles), 120 + 90 * np.sin(angles)], 1)
        encoded = coco.merge(coco.frPyObjects([points.ravel().tolist()], 240, 320))
        reference = coco.decode(encoded) == 1
        ours = painted(polygon_region([points], 240, 320, 1, "a"), height=240, width=320) == 1
        outline = np.linalg.norm(points - np.roll(points, 1, 0), axis=1).sum()
        assert (ours != reference).sum() < 0.2 * outline


@pytest.mark.parametrize(
    "counts",
    [
        "01:2H0005",
        "01:2H000",
        "01:2H000P",
        "",
        "é",
        "~~",
        "oooooooooooooooo0",
        [30, 1],
        [-1, 31],
        ["a"],
        [1.5e300],
        [[1], 2],
        [10**30],
    ],
)
def test_broken_run_lengths_are_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="^entry 7: the run lengths"):
        run_length_region(counts, (5, 6), 1, "entry 7")  # type: ignore[arg-type]


def test_a_region_without_pixels_paints_nothing() -> None:
    assert not painted(crop_region(np.zeros((8, 10), bool), 1, "a")).any()
