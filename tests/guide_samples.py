"""The files that the reader of each guide has: small drawn images in the layout of the guide."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from segformer.data.brush_masks import encode_brush

SIZE = (64, 96)

ISPRS_COLORS = np.array(
    ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)), np.uint8
)

Corners = tuple[int, int, int, int]


def boxes(
    num_classes: int, seed: int, size: tuple[int, int] = SIZE
) -> tuple[NDArray[np.uint8], list[tuple[int, Corners]]]:
    """Image (H, W, 3) with one box (left, top, right, bottom) of each class above 0."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    step, found = width // num_classes, []
    for class_id in range(1, num_classes):
        left, top = class_id * step, int(rng.integers(0, height // 2))
        corners = (left, top, left + max(step - 2, 2), top + height // 3)
        image[top : corners[3], left : corners[2]] = (37 * class_id % 200 + 55, 200, 90)
        found.append((class_id, corners))
    return image, found


def label_map(found: list[tuple[int, Corners]], size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Class ids (H, W) of the boxes."""
    mask = np.zeros(size, np.uint8)
    for class_id, (left, top, right, bottom) in found:
        mask[top:bottom, left:right] = class_id
    return mask


def save(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def draw_photos(folder: Path, names: tuple[str, ...], size: tuple[int, int] = SIZE) -> None:
    for seed, name in enumerate(names):
        save(folder / name, boxes(4, 100 + seed, size)[0])


def _counted(train: int, val: int) -> Iterator[tuple[str, int]]:
    yield from (("train", i) for i in range(train))
    yield from (("val", i) for i in range(val))


def people_and_clothes(user: Path, description: str) -> None:
    values = len(yaml.safe_load(description)["label_mapping"]) + 1
    for split, i in _counted(4, 2):
        image, found = boxes(values, i)
        save(user / f"my-clothes/images/{split}/{i:04}.jpg", image)
        save(user / f"my-clothes/masks/{split}/{i:04}.png", label_map(found))
    (user / "my-clothes/dataset.yaml").write_text(description)
    draw_photos(user, ("photos/first.jpg", "photos/second.jpg"))


def road_scenes(user: Path, description: str) -> None:
    for split, i in _counted(4, 2):
        image, found = boxes(11, i)
        mask = label_map(found)
        mask[-3:] = 11  # not labeled
        save(user / f"camvid/{split}/0001TP_{i:06}.png", image)
        save(user / f"camvid/{split}annot/0001TP_{i:06}.png", mask)
        # Ids of Cityscapes: 7 is road, 11 building, 21 vegetation, 23 sky, 26 car
        image, found = boxes(5, i)
        ids = np.array((7, 11, 21, 23, 26), np.uint8)[label_map(found)]
        place = f"{split}/aachen/aachen_{i:06}_000019"
        save(user / f"cityscapes/leftImg8bit/{place}_leftImg8bit.png", image)
        save(user / f"cityscapes/gtFine/{place}_gtFine_labelIds.png", ids)
    draw_photos(user, ("drive/0001.jpg", "drive/0002.jpg"))


def binary_medical_masks(user: Path, description: str) -> None:
    for i in range(10):
        image, found = boxes(2, i)
        name = f"patient{i // 2:02}_frame{i % 2}.jpg"
        save(user / f"polyps/images/{name}", image)
        save(user / f"polyps/masks/{name}", 255 * label_map(found))
    (user / "polyps/dataset.yaml").write_text(description)
    draw_photos(user, ("new/scan.jpg",))


def roboflow_zip(user: Path, description: str) -> None:
    coco, semantic = user / "coco", user / "semantic"
    categories = [{"id": 0, "name": "leaves", "supercategory": "none"}]
    categories += [
        {"id": i, "name": name, "supercategory": "leaves"}
        for i, name in enumerate(("healthy", "rust"), 1)
    ]
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        images, annotations = [], []
        for i in range(count):
            image, found = boxes(3, i)
            name = f"leaf{i}_jpg.rf.0{i}.jpg"
            save(coco / split / name, image)
            save(semantic / split / name, image)
            save(semantic / split / name.replace(".jpg", "_mask.png"), label_map(found))
            images.append({"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            annotations += [
                _annotation(len(annotations) + k, i, *box) for k, box in enumerate(found)
            ]
        _write_coco(coco / split / "_annotations.coco.json", images, annotations, categories)
        (semantic / split / "_classes.csv").write_text(
            "Pixel Value, Class\n0, background\n1, healthy\n2, rust\n"
        )
    for folder, export in ((coco, "coco-segmentation"), (semantic, "png-mask-semantic")):
        shutil.make_archive(str(user / f"leaves.v1i.{export}"), "zip", folder)
        shutil.rmtree(folder)
    draw_photos(user, ("garden/first.jpg",))


def coco_json(user: Path, description: str) -> None:
    categories = [{"id": 3, "name": "scratch"}, {"id": 7, "name": "dent"}]
    for split, count in (("train", 4), ("val", 2)):
        images, annotations = [], []
        for i in range(count):
            image, found = boxes(3, i)
            name = f"{i:04}.jpg"
            save(user / "parts/images" / split / name, image)
            images.append({"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            annotations += [
                _annotation(len(annotations) + k, i, (0, 3, 7)[class_id], box)
                for k, (class_id, box) in enumerate(found)
            ]
        file = user / f"parts/annotations/instances_{split}.json"
        _write_coco(file, images, annotations, categories)
    draw_photos(user, ("conveyor/first.jpg", "conveyor/second.jpg"))


def aerial_tiles(user: Path, description: str) -> None:
    size = (544, 544)  # more than a tile
    for tile, seed in (("2_10", 0), ("2_11", 1), ("2_13", 2)):
        image, found = boxes(6, seed, size)
        save(user / f"potsdam/2_Ortho_RGB/top_potsdam_{tile}_RGB.tif", image)
        label = ISPRS_COLORS[label_map(found, size)]
        save(user / f"potsdam/5_Labels_all/top_potsdam_{tile}_label.tif", label)
    draw_photos(user, ("flight.tif",), size)


def labeling(user: Path, description: str) -> None:
    tasks = []
    for i in range(6):
        image, found = boxes(3, i)
        save(user / f"corrections/{i:04}.jpg", image)
        mask = label_map(found)
        result = [
            {
                "type": "brushlabels",
                "from_name": "tag",
                "to_name": "image",
                "original_width": SIZE[1],
                "original_height": SIZE[0],
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": list(encode_brush(mask == class_id)),
                    "brushlabels": [name],
                },
            }
            for class_id, name in ((1, "box"), (2, "disc"))
        ]
        annotations = [{"id": i, "was_cancelled": False, "result": result}]
        upload = f"/data/upload/1/0a1b2c3d-{i:04}.jpg"
        tasks.append({"id": i, "annotations": annotations, "data": {"image": upload}})
    (user / "corrections/project.json").write_text(json.dumps(tasks), encoding="utf-8")
    draw_photos(user, ("new/first.jpg", "new/second.jpg"))


def _annotation(identity: int, image: int, category: int, corners: Corners) -> dict[str, Any]:
    left, top, right, bottom = corners
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "iscrowd": 0,
    }


def _write_coco(
    file: Path, images: list[Any], annotations: list[Any], categories: list[Any]
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(document), encoding="utf-8")


SAMPLES: dict[str, Callable[[Path, str], None]] = {
    "people-and-clothes": people_and_clothes,
    "road-scenes": road_scenes,
    "binary-medical-masks": binary_medical_masks,
    "roboflow-zip": roboflow_zip,
    "coco-json": coco_json,
    "aerial-tiles": aerial_tiles,
    "labeling": labeling,
}
"""Guide -> function that draws its files into a folder; takes the ``dataset.yaml`` it shows."""
