from pathlib import Path

import numpy as np
import pytest

from conftest import draw_dataset
from layout_samples import columns, write_image, write_json, write_mask
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.division import Division, class_presence, divide, write_lists
from segformer.data.opening import open_dataset


def draw(root: Path, count: int = 20) -> Dataset:
    """One of five masks has the class 2; the images are of five scenes."""
    for i in range(count):
        write_image(root / f"images/scene{i % 5}/{i:02}.jpg")
        write_mask(root / f"masks/scene{i % 5}/{i:02}.png", columns(0, 1, 2 if i % 5 == 0 else 0))
    return open_dataset(root, "all")


def names(dataset: Dataset) -> set[str]:
    return {sample.name for sample in dataset}


def test_a_fraction_with_rare_classes_in_both_parts(tmp_path: Path) -> None:
    dataset = draw(tmp_path)
    train, val = divide(dataset, Division(val_fraction=0.25))
    assert (train.split, val.split) == ("train", "val")
    assert len(val) == 5
    assert names(train) | names(val) == names(dataset)
    assert not names(train) & names(val)
    assert class_presence(val)[:, 2].sum() == 1
    assert val.read(val.samples[0])[1].shape == (24, 32)


def test_groups_and_folds(tmp_path: Path) -> None:
    dataset = draw(tmp_path)
    for group_by in ("folder", r"scene(\d)"):
        held = []
        for k in range(1, 6):
            train, val = divide(dataset, Division(fold=f"{k}/5", group_by=group_by))
            scenes = [{name.split("/")[0] for name in names(part)} for part in (train, val)]
            assert not scenes[0] & scenes[1]
            held += sorted(names(val))
        assert sorted(held) == sorted(names(dataset))


def test_the_lists_of_a_run_give_the_same_division(tmp_path: Path) -> None:
    dataset = draw(tmp_path / "data")
    train, val = divide(dataset, Division(val_fraction=0.3, seed=5))
    write_lists(tmp_path / "run", {part.split: sorted(names(part)) for part in (train, val)})
    lists = Division(val_list=tmp_path / "run/val.txt", train_list=tmp_path / "run/train.txt")
    again = divide(dataset, lists)
    assert [names(part) for part in again] == [names(train), names(val)]
    assert names(divide(dataset, Division(val_list=tmp_path / "run/val.txt"))[0]) == names(train)


def test_presence_of_classes_in_annotations(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    document = {
        "images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 5, "segmentation": [[1, 1, 9, 1, 9, 9]]},
            {"id": 2, "image_id": 1, "category_id": 6, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        ],
        "categories": [{"id": 5, "name": "leaf"}],
    }
    write_json(tmp_path / "data.json", document)
    seen = []
    present = class_presence(open_dataset(tmp_path, "all"), lambda: seen.append(1))
    assert np.array_equal(present, [[True, True], [False, False]])
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("division", "message"),
    [
        (Division(), "give one of"),
        (Division(val_fraction=0.2, fold="1/5"), "give one of"),
        (Division(train_list=Path("x"), fold="1/5"), "train_list needs val_list too"),
        (Division(val_list=Path("x"), group_by="folder"), "cannot be combined"),
        (Division(val_list=Path("missing.txt")), r"missing\.txt"),
        (Division(fold="9/5"), "written like 2/5"),
    ],
)
def test_divisions_that_make_no_sense(tmp_path: Path, division: Division, message: str) -> None:
    dataset = open_dataset(draw_dataset(tmp_path / "d"), "train")
    with pytest.raises(DatasetError, match=message):
        divide(dataset, division)
