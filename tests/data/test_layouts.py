"""Layouts through `open_dataset`: what is opened, checked and read by worker processes."""

import logging
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layout_samples import (
    HEIGHT,
    WIDTH,
    colored,
    columns,
    write_image,
    write_json,
    write_mask,
)
from segformer.data.check import check_split
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset, splits

BOX = [4, 4, 20, 4, 20, 16, 4, 16]


def draw_coco(root: Path) -> Path:
    for part in ("train", "valid"):
        names = ("a.jpg", "b.jpg", "c.jpg")
        for name in names:
            write_image(root / part / name)
        document = {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [BOX]},
                {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[1, 2, 3, 4]]},
                {"id": 3, "image_id": 9, "category_id": 1, "segmentation": [BOX]},
            ],
            "categories": [{"id": 1, "name": "leaf"}],
        }
        write_json(root / part / "_annotations.coco.json", document)
    return root


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def test_annotations_are_read_as_class_ids(tmp_path: Path) -> None:
    root = draw_coco(tmp_path)
    assert splits(root) == ["train", "val"]
    dataset = open_dataset(root, "val")
    assert dataset.classes.names == ("background", "leaf")
    image, ids = dataset.read(dataset.samples[0])
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert ids[5, 5] == 1
    assert dataset.notes[0].startswith("read as COCO JSON: train/_annotations.coco.json has")


def test_checking_says_the_layout_and_lists_every_problem(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = draw_coco(tmp_path)
    (root / "train/c.jpg").unlink()
    with caplog.at_level(logging.INFO):
        report = check_split(open_dataset(root, "train"))
    assert "train: read as COCO JSON" in caplog.text
    assert len(report.errors) == 2
    assert "annotation 2: a polygon of 2 points has no area" in report.errors[0]
    assert "c.jpg: no such file" in report.errors[1]
    assert any("images that the file does not list" in warning for warning in report.warnings)
    assert report.pixels[1] == 12 * 16


def test_a_zip_is_read_like_its_folder(tmp_path: Path) -> None:
    path = zipped(draw_coco(tmp_path / "leaves"))
    shutil.rmtree(tmp_path / "leaves")
    dataset = open_dataset(path, "train")
    assert dataset.root == tmp_path / "leaves/leaves"
    assert dataset.read(dataset.samples[0])[1].max() == 1
    assert splits(path) == ["train", "val"]


def test_a_zip_with_a_description(tmp_path: Path, small_dataset: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as written:
        for file in small_dataset.rglob("*"):
            written.write(file, file.relative_to(small_dataset))
    assert len(open_dataset(tmp_path / "x.zip", "train")) == 6


def draw_polyps(root: Path) -> Path:
    """Images and JPEG masks in one folder each, as Kvasir-SEG has them."""
    for name in ("a", "b"):
        write_image(root / f"Kvasir-SEG/images/{name}.jpg")
        mask = np.where(columns(0, 1)[:, :, None] > 0, 255, 0).astype(np.uint8).repeat(3, 2)
        (root / "Kvasir-SEG/masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / f"Kvasir-SEG/masks/{name}.jpg")
    return root


def test_folders_that_are_not_divided(tmp_path: Path) -> None:
    draw_polyps(tmp_path)
    assert splits(tmp_path) == ["all"]
    dataset = open_dataset(tmp_path, "all")
    assert [sample.name for sample in dataset] == ["a.jpg", "b.jpg"]
    assert dataset.classes.names == ("background", "foreground")
    assert dataset.read(dataset.samples[0])[1][0].tolist() == [0] * 16 + [1] * 16
    with pytest.raises(DatasetError, match=r"no split 'train'; it is not divided"):
        open_dataset(tmp_path, "train")


def test_a_layout_can_be_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "train2017/000000000009.jpg")
    write_mask(tmp_path / "stuffthingmaps/train2017/000000000009.png", columns(0, 181))
    document = {
        "images": [{"id": 9, "file_name": "000000000009.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    write_json(tmp_path / "annotations/instances_train2017.json", document)
    with pytest.raises(DatasetError, match=r"(?s)--layout coco-stuff.*--layout coco"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, layout="coco-stuff").classes) == 171
    assert len(open_dataset(tmp_path, layout="coco").classes) == 2
    assert splits(tmp_path, layout="coco") == ["train"]


def test_masks_of_colors_and_wrong_sizes(tmp_path: Path) -> None:
    write_image(tmp_path / "701_StillsRaw_full/0001TP_006690.png")
    mask = tmp_path / "LabeledApproved_full/0001TP_006690_L.png"
    write_mask(mask, colored((128, 128, 128), (0, 0, 0)))
    dataset = open_dataset(tmp_path, "all")
    assert set(np.unique(dataset.read(dataset.samples[0])[1])) == {21, 255}
    write_image(tmp_path / "701_StillsRaw_full/0001TP_006690.png", 30, 30)
    with pytest.raises(DatasetError, match=r"_L\.png: the mask is 32 x 24 pixels, its image 30"):
        dataset.read(dataset.samples[0])


@pytest.mark.parametrize("name", ["data.yaml", "dataset.yaml"])
def test_yolo_by_its_description(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "images/train/a.jpg")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75")
    (tmp_path / name).write_text("names: [leaf]\ntrain: images/train\n")
    for source in (tmp_path, tmp_path / name):
        dataset = open_dataset(source, "train")
        assert dataset.read(dataset.samples[0])[1].max() == 1


def test_a_description_of_masks_is_not_taken_for_yolo(tmp_path: Path) -> None:
    write_image(tmp_path / "images/train/a.jpg")
    write_mask(tmp_path / "annotations/train/a.png", np.ones((24, 32), np.uint8))
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75")
    (tmp_path / "dataset.yaml").write_text(
        "names: [soil, leaf]\ntrain: images/train\nmasks_dir: annotations\n"
    )
    dataset = open_dataset(tmp_path, "train")
    assert dataset.read(dataset.samples[0])[1].min() == 1


@pytest.mark.parametrize(
    ("folder", "split", "count"),
    [
        ("ADEChallengeData2016", "val", 2),
        ("cityscapes", "train", 4),
        ("coco_stuff164k", "train", 13),
        ("coco_stuff164k", "val", 8),
        ("VOCdevkit", "val", 2),
    ],
)
def test_genuine_files_have_no_errors(
    shared_data: Path, folder: str, split: str, count: int
) -> None:
    report = check_split(open_dataset(shared_data / "layouts" / folder, split))
    assert report.errors == []
    assert len(report.dataset) == count
    assert sum(report.sizes.values()) == count


def test_class_names_hold_no_control_characters(tmp_path: Path) -> None:
    for layout in ("coco", "labelme"):
        write_image(tmp_path / layout / "a.jpg")
    polygon = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [BOX]}
    images = [{"id": 1, "file_name": "a.jpg"}]
    categories = [{"id": 1, "name": "leaf\x1b[2J"}]
    document = {"images": images, "annotations": [polygon], "categories": categories}
    write_json(tmp_path / "coco/a.json", document)
    points = np.reshape(BOX, (-1, 2)).tolist()
    shapes = [{"label": "leaf\x1b[2J", "points": points}]
    write_json(tmp_path / "labelme/a.json", {"shapes": shapes, "imagePath": "a.jpg"})
    for layout in ("coco", "labelme"):
        dataset = open_dataset(tmp_path / layout, "all")
        assert dataset.classes.names == ("background", "leaf?[2J")
        assert dataset.read(dataset.samples[0])[1][5, 5] == 1
