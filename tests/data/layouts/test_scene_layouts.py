"""Layouts of public data sets with a mask for each image."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layout_samples import (
    class_ids,
    colored,
    columns,
    read_split,
    stripes,
    taken_for,
    write_image,
    write_json,
    write_mask,
)
from segformer.data.errors import DatasetError
from segformer.data.layouts.base import class_table
from segformer.data.layouts.pascal_voc import voc_palette
from segformer.image import read_mask

TABLES = {
    "ade20k": 150, "camvid": 31, "camvid11": 11, "cityscapes": 19, "coco_stuff": 171, "isprs": 6,
    "lip": 20, "loveda": 7, "mapillary_v1.2": 65, "mapillary_v2.0": 123, "pascal_voc": 21,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), TABLES.items())
def test_tables(name: str, count: int) -> None:
    classes = class_table(name)
    assert len(classes) == len(classes.palette) == count


def test_ade20k(tmp_path: Path) -> None:
    write_image(tmp_path / "images/training/ADE_train_00000001.jpg")
    write_mask(tmp_path / "annotations/training/ADE_train_00000001.png", columns(0, 1, 150))
    split = read_split(tmp_path, "ade20k", "train")
    assert stripes(split) == ["ignored", "wall", "flag"]
    rows = "\n".join(f"{i}\t0.1\t1\t1\tthing {i}, stuff {i}" for i in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{rows}\n")
    assert stripes(read_split(tmp_path, "ade20k", "train")) == ["ignored", "thing 1", "thing 150"]
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\n1\t2\tone\n")
    with pytest.raises(DatasetError, match=r"objectInfo150.txt.*1 classes, not 150"):
        read_split(tmp_path, "ade20k", "train")


def test_ade20k_is_not_recognized_by_folder_names_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "images/training/a.jpg")
    write_mask(tmp_path / "annotations/training/a.png", columns(0, 1))
    from segformer.data.layouts.recognition import recognize

    assert recognize(tmp_path) is None
    assert taken_for(tmp_path, "ade20k").layout.name == "ade20k"


def test_ade20k_as_released(shared_data: Path) -> None:
    split = read_split(shared_data / "layouts/ADEChallengeData2016", "ade20k", "val")
    assert len(split.samples) == 2
    assert split.classes.names[:3] == ("wall", "building", "sky")
    counts = np.bincount(class_ids(split).ravel(), minlength=256)
    assert set(np.argsort(-counts)[:2]) == {1, 2}  # a street: building and sky


def test_cityscapes(tmp_path: Path) -> None:
    for city in ("ulm", "köln"):
        name = f"{city}_000000_000019"
        write_image(tmp_path / f"leftImg8bit/train/{city}/{name}_leftImg8bit.png")
        folder = tmp_path / f"gtFine/train/{city}"
        write_mask(folder / f"{name}_gtFine_labelIds.png", columns(0, 7, 33, 4))
        write_mask(folder / f"{name}_gtFine_instanceIds.png", columns(1, 2))
        write_mask(folder / f"{name}_gtFine_color.png", colored((1, 2, 3)))
    split = read_split(tmp_path, "cityscapes", "train")
    assert [sample.name for sample in split.samples] == [
        "köln/köln_000000_000019_leftImg8bit.png",
        "ulm/ulm_000000_000019_leftImg8bit.png",
    ]
    assert stripes(split) == ["ignored", "road", "bicycle", "ignored"]
    assert split.stray_masks == ()


def test_cityscapes_coarse_with_train_ids(tmp_path: Path) -> None:
    name = "ulm_000000_000019"
    write_image(tmp_path / f"leftImg8bit/train_extra/ulm/{name}_leftImg8bit.png")
    write_mask(
        tmp_path / f"gtCoarse/train_extra/ulm/{name}_gtCoarse_labelTrainIds.png",
        columns(0, 18, 255),
    )
    split = read_split(tmp_path, "cityscapes", "train_extra")
    assert stripes(split) == ["road", "bicycle", "ignored"]


def test_cityscapes_withholds_the_annotations_of_its_test_images(tmp_path: Path) -> None:
    name = "bonn_000000_000019"
    write_image(tmp_path / f"leftImg8bit/test/bonn/{name}_leftImg8bit.png")
    write_mask(tmp_path / f"gtFine/test/bonn/{name}_gtFine_labelIds.png", columns(0, 1, 3))
    split = read_split(tmp_path, "cityscapes", "test")
    assert [sample.mask for sample in split.samples] == [None]


def test_cityscapes_as_released(shared_data: Path) -> None:
    split = read_split(shared_data / "layouts/cityscapes", "cityscapes", "train")
    assert len(split.samples) == 4
    values = read_mask(split.samples[0].mask)  # type: ignore[arg-type]
    ids = class_ids(split)
    assert (ids[values == 7] == 0).all()
    assert (ids[values == 26] == 13).all()
    assert (ids[values < 7] == 255).all()


@pytest.mark.parametrize("folder", ["stuffthingmaps", "annotations"])
def test_coco_stuff(tmp_path: Path, folder: str) -> None:
    write_image(tmp_path / "images/train2017/000000000009.jpg")
    write_mask(tmp_path / folder / "train2017/000000000009.png", columns(0, 12, 181, 255, 11))
    write_mask(tmp_path / folder / "train2017/000000000009_labelTrainIds.png", columns(3))
    split = read_split(tmp_path, "coco-stuff", "train")
    assert stripes(split) == ["person", "stop sign", "wood", "ignored"]
    assert split.stray_masks == ()


def test_coco_stuff_train_ids(tmp_path: Path) -> None:
    write_image(tmp_path / "images/val2017/000000000009.jpg")
    mask = tmp_path / "annotations/val2017/000000000009_labelTrainIds.png"
    write_mask(mask, columns(0, 170, 255))
    assert stripes(read_split(tmp_path, "coco-stuff", "val")) == ["person", "wood", "ignored"]


def test_coco_stuff_as_released(shared_data: Path) -> None:
    root = shared_data / "layouts/coco_stuff164k"
    assert len(read_split(root, "coco-stuff", "train").samples) == 13
    split = read_split(root, "coco-stuff", "val")
    counts = {
        sample.name: np.bincount(class_ids(split, sample).ravel(), minlength=256)
        for sample in split.samples
    }
    assert len(counts) == 8
    skier = counts["000000000785.jpg"]
    assert split.classes.names[int(skier[:171].argmax())] == "snow"
    assert skier[split.classes.names.index("skis")] > 0
    assert counts["000000001818.jpg"][split.classes.names.index("zebra")] > 0


def draw_voc(root: Path, names: tuple[str, ...] = ("2007_000001", "2007_000002")) -> Path:
    for name in names:
        write_image(root / f"JPEGImages/{name}.jpg")
        write_mask(root / f"SegmentationClass/{name}.png", columns(0, 15, 255), voc_palette(256))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{names[0]}\n")
    (lists / "val.txt").write_text(f"{names[-1]}\n2007_000099\n")
    return root


def test_pascal_voc(tmp_path: Path) -> None:
    draw_voc(tmp_path / "VOCdevkit/VOC2012")
    split = read_split(tmp_path, "pascal-voc", "train")
    assert stripes(split) == ["background", "person", "ignored"]
    assert split.classes.palette[15] == (192, 128, 128)
    missing = read_split(tmp_path, "pascal-voc", "val").samples[-1]
    assert missing.name == "2007_000099.jpg"
    assert missing.mask is None


def test_pascal_voc_augmented(tmp_path: Path) -> None:
    draw_voc(tmp_path)
    write_mask(tmp_path / "SegmentationClassAug/2007_000002.png", columns(0, 20))
    (tmp_path / "ImageSets/Segmentation/trainaug.txt").write_text(
        "/JPEGImages/2007_000002.jpg /SegmentationClassAug/2007_000002.png\n"
    )
    assert stripes(read_split(tmp_path, "pascal-voc", "trainaug")) == ["background", "tvmonitor"]


def test_pascal_voc_in_colors_without_palette(tmp_path: Path) -> None:
    draw_voc(tmp_path)
    for file in (tmp_path / "SegmentationClass").iterdir():
        Image.open(file).convert("RGB").save(file)
        colors = np.asarray(Image.open(file)).copy()
        colors[:, -1] = (224, 224, 192)
        Image.fromarray(colors).save(file)
    palette = [(i, i, i) for i in range(256)]
    assert palette
    split = read_split(tmp_path, "pascal-voc", "train")
    assert class_ids(split)[0, 16] == 15
    assert class_ids(split)[0, -1] == 255


def test_other_classes_in_the_layout_of_pascal_voc_must_be_named(tmp_path: Path) -> None:
    draw_voc(tmp_path, ("leaf 1", "leaf 2"))
    (tmp_path / "ImageSets/Segmentation/train.txt").unlink()
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(DatasetError, match=r"add class_names.txt"):
        read_split(tmp_path, "pascal-voc", "all")
    names = "\n".join(["_background_", *(f"disease {i}" for i in range(1, 16))])
    (tmp_path / "class_names.txt").write_text(f"__ignore__\n{names}\n")
    assert stripes(read_split(tmp_path, "pascal-voc", "all")) == [
        "background", "disease 15", "ignored"
    ]  # fmt: skip


def draw_mapillary(root: Path, labels: str, values: tuple[int, ...]) -> None:
    write_image(root / "training/images/a b.jpg")
    write_mask(root / "training" / labels / "a b.png", columns(*values), [(1, 2, 3)] * 256)


@pytest.mark.parametrize(
    ("labels", "version", "last"),
    [("labels", "v1.2", 65), ("v1.2/labels", "v1.2", 65), ("v2.0/labels", "v2.0", 123)],
)
def test_mapillary(tmp_path: Path, labels: str, version: str, last: int) -> None:
    draw_mapillary(tmp_path, labels, (0, last - 1, last))
    split = read_split(tmp_path, f"mapillary-{version}", "train")
    expected = ["Bird", "Ego Vehicle" if version == "v1.2" else "Static", "ignored"]
    assert stripes(split) == expected


def test_mapillary_names_of_the_release(tmp_path: Path) -> None:
    draw_mapillary(tmp_path, "v2.0/labels", (0, 1, 2))
    entries = [
        {"name": "animal--bird", "readable": "Bird", "color": [1, 2, 3]},
        {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0]},
        {"name": "object--x", "readable": "X", "color": [4, 5, 6]},
    ]
    write_json(tmp_path / "config_v2.0.json", {"labels": entries})
    split = read_split(tmp_path, "mapillary-v2.0", "train")
    assert stripes(split) == ["Bird", "ignored", "X"]
    assert split.classes.palette == ((1, 2, 3), (4, 5, 6))
    (tmp_path / "config_v2.0.json").write_text('{"labels": [{"name": 3}]}')
    with pytest.raises(DatasetError, match=r"config_v2\.0\.json"):
        read_split(tmp_path, "mapillary-v2.0", "train")


def test_both_versions_of_mapillary_are_a_choice(tmp_path: Path) -> None:
    for version in ("v1.2", "v2.0"):
        draw_mapillary(tmp_path, f"{version}/labels", (0,))
    with pytest.raises(DatasetError, match=r"(?s)--layout mapillary-v1\.2.*mapillary-v2\.0"):
        taken_for(tmp_path)
    assert taken_for(tmp_path, "mapillary-v2.0").layout.name == "mapillary-v2.0"


def test_loveda(tmp_path: Path) -> None:
    for area in ("Rural", "Urban"):
        write_image(tmp_path / f"Val/{area}/images_png/7.png")
        write_mask(tmp_path / f"Val/{area}/masks_png/7.png", columns(0, 1, 7))
    split = read_split(tmp_path, "loveda", "val")
    assert [sample.name for sample in split.samples] == ["Rural/7.png", "Urban/7.png"]
    assert stripes(split) == ["ignored", "background", "agricultural"]


ISPRS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (252, 255, 0), (255, 0, 0))


def test_potsdam(tmp_path: Path) -> None:
    for tile in ("2_10", "6_07", "7_13"):
        write_image(tmp_path / f"2_Ortho_RGB/top_potsdam_{tile}_RGB.tif")
        write_image(tmp_path / f"3_Ortho_IRRG/top_potsdam_{tile}_IRRG.tif")
        labels = tmp_path / "5_Labels_all"
        write_mask(labels / f"top_potsdam_{tile}_label.tif", colored(*ISPRS, (0, 0, 0)))
    split = read_split(tmp_path, "potsdam", "train")
    assert [sample.name for sample in split.samples] == [
        "top_potsdam_2_10_RGB.tif", "top_potsdam_6_07_RGB.tif"
    ]  # fmt: skip
    assert stripes(split) == [*split.classes.names, "ignored"]
    assert len(read_split(tmp_path, "potsdam", "val").samples) == 1


def test_vaihingen(tmp_path: Path) -> None:
    truth = tmp_path / "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
    for area in (1, 2):
        write_image(tmp_path / f"top/top_mosaic_09cm_area{area}.tif")
        write_mask(truth / f"top_mosaic_09cm_area{area}.tif", colored(*ISPRS))
        write_mask(
            tmp_path / f"eroded/top_mosaic_09cm_area{area}_noBoundary.tif", colored((0, 0, 0))
        )
    split = read_split(tmp_path, "vaihingen", "train")
    assert [sample.name for sample in split.samples] == ["top_mosaic_09cm_area1.tif"]
    assert stripes(split) == list(split.classes.names)


def test_unknown_colors_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a/top_potsdam_2_10_RGB.tif")
    write_mask(tmp_path / "b/top_potsdam_2_10_label.tif", colored((255, 0, 0), (9, 99, 99)))
    split = read_split(tmp_path, "potsdam", "train")
    with pytest.raises(DatasetError, match=r"2_10_label\.tif: colors .*\[0, 99, 99\]"):
        class_ids(split)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("train_images", "train_segmentations"),
        (
            "TrainVal_images/TrainVal_images/train_images",
            "TrainVal_parsing_annotations/TrainVal_parsing_annotations/train_segmentations",
        ),
        ("TrainVal_images/train_images", "TrainVal_parsing_annotations/x/train_images"),
    ],
)
def test_lip(tmp_path: Path, images: str, masks: str) -> None:
    write_image(tmp_path / images / "77_471474.jpg")
    write_mask(tmp_path / masks / "77_471474.png", columns(0, 5, 19))
    split = read_split(tmp_path, "lip", "train")
    assert stripes(split) == ["Background", "UpperClothes", "Right-shoe"]


def test_camvid_in_colors(tmp_path: Path) -> None:
    write_image(tmp_path / "701_StillsRaw_full/0001TP_006690.png")
    colors = ((128, 128, 128), (0, 0, 0), (64, 192, 0))
    write_mask(tmp_path / "LabeledApproved_full/0001TP_006690_L.png", colored(*colors))
    split = read_split(tmp_path, "camvid", "all")
    assert stripes(split) == ["Sky", "ignored", "Wall"]
    (tmp_path / "label_colors.txt").write_text(
        "128 128 128\tLuft\n0 0 0\t\tVoid\n64 192 0\tMauer und Zaun\n\n"
    )
    assert stripes(read_split(tmp_path, "camvid", "all")) == ["Luft", "ignored", "Mauer und Zaun"]
    (tmp_path / "label_colors.txt").write_text("128 128 Luft\n")
    with pytest.raises(DatasetError, match=r"label_colors\.txt"):
        read_split(tmp_path, "camvid", "all")


def test_camvid_in_split_folders_with_a_table(tmp_path: Path) -> None:
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nSky,1,2,3\nVoid,0,0,0\nRoad,4,5,6\n")
    for part in ("train", "val"):
        write_image(tmp_path / part / f"{part}1.png")
        write_mask(tmp_path / f"{part}_labels/{part}1_L.png", colored((4, 5, 6), (0, 0, 0)))
    split = read_split(tmp_path, "camvid", "val")
    assert stripes(split) == ["Road", "ignored"]


def test_camvid_of_segnet(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_image(tmp_path / part / "0001TP_006690.png")
        write_mask(tmp_path / f"{part}annot/0001TP_006690.png", columns(0, 10, 11))
    split = read_split(tmp_path, "camvid11", "val")
    assert stripes(split) == ["sky", "bicyclist", "ignored"]


def test_two_masks_of_one_image_do_not_hide_the_other_images(tmp_path: Path) -> None:
    for stem in ("ADE_train_1", "ADE_train_2"):
        write_image(tmp_path / f"images/training/{stem}.jpg")
        write_mask(tmp_path / f"annotations/training/{stem}.png", columns(1))
    write_mask(tmp_path / "annotations/training/ADE_train_1.tif", columns(2))
    split = read_split(tmp_path, "ade20k", "train")
    with pytest.raises(DatasetError, match=r"ADE_train_1\.jpg has more than one mask"):
        class_ids(split)
    assert stripes(split, split.samples[1]) == ["wall"]


def test_splits_can_be_sent_to_worker_processes(tmp_path: Path) -> None:
    write_image(tmp_path / "701_StillsRaw_full/0001TP_006690.png")
    write_mask(tmp_path / "LabeledApproved_full/0001TP_006690_L.png", colored((128, 128, 128)))
    split = read_split(tmp_path, "camvid", "all")
    assert stripes(pickle.loads(pickle.dumps(split))) == ["Sky"]
    assert json.dumps([sample.name for sample in split.samples])
