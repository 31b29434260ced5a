import json
import pickle
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest

from layout_samples import (
    HEIGHT,
    WIDTH,
    class_ids,
    read_split,
    taken_for,
    write_image,
    write_json,
)
from segformer.data.errors import DatasetError

SQUARE = [4, 4, 20, 4, 20, 16, 4, 16]
SMALL = [8, 8, 12, 8, 12, 12, 8, 12]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "Ärger"}]


def image(identity: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": identity, "file_name": name, "height": HEIGHT, "width": WIDTH, **more}


def marked(identity: int, image_id: int, category: int, segmentation: Any, **more: Any) -> Any:
    return {
        "id": identity,
        "image_id": image_id,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": 0,
        "area": 1,
        **more,
    }


def draw_coco(root: Path, annotations: list[Any], images: list[Any] | None = None) -> Path:
    """The folders of COCO 2017 with one image of training."""
    images = [image(7, "a.jpg")] if images is None else images
    for entry in images:
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
            write_image(root / "train2017" / entry["file_name"].split("\\")[-1])
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(root / "annotations/instances_train2017.json", document)
    return root


def mask_of(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, column by column."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=2))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}


def test_small_objects_lie_on_large_ones_and_ids_have_gaps(tmp_path: Path) -> None:
    draw_coco(tmp_path, [marked(1, 7, 90, [SMALL]), marked(2, 7, 3, [SQUARE])])
    split = read_split(tmp_path, "coco", "train")
    assert split.classes.names == ("background", "car", "dog", "Ärger")
    assert split.samples[0].name == "train2017/a.jpg"
    ids = class_ids(split)
    assert (ids[8:12, 8:12] == 3).all()
    assert (ids[4:8, 4:20] == 1).all()
    assert (ids == 0).sum() == HEIGHT * WIDTH - 12 * 16


def test_run_lengths_and_crowds_are_painted_as_their_class(tmp_path: Path) -> None:
    dog, crowd = np.zeros((2, HEIGHT, WIDTH), int)
    dog[2:5, 3:9] = 1
    crowd[0:10, 0:6] = 1
    draw_coco(
        tmp_path,
        [marked(1, 7, 18, mask_of(dog)), marked(2, 7, 3, mask_of(crowd), iscrowd=1)],
    )
    ids = class_ids(read_split(tmp_path, "coco", "train"))
    assert (ids[dog == 1] == 2).all()
    assert (ids[(crowd == 1) & (dog == 0)] == 1).all()


def test_a_file_written_with_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask = (np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8)
    encoded = coco.encode(np.asfortranarray(mask))
    draw_coco(tmp_path, [marked(1, 7, 18, {**encoded, "counts": encoded["counts"].decode()})])
    ids = class_ids(read_split(tmp_path, "coco", "train"))
    assert ((ids == 2) == (mask == 1)).all()


def test_images_without_annotations_are_background(tmp_path: Path) -> None:
    draw_coco(tmp_path, [], [image(1, "leer.jpg")])
    assert not class_ids(read_split(tmp_path, "coco", "train")).any()


@pytest.mark.parametrize("folder", ["images/val2017", "val2017", "images/val", "val", "images", ""])
def test_places_of_images(tmp_path: Path, folder: str) -> None:
    write_image(tmp_path / folder / "a.jpg")
    document = {"images": [image(1, "a.jpg")], "annotations": [], "categories": CATEGORIES}
    write_json(tmp_path / "annotations/instances_val2017.json", document)
    assert read_split(tmp_path, "coco", "val").samples[0].image.is_file()


def test_roboflow_export(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "leaf", "supercategory": "none"},
        {"id": 1, "name": "leaf", "supercategory": "leaf"},
        {"id": 2, "name": "spot", "supercategory": "leaf"},
    ]
    for part in ("train", "valid", "test"):
        name = "a_jpg.rf.0123456789abcdef.jpg"
        write_image(tmp_path / part / name)
        document = {
            "info": {"description": "x"},
            "categories": categories,
            "images": [image(0, name)],
            "annotations": [marked(0, 0, 2, [SQUARE])],
        }
        write_json(tmp_path / part / "_annotations.coco.json", document)
    found = taken_for(tmp_path)
    assert found.layout.splits(tmp_path) == ["train", "val", "test"]
    split = read_split(tmp_path, "coco", "val")
    assert split.classes.names == ("background", "leaf", "spot")
    assert class_ids(split)[5, 5] == 2


def test_splits_with_different_categories_share_one_class_list(tmp_path: Path) -> None:
    for part, categories in (
        ("train", [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}]),
        ("val", [{"id": 1, "name": "dog"}, {"id": 5, "name": "cow"}]),
    ):
        write_image(tmp_path / f"images/{part}.png")
        document = {
            "images": [image(1, f"{part}.png")],
            "annotations": [marked(1, 1, 1, [SQUARE])],
            "categories": categories,
        }
        write_json(tmp_path / f"annotations/{part}.json", document)
    train, val = (read_split(tmp_path, "coco", part) for part in ("train", "val"))
    assert train.classes.names == val.classes.names == ("background", "car", "dog", "cow")
    assert class_ids(train)[5, 5] == 1
    assert class_ids(val)[5, 5] == 2


def test_the_background_of_the_file_is_not_doubled(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    categories = [{"id": 4, "name": "Road"}, {"id": 9, "name": "Background"}]
    document = {"images": [image(1, "a.png")], "annotations": [], "categories": categories}
    write_json(tmp_path / "data.json", document)
    assert read_split(tmp_path, "coco", "all").classes.names == ("background", "Road")


BROKEN: list[tuple[Any, str]] = [
    (marked(5, 7, 3, [[1, 1, 5, 5]]), "annotation 5: a polygon of 2 points"),
    (marked(5, 7, 3, [[1, 1, 5, 5, 3]]), "annotation 5: 5 coordinates"),
    (marked(5, 7, 3, [["x", 1, 5, 5]]), "annotation 5: expected polygons"),
    (marked(5, 7, 3, [[90, 90, 99, 90, 99, 99]]), "annotation 5: .* outside the image"),
    (marked(5, 7, 3, {"size": [3, 3], "counts": [9]}), r"annotation 5: .* \[3, 3\], but the image"),
    (marked(5, 7, 3, {"size": [HEIGHT, WIDTH], "counts": [9]}), "annotation 5: .* cover 9 pixels"),
    (marked(5, 7, 3, {"size": [HEIGHT, WIDTH], "counts": "~"}), "annotation 5: the run lengths"),
    (marked(5, 7, 3, {"counts": 3}), "annotation 5: expected a list"),
    (marked(5, 7, 4, [SQUARE]), "annotation 5: category 4 is not among"),
    (marked(5, 7, 3, []), "annotation 5: there is no segmentation"),
    ({"image_id": 7}, "annotation number 2: category None"),
    (marked(5, 7, 18, [SQUARE]), "annotation 1 and .*annotation 5 mark the same pixels"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), BROKEN)
def test_one_broken_annotation_leaves_the_other_images(
    tmp_path: Path, entry: Any, message: str
) -> None:
    images = [image(7, "a.jpg"), image(8, "b.jpg")]
    draw_coco(tmp_path, [marked(1, 7, 3, [SQUARE]), entry, marked(9, 8, 3, [SQUARE])], images)
    split = read_split(tmp_path, "coco", "train")
    with pytest.raises(DatasetError, match=f"instances_train2017.json: .*{message}"):
        class_ids(split)
    assert class_ids(split, split.samples[1])[5, 5] == 1


def test_wrong_sizes_and_repeated_images(tmp_path: Path) -> None:
    images = [image(1, "a.jpg") | {"width": 99}, image(2, "b.jpg"), image(3, "b.jpg")]
    split = read_split(draw_coco(tmp_path, [], images), "coco", "train")
    with pytest.raises(DatasetError, match=r"stated as 99 x 24 pixels"):
        class_ids(split)
    assert len(split.samples) == 2
    with pytest.raises(DatasetError, match=r"b\.jpg is listed 2 times"):
        class_ids(split, split.samples[1])


def test_missing_images_and_windows_paths(tmp_path: Path) -> None:
    images = [image(1, "C:\\data\\köln\\a.jpg"), image(2, "b.jpg")]
    split = read_split(draw_coco(tmp_path, [], images), "coco", "train")
    (tmp_path / "train2017/b.jpg").unlink()
    assert [sample.image.name for sample in split.samples] == ["a.jpg", "b.jpg"]
    assert not class_ids(split).any()
    with pytest.raises(ValueError, match=r"b\.jpg: no such file"):
        class_ids(split, split.samples[1])


def test_accents_of_another_system(tmp_path: Path) -> None:
    composed, apart = (normalize(form, "köln.jpg") for form in ("NFC", "NFD"))
    for in_file, on_disk in ((composed, apart), (apart, composed)):
        root = draw_coco(tmp_path / str(in_file == composed), [], [image(1, in_file)])
        (root / "train2017" / in_file).rename(root / "train2017" / on_disk)
        sample = read_split(root, "coco", "train").samples[0]
        assert sample.image.is_file()


def test_entries_that_belong_to_no_image_are_listed(tmp_path: Path) -> None:
    images = [image(7, "a.jpg"), {"id": 8}, "x"]
    annotations = [marked(4, 99, 3, [SQUARE]), "x", marked(5, [], 3, [SQUARE])]
    split = read_split(draw_coco(tmp_path, annotations, images), "coco", "train")
    assert len(split.samples) == 1
    text = "\n".join(split.problems)
    for part in (
        "image 2: file_name",
        "image 3",
        "annotation 2",
        "annotation 3: image_id",
        "1 annotations are of images",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"images": [', "cannot be read as JSON"),
        ('"images": 3, "annotations": [], "categories": []}', "no categories"),
        ('"images": 3, "annotations": [], "categories": [A]}', "images: expected"),
        ('"images": [], "annotations": [], "categories": [A]}', "no images"),
        ('"images": [], "categories": [A, {"id": 1, "name": "b"}]}', "id 1 occurs twice"),
        ('"images": [], "categories": [A, {"id": 2, "name": "a"}]}', "are called 'a'"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.json").write_text("{" + text.replace("A", '{"id": 1, "name": "a"}'))
    with pytest.raises(DatasetError, match=message):
        read_split(tmp_path, "coco", "train")


def test_a_truncated_file_of_another_split_does_not_matter(tmp_path: Path) -> None:
    draw_coco(tmp_path, [marked(1, 7, 3, [SQUARE])])
    (tmp_path / "annotations/instances_val2017.json").write_text('{"images": [')
    assert class_ids(read_split(tmp_path, "coco", "train"))[5, 5] == 1


def test_annotations_are_small_and_go_to_worker_processes(tmp_path: Path) -> None:
    count = 300
    images = [image(i, f"{i}.jpg") for i in range(count)]
    annotations = [marked(i, i, 3, [list(range(400))]) for i in range(count)]
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(tmp_path / "train.json", document)
    split = read_split(tmp_path, "coco", "train")
    packed = pickle.dumps(split)
    assert len(packed) < 2.5 * count * 400 * 4
    again = pickle.loads(packed)
    assert len({id(sample.mask.index) for sample in again.samples}) == 1
    assert len(json.dumps([sample.name for sample in again.samples])) > 0
