"""Exports of annotation tools: Roboflow masks, CVAT, YOLO, LabelMe."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from layout_samples import (
    HEIGHT,
    WIDTH,
    class_ids,
    colored,
    columns,
    read_split,
    stripes,
    write_image,
    write_json,
    write_mask,
)
from segformer.data.errors import DatasetError


def draw_roboflow(root: Path, part: str, classes: str) -> None:
    write_image(root / part / "a_jpg.rf.0123.jpg")
    write_mask(root / part / "a_jpg.rf.0123_mask.png", columns(0, 1, 3))
    (root / part / "_classes.csv").write_text(classes)


CSV = "Pixel Value, Class\n0, background\n1, leaf\n3, brown spot\n"


def test_roboflow_masks(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        draw_roboflow(tmp_path, part, CSV)
    split = read_split(tmp_path, "roboflow-masks", "val")
    assert stripes(split) == ["background", "leaf", "brown spot"]
    assert len(split.samples) == 1


def test_roboflow_masks_whose_splits_disagree(tmp_path: Path) -> None:
    draw_roboflow(tmp_path, "train", CSV)
    draw_roboflow(tmp_path, "valid", CSV.replace("leaf", "stem"))
    with pytest.raises(DatasetError, match=r"_classes\.csv: the value 1 is 'stem' here"):
        read_split(tmp_path, "roboflow-masks", "train")
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\nx\n")
    with pytest.raises(DatasetError, match=r"_classes\.csv: cannot be read"):
        read_split(tmp_path, "roboflow-masks", "train")


def test_roboflow_mask_without_image(tmp_path: Path) -> None:
    draw_roboflow(tmp_path, "train", CSV)
    write_mask(tmp_path / "train/b_mask.png", columns(0))
    split = read_split(tmp_path, "roboflow-masks", "train")
    assert [mask.name for mask in split.stray_masks] == ["b_mask.png"]


LABELMAP = (
    "# label:color_rgb:parts:actions\nroad:128,0,0::\nbackground:0,0,0::\nweg: links:0,128,0::\n"
)


def draw_cvat(root: Path, labelmap: str = LABELMAP) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labelmap.txt").write_text(labelmap)
    for name in ("bild 1", "sub/b"):
        write_image(root / f"JPEGImages/{name}.jpg")
        mask = colored((0, 0, 0), (0, 128, 0), (128, 0, 0))
        write_mask(root / f"SegmentationClass/{name}.png", mask)
        write_mask(root / f"SegmentationObject/{name}.png", mask)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/default.txt").write_text("bild 1\nsub/b\n")
    return root


def test_cvat(tmp_path: Path) -> None:
    split = read_split(draw_cvat(tmp_path), "cvat", "all")
    assert split.classes.names == ("background", "road", "weg: links")
    assert split.classes.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert [sample.name for sample in split.samples] == ["bild 1.jpg", "sub/b.jpg"]
    for sample in split.samples:
        assert stripes(split, sample) == ["background", "weg: links", "road"]


def test_cvat_masks_with_a_palette(tmp_path: Path) -> None:
    draw_cvat(tmp_path)
    palette = [(9, 9, 9), (128, 0, 0), (0, 0, 0)]
    write_mask(tmp_path / "SegmentationClass/bild 1.png", columns(2, 1), palette)
    split = read_split(tmp_path, "cvat", "all")
    assert stripes(split) == ["background", "road"]


def test_cvat_masks_of_one_channel_hold_positions_in_the_labelmap(tmp_path: Path) -> None:
    draw_cvat(tmp_path)
    write_mask(tmp_path / "SegmentationClass/bild 1.png", columns(1, 0, 2))
    split = read_split(tmp_path, "cvat", "all")
    assert stripes(split) == ["background", "road", "weg: links"]
    assert stripes(split, split.samples[1]) == ["background", "weg: links", "road"]


def test_cvat_black_is_background_whatever_its_color(tmp_path: Path) -> None:
    draw_cvat(tmp_path, LABELMAP.replace("background:0,0,0", "background:9,9,9"))
    assert stripes(read_split(tmp_path, "cvat", "all"))[0] == "background"


@pytest.mark.parametrize(
    ("labelmap", "message"),
    [
        ("road\n", "line 1: expected label:red,green,blue"),
        ("road:1,2::\n", "line 1: expected label"),
        ("road:1,2,3::\nroad:4,5,6::\n", "line 2: the name or the color occurs twice"),
        ("road:1,2,3::\npath:1,2,3::\n", "line 2: the name or the color occurs twice"),
        ("road:1,2,999::\n", "color"),
    ],
)
def test_cvat_labelmaps_that_cannot_be_read(tmp_path: Path, labelmap: str, message: str) -> None:
    with pytest.raises(DatasetError, match=rf"labelmap\.txt: .*{message}"):
        read_split(draw_cvat(tmp_path, labelmap), "cvat", "all")


def test_cvat_export_without_images(tmp_path: Path) -> None:
    draw_cvat(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="the export has no images"):
        read_split(tmp_path, "cvat", "all")


def draw_yolo(root: Path, text: str, **entries: Any) -> Path:
    """Images and polygons as Roboflow exports them for YOLO."""
    for part in ("train", "valid"):
        write_image(root / part / "images/a.jpg")
        (root / part / "labels").mkdir()
        (root / part / "labels/a.txt").write_text(text)
    description = {
        "train": "../train/images",
        "val": "../valid/images",
        "nc": 2,
        "names": ["leaf", "spot"],
    }
    (root / "data.yaml").write_text(yaml.safe_dump(description | entries))
    return root


BOX = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
INNER = "1 0.375 0.375 0.5 0.375 0.5 0.5 0.375 0.5"


def test_yolo_as_roboflow_exports_it(tmp_path: Path) -> None:
    split = read_split(draw_yolo(tmp_path, f"{INNER}\n{BOX}\n\n"), "yolo", "val")
    assert split.classes.names == ("background", "leaf", "spot")
    assert split.samples[0].name == "valid/images/a.jpg"
    ids = class_ids(split)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[6:18, 8:24] = 1
    expected[9:12, 12:16] = 2
    assert (ids == expected).all()


def test_yolo_as_ultralytics_arranges_it(tmp_path: Path) -> None:
    root = tmp_path / "coco8-seg"
    for part in ("train", "val"):
        write_image(root / f"images/{part}/a.jpg")
        write_image(root / f"images/{part}/ohne.jpg")
        (root / f"labels/{part}").mkdir(parents=True)
        (root / f"labels/{part}/a.txt").write_text(BOX)
        (root / f"labels/{part}/b.txt").write_text(BOX)
    description = {"path": "coco8-seg", "train": "images/train", "val": ["images/val"]}
    description["names"] = {0: "person", 1: "Background"}
    (root / "data.yaml").write_text(yaml.safe_dump(description))
    split = read_split(tmp_path, "yolo", "val")
    assert split.classes.names == ("background", "person")
    assert class_ids(split)[10, 10] == 1
    assert not class_ids(split, split.samples[1]).any()
    text = "\n".join(split.problems)
    assert "1 of 2 images of 'val' have no text file" in text
    assert "b.txt: no image belongs" in text


def test_yolo_lists_of_images(tmp_path: Path) -> None:
    draw_yolo(tmp_path, BOX, train="train.txt")
    (tmp_path / "train.txt").write_text("./train/images/a.jpg\n")
    (tmp_path / "labels").mkdir()
    split = read_split(tmp_path, "yolo", "train")
    assert class_ids(split)[10, 10] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 2: a bounding box"),
        ("0 0.5 0.5 0.2 0.2 0.1", "line 2: 5 coordinates"),
        ("0 0.5 0.5", "line 2: a polygon of 1 points"),
        ("0", "line 2: a polygon of 0 points"),
        ("leaf 0.1 0.1 0.2 0.2 0.3 0.3", "line 2: expected a class id"),
        ("2 0.1 0.1 0.2 0.2 0.3 0.3", "line 2: class 2 is not among the 2 names"),
        ("0 nan 0.1 0.2 0.2 0.3 0.3", "line 2: .* not finite"),
        ("0 9 9 10 9 10 10", "line 2: .* outside the image"),
        (BOX.replace("0 ", "1 ", 1), "line 1 and .*line 2 mark the same pixels"),
    ],
)
def test_yolo_lines_that_cannot_be_read(tmp_path: Path, line: str, message: str) -> None:
    split = read_split(draw_yolo(tmp_path, f"{BOX}\n{line}\n"), "yolo", "train")
    with pytest.raises(DatasetError, match=rf"a\.txt: {message}"):
        class_ids(split)


def test_yolo_names_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"data\.yaml: names: "):
        read_split(draw_yolo(tmp_path, BOX, names={0: "a", 5: "b"}), "yolo", "train")


def shape(label: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def draw_labelme(root: Path, shapes: Any, name: str = "a", **more: Any) -> Path:
    write_image(root / f"{name}.jpg")
    document = {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{name}.jpg",
        "imageData": "QUJD" * 1000,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    write_json(root / f"{name}.json", document | more)
    return root


SQUARE = [[4, 4], [20, 4], [20, 16], [4, 16]]


def test_labelme_shapes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8)).save(buffer, "PNG")
    stamp = base64.b64encode(buffer.getvalue()).decode()
    draw_labelme(
        tmp_path,
        [
            shape("straße", SQUARE),
            shape("car", [[12, 12], [8, 8]], "rectangle"),
            shape("disc", [[26, 6], [26, 9]], "circle"),
            shape("car", [[0, 0], [2, 0], [2, 2], [0, 2]], "rectangle"),
            shape("_background_", [[4, 4], [6, 4], [6, 6], [4, 6]]),
            shape("__ignore__", [[0, 20], [5, 20], [5, 24], [0, 24]]),
            shape("stamp", [[30, 20], [31, 21]], "mask", mask=stamp),
        ],
    )
    split = read_split(tmp_path, "labelme", "all")
    assert split.classes.names == ("background", "car", "disc", "stamp", "straße")
    ids = class_ids(split)
    assert (ids[8:12, 8:12] == 1).all()
    assert (ids[:2, :2] == 1).all()
    assert ids[4, 4] == 0
    assert ids[4, 8] == 4
    assert abs(int((ids == 2).sum()) - 9 * np.pi) < 5
    assert (ids[20:, :5] == 255).all()
    assert ids[20:22, 30:32].tolist() == [[0, 3], [3, 3]]


def test_labelme_order_of_a_label_file_and_of_splits(tmp_path: Path) -> None:
    for part in ("train", "val"):
        draw_labelme(tmp_path / part, [shape("b", SQUARE)])
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nz\nb\n")
    split = read_split(tmp_path, "labelme", "val")
    assert split.classes.names == ("background", "z", "b")
    assert class_ids(split)[5, 5] == 2
    assert split.samples[0].name == "val/a.jpg"


@pytest.mark.parametrize(
    "path",
    ["C:\\Users\\Jörg\\a.jpg", "/home/x/a.jpg", "..\\pictures\\a.jpg", "", 3, "x\0y", "y" * 5000],
)
def test_labelme_images_are_found_whatever_the_path(tmp_path: Path, path: Any) -> None:
    draw_labelme(tmp_path, [shape("b", SQUARE)], imagePath=path)
    split = read_split(tmp_path, "labelme", "all")
    assert split.samples[0].image == tmp_path / "a.jpg"


def test_labelme_later_shapes_lie_on_earlier_ones(tmp_path: Path) -> None:
    draw_labelme(tmp_path, [shape("b", [[8, 8], [9, 8], [9, 9]]), shape("a", SQUARE)])
    assert (class_ids(read_split(tmp_path, "labelme", "all"))[4:16, 4:20] == 1).all()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (shape("b", [[1, 1], [2, 2]]), r"shape 2 \(b\): a polygon of 2 points"),
        (shape("b", [[90, 90], [99, 90], [99, 99]]), r"shape 2 \(b\): .* outside the image"),
        (shape("b", [[1, 1], [2, 2]], "line"), r"shape 2 \(b\): .* 'line' has no area"),
        (shape("b", [[1, 1]], "circle"), r"shape 2 \(b\): a circle needs two points"),
        (shape("b", [[1, 1, 1]]), r"shape 2 \(b\): points: expected"),
        (shape("b", "x"), r"shape 2 \(b\): points: expected"),
        (shape("b", [[1, 1], [3, 3]], "mask", mask="!"), "not base64"),
        (shape("b", [[1, 1], [3, 3]], "mask", mask="QUJD"), "embedded mask cannot be read"),
        (shape("", SQUARE), "shape 2: label: expected a text"),
        ("x", "shape 2: expected an object"),
        (shape("b", SQUARE), r"shape 1 \(a\) and .*shape 2 \(b\) mark the same pixels"),
    ],
)  # fmt: skip
def test_labelme_shapes_that_cannot_be_read(tmp_path: Path, entry: Any, message: str) -> None:
    draw_labelme(tmp_path, [shape("a", SQUARE), entry])
    draw_labelme(tmp_path, [shape("a", SQUARE)], "good")
    split = read_split(tmp_path, "labelme", "all")
    with pytest.raises(DatasetError, match=rf"a\.json: .*{message}"):
        class_ids(split)
    assert class_ids(split, split.samples[1])[5, 5] == 1


def test_labelme_broken_files_do_not_hide_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        draw_labelme(tmp_path, [shape("a", SQUARE)], name)
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text()[:300])
    (tmp_path / "b.jpg").unlink()
    draw_labelme(tmp_path, [shape("a", SQUARE)], "c", imageWidth=99)
    draw_labelme(tmp_path, [shape("a", SQUARE)], "f", imagePath="d.jpg")
    split = read_split(tmp_path, "labelme", "all")
    messages = []
    for sample in split.samples:
        try:
            assert class_ids(split, sample)[5, 5] == 1
        except ValueError as error:
            messages.append(str(error))
    for message in (
        "a.json: cannot be read as JSON",
        "b.jpg: no such file",
        "c.json: imageWidth is 99",
        "2 files annotate d.jpg: d.json, f.json",
    ):
        assert any(message in found for found in messages), message
    assert len(messages) == 4
    assert split.problems == (
        f"{tmp_path}: 1 images have no JSON file and are not used: f.jpg, ...",
    )
