import json
import random
from pathlib import Path

import pytest

from layout_samples import class_ids, columns, taken_for, write_image, write_json, write_mask
from segformer.data.errors import DatasetError
from segformer.data.layouts.recognition import LAYOUTS, recognize


def draw_ade(root: Path) -> Path:
    write_image(root / "images/training/ADE_train_1.jpg")
    write_mask(root / "annotations/training/ADE_train_1.png", columns(1))
    return root


def test_names_are_unique() -> None:
    names = [layout.name for layout in LAYOUTS]
    assert len(set(names)) == len(names)


def test_the_name_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "cityscapes").mkdir()
    (tmp_path / "VOC2012").mkdir()
    assert recognize(tmp_path / "cityscapes") is None
    assert recognize(tmp_path / "VOC2012") is None
    assert taken_for(draw_ade(tmp_path / "cityscapes")).layout.name == "ade20k"


def test_a_data_set_inside_folders_is_found(tmp_path: Path) -> None:
    inner = draw_ade(tmp_path / "download/ADE")
    (tmp_path / "__MACOSX").mkdir()
    found = taken_for(tmp_path)
    assert found.root == inner
    assert "objectInfo" in found.reason or "ADE_" in found.reason


def test_several_data_sets_are_a_choice(tmp_path: Path) -> None:
    draw_ade(tmp_path / "one")
    draw_ade(tmp_path / "two")
    with pytest.raises(DatasetError, match=r"(?s)several data sets.*/one.*/two"):
        recognize(tmp_path)


def test_several_layouts_are_a_choice(tmp_path: Path) -> None:
    write_image(tmp_path / "train2017/000000000009.jpg")
    write_mask(tmp_path / "stuffthingmaps/train2017/000000000009.png", columns(0))
    document = {
        "images": [{"id": 9, "file_name": "000000000009.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    write_json(tmp_path / "annotations/instances_train2017.json", document)
    with pytest.raises(DatasetError, match=r"(?s)--layout coco-stuff .*--layout coco "):
        recognize(tmp_path)
    for name in ("coco-stuff", "coco"):
        found = taken_for(tmp_path, name)
        assert not class_ids(found.layout.read(found.root, "train")).any()


def test_a_layout_that_does_not_exist_or_fit(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no layout 'voc'; the layouts are ade20k, cityscapes"):
        recognize(tmp_path, "voc")
    with pytest.raises(DatasetError, match="no files of the layout 'coco'"):
        recognize(tmp_path, "coco")


def test_empty_and_foreign_folders_are_nothing(tmp_path: Path) -> None:
    assert recognize(tmp_path) is None
    write_json(tmp_path / "package.json", {"name": "x"})
    write_json(tmp_path / "list.json", [1, 2])
    (tmp_path / "data.yaml").write_text("a: [b")
    (tmp_path / "other.yaml").write_text("names: [a]\ntrain: nowhere\n")
    write_image(tmp_path / "images/a.jpg")
    assert recognize(tmp_path) is None


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_splits_that_do_not_exist(tmp_path: Path, layout: object) -> None:
    with pytest.raises(DatasetError):
        layout.read(tmp_path, "extra")  # type: ignore[attr-defined]


def mangled(text: str, generator: random.Random) -> str:
    """JSON with a value replaced, or cut off."""
    if generator.random() < 0.2:
        return text[: generator.randrange(len(text))]
    document = json.loads(text)
    nodes = []

    def collect(node: object) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)  # type: ignore[arg-type]
        for key, value in items:
            nodes.append((node, key))
            if isinstance(value, (dict, list)):
                collect(value)

    collect(document)
    for _ in range(generator.randint(1, 3)):
        node, key = generator.choice(nodes)
        node[key] = generator.choice(
            [
                None,
                True,
                -1,
                10**20,
                1e308,
                float("nan"),
                "",
                "x",
                "é\0",
                [],
                {},
                [[]],
                [[1, 2]],
                {"a": 1},
            ]
        )
    return json.dumps(document)


POLYGON = [[2, 2], [9, 2], [9, 9]]
DOCUMENTS = {
    "coco": {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 24, "width": 32}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]]},
            {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 1,
             "segmentation": {"size": [24, 32], "counts": [700, 68]}},
        ],
        "categories": [{"id": 1, "name": "x", "supercategory": "y"}],
    },
    "labelme": {
        "shapes": [
            {"label": "x", "points": POLYGON, "shape_type": "polygon"},
            {"label": "y", "points": POLYGON[:2], "shape_type": "circle"},
        ],
        "imagePath": "a.jpg", "imageHeight": 24, "imageWidth": 32,
    },
    "label-studio": [
        {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [
            {"type": "polygonlabels", "original_width": 32,
             "value": {"points": POLYGON, "polygonlabels": ["x"]}},
            {"type": "brushlabels", "value": {"rle": [0, 0, 12, 0, 57], "brushlabels": ["y"]}},
        ]}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_mangled_json_raises_nothing_but_data_set_errors(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.jpg")
    text = json.dumps(DOCUMENTS[name])
    generator = random.Random(0)
    read = failed = 0
    for _ in range(400):
        (tmp_path / "train.json").write_text(mangled(text, generator))
        try:
            found = recognize(tmp_path)
            if found is None:
                continue
            for part in found.layout.splits(found.root):
                split = found.layout.read(found.root, part)
                for sample in split.samples:
                    assert sample.mask is not None
                    ids = sample.mask.rasterize(24, 32)  # type: ignore[union-attr]
                    assert ids.shape == (24, 32)
                    assert not split.classes.unknown_values(ids)
                    read += 1
        except DatasetError as error:
            assert "json" in str(error)
            failed += 1
    assert read > 10
    assert failed > 100
