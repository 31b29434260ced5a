from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layout_samples import HEIGHT, WIDTH, class_ids, read_split, write_image, write_json
from segformer.data.errors import DatasetError
from segformer.data.layouts.label_studio import decode_brush

EXPORTED = bytes(
    (0, 0, 0, 120, 57, 27, 252, 127, 248, 108, 2, 223, 253, 176, 11, 127, 246, 192, 45, 255, 225)
) + bytes((176, 0))
"""A mask of 5 x 6 pixels as Label Studio's own converter encodes it."""


def encode_brush(mask: np.ndarray, *, literal: bool = False) -> list[int]:
    """The documented encoding of a mask (H, W), as runs or value by value."""
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    if literal:
        for start in range(0, len(values), 256):
            block = values[start : start + 256]
            bits += f"0{2:02b}{len(block) - 1:08b}" + "".join(f"{v:08b}" for v in block)
    else:
        edges = np.flatnonzero(np.diff(values.astype(int), prepend=-1, append=-1))
        for start, end in pairwise(edges):
            assert end - start <= 1 << 16
            bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def disc() -> np.ndarray:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    return np.hypot(rows - 10, cols - 12) < 7


def region(kind: str, label: str, **value: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "type": kind,
        "from_name": "tag",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {**value, kind: [label]},
    }


def brush(label: str, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return region("brushlabels", label, format="rle", rle=encode_brush(mask)) | more


def task(identity: int, image: str, *results: Any) -> dict[str, Any]:
    annotations = [{"id": 1, "was_cancelled": False, "result": result} for result in results]
    return {"id": identity, "annotations": annotations, "data": {"image": image}}


def draw(root: Path, *tasks: Any) -> Path:
    for name in ("a.jpg", "b.jpg"):
        write_image(root / "images" / name)
    write_json(root / "project-1-at-2024.json", list(tasks))
    return root


def test_a_mask_as_exported() -> None:
    expected = np.zeros((5, 6), bool)
    expected[1:4, 2:5] = expected[0, 0] = True
    assert (decode_brush(EXPORTED, 5, 6, "a") == expected).all()


def test_masks_encoded_by_the_documentation() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        height, width = generator.integers(1, 40, 2)
        mask = generator.random((height, width)) < 0.5
        for literal in (False, True):
            data = bytes(encode_brush(mask, literal=literal))
            assert (decode_brush(data, int(height), int(width), "a") == mask).all()


def test_every_truncation_and_a_wrong_size_are_named() -> None:
    for end in range(len(EXPORTED) - 1):
        with pytest.raises(ValueError, match="entry 7: the brush mask is cut off"):
            decode_brush(EXPORTED[:end], 5, 6, "entry 7")
    with pytest.raises(ValueError, match="entry 7: the brush mask has 30 pixels, but 6 x 6"):
        decode_brush(EXPORTED, 6, 6, "entry 7")


def test_brushes_and_shapes(tmp_path: Path) -> None:
    points = [[0, 50], [25, 50], [25, 100], [0, 100]]
    result = [
        {"type": "choices", "value": {"choices": ["good"]}},
        brush("Blatt", disc()),
        region("polygonlabels", "weg", points=points),
        region("rectanglelabels", "auto", x=75, y=0, width=25, height=25),
        region("ellipselabels", "see", x=81.25, y=75, radiusX=12.5, radiusY=12.5),
    ]
    draw(tmp_path, task(1, "/data/upload/1/0a1b2c3d-a.jpg", result))
    split = read_split(tmp_path, "label-studio", "all")
    assert split.classes.names == ("background", "Blatt", "auto", "see", "weg")
    assert [sample.name for sample in split.samples] == ["images/a.jpg"]
    ids = class_ids(split)
    assert (ids[:12, :20][disc()[:12, :20]] == 1).all()
    assert (ids[12:, :8] == 4).all()
    assert (ids[:6, 24:] == 2).all()
    assert abs(int((ids == 3).sum()) - np.pi * 4 * 3) < 5


@pytest.mark.parametrize(
    "image",
    ["/data/local-files/?d=x/y/a.jpg", "https://host/b/a.jpg?token=1", "s3://bucket/a.jpg",
     "C:\\Bilder\\a.jpg", "a\u0308.jpg",
     "/data/upload/3/abcdef12-a.jpg", "/data/local-files/?d=x%2Fa.jpg"],
)  # fmt: skip
def test_images_are_found_by_name(tmp_path: Path, image: str) -> None:
    draw(tmp_path, task(1, image, [brush("x", disc())]))
    write_image(tmp_path / "images/ä.jpg")
    split = read_split(tmp_path, "label-studio", "all")
    name = "ä.jpg" if "\u0308" in image else "a.jpg"
    assert split.samples[0].image == tmp_path / "images" / name


def test_the_short_form(tmp_path: Path) -> None:
    short = {"format": "rle", "rle": encode_brush(disc()), "brushlabels": ["x"]}
    sizes = {"original_width": WIDTH, "original_height": HEIGHT}
    draw(tmp_path, {"id": 3, "image": "/data/upload/a.jpg", "tag": [short | sizes]})
    split = read_split(tmp_path, "label-studio", "all")
    assert ((class_ids(split) == 1) == disc()).all()


def test_unlabeled_and_broken_tasks(tmp_path: Path) -> None:
    good = [brush("x", disc())]
    draw(
        tmp_path,
        task(1, "a.jpg", good),
        task(2, "b.jpg"),
        {"id": 3, "annotations": [{"was_cancelled": True, "result": []}], "data": {"i": "b.jpg"}},
        task(4, "nothing", good),
        "x",
        {"id": 5, "annotations": 3, "data": {"image": "b.jpg"}},
    )
    split = read_split(tmp_path, "label-studio", "all")
    text = "\n".join(split.problems)
    assert "2 tasks have not been labeled" in text
    assert "task 4: it names no image" in text
    assert "task 5: expected an object" in text
    assert class_ids(split).max() == 1
    with pytest.raises(DatasetError, match="task 5: annotations: expected a list"):
        class_ids(split, split.samples[1])


def test_annotations_that_disagree(tmp_path: Path) -> None:
    first, second = [brush("x", disc())], [brush("y", disc())]
    draw(tmp_path, task(1, "a.jpg", first, second), task(2, "b.jpg", first, first))
    split = read_split(tmp_path, "label-studio", "all")
    with pytest.raises(DatasetError, match="task 1: 2 annotations that disagree"):
        class_ids(split)
    assert class_ids(split, split.samples[1]).max() == 1


def test_two_tasks_of_one_image(tmp_path: Path) -> None:
    good = [brush("x", disc())]
    draw(tmp_path, task(1, "a.jpg", good), task(1, "a.jpg", good))
    split = read_split(tmp_path, "label-studio", "all")
    with pytest.raises(DatasetError, match=r"several tasks are about the image a\.jpg: task 1"):
        class_ids(split)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (brush("x", disc(), image_rotation=90), "rotated by 90 degrees"),
        (brush("x", disc(), original_width=9), "original_width is 9"),
        (brush("x", disc()[:5]), "the brush mask has 160 pixels"),
        (region("brushlabels", "x", rle=[1, 2]), "cut off"),
        (region("brushlabels", "x", rle=[999]), "rle: expected a list of bytes"),
        (region("polygonlabels", "x", points=[[1, 1], [5, 5]]), "2 points has no area"),
        (region("rectanglelabels", "x", x=1, y=1, width=5, height="z"), "height: expected"),
        (region("rectanglelabels", "x", x=1, y=1, width=5, height=5, rotation=9), "rotated shapes"),
        ({"type": "brushlabels", "value": {}}, "it has no label"),
        ({"type": "brushlabels", "value": 3}, "value: expected an object"),
    ],
)  # fmt: skip
def test_regions_that_cannot_be_read(tmp_path: Path, broken: Any, message: str) -> None:
    good = brush("g", disc())
    draw(tmp_path, task(1, "a.jpg", [good, broken]), task(2, "b.jpg", [good]))
    split = read_split(tmp_path, "label-studio", "all")
    with pytest.raises(DatasetError, match=rf"at-2024\.json: task 1, region 2.*{message}"):
        class_ids(split)
    assert class_ids(split, split.samples[1]).max() > 0
