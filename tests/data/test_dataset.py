from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import draw_dataset
from segformer.data.dataset import DatasetError, open_dataset, splits


def describe(root: Path, **changes: object) -> Path:
    entries = yaml.safe_load((root / "dataset.yaml").read_text())
    entries.update(changes)
    (root / "dataset.yaml").write_text(yaml.safe_dump(entries))
    return root


def test_yaml(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset, "train")
    assert len(dataset) == 6
    assert dataset.classes.names == ("noise", "box", "disc")
    assert splits(small_dataset) == ["train", "val"]
    image, ids = dataset.read(dataset.samples[0])
    assert image.shape == (48, 64, 3)
    assert set(np.unique(ids)) <= {0, 1, 2, 255}
    assert open_dataset(small_dataset / "dataset.yaml", "val").samples[1].name == "01.png"


def test_bare_folders(small_dataset: Path) -> None:
    (small_dataset / "dataset.yaml").unlink()
    dataset = open_dataset(small_dataset, "val")
    assert dataset.classes.names == ("background", "class 1", "class 2")
    assert splits(small_dataset) == ["train", "val"]


def test_images_in_nested_folders_and_other_formats(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "d")
    for kind in ("images", "masks"):
        (root / kind / "train" / "a" / "b").mkdir(parents=True)
        (root / kind / "train" / "00.png").rename(root / kind / "train/a/b/00.png")
    image = root / "images/train/a/b/00.png"
    Image.open(image).save(image.with_suffix(".jpg"))
    image.unlink()
    sample = next(s for s in open_dataset(root) if s.name == "a/b/00.jpg")
    assert sample.mask == root / "masks/train/a/b/00.png"


@pytest.mark.parametrize(
    ("train", "masks_dir", "expected"),
    [
        ("images/train", "masks", "masks/train"),
        ("images/train", "annotations", "annotations/train"),
        ("deep/images/train", "masks", "deep/masks/train"),
        ("train", "masks", "masks/train"),
        ("images", "masks", "masks"),
    ],
)
def test_where_masks_are(tmp_path: Path, train: str, masks_dir: str, expected: str) -> None:
    for folder in (train, expected):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / folder / "a.png")
    entries = {"train": train, "masks_dir": masks_dir, "names": ["x"]}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(entries))
    assert open_dataset(tmp_path).samples[0].mask == tmp_path / expected / "a.png"


def test_mapping_and_ignore_index(small_dataset: Path) -> None:
    describe(small_dataset, names=["disc", "box"], label_mapping={0: 255, 2: 0})
    dataset = open_dataset(small_dataset)
    ids = dataset.read(dataset.samples[0])[1]
    assert set(np.unique(ids)) <= {0, 1, 255}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "."),
        ({"names": {0: "a", 2: "b"}}, r"no name for \[1\]"),
        ({"train": "images/nowhere"}, "nowhere: there is no such folder of images"),
        ({"masks_dir": "labels"}, "labels/train: there is no such folder of masks"),
        ({"nmaes": []}, "unknown keys: nmaes"),
        ({"nc": 7}, "nc is 7, but there are 3 names"),
        ({"channels": "many"}, "channels must be a number of at least 1, not 'many'"),
        ({"names": ["a", "a", "b"]}, "two classes have the name 'a'"),
        ({"palette": [[300, 0, 0]] * 3}, "three integers from 0 to 255"),
        ({"train": None}, "has no split 'train'"),
        ({"label_mapping": {0: 9}}, "sends the value 0 to class 9"),
    ],
)
def test_wrong_descriptions(small_dataset: Path, changes: dict, message: str) -> None:
    describe(small_dataset, **changes)
    with pytest.raises(DatasetError, match=message):
        open_dataset(small_dataset)


def test_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a data set: it needs"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="not a data set: it needs"):
        splits(tmp_path)
    with pytest.raises(DatasetError, match="no such data set"):
        open_dataset(tmp_path / "gone")
    (tmp_path / "dataset.yaml").write_text("names: [")
    with pytest.raises(DatasetError, match="not readable as YAML"):
        open_dataset(tmp_path)


def test_reading_refuses_what_training_must_not_see(small_dataset: Path) -> None:
    mask = small_dataset / "masks/train/00.png"
    values = np.array(Image.open(mask))
    values[0, :5] = 151
    Image.fromarray(values).save(mask)
    dataset = open_dataset(small_dataset)
    with pytest.raises(DatasetError, match=r"00.png: values outside the classes: 151 \(5 pixels\)"):
        dataset.read(dataset.samples[0])
    Image.fromarray(values[:-1]).save(mask)
    with pytest.raises(DatasetError, match="the mask is 64 x 47 pixels, its image 64 x 48"):
        dataset.read(dataset.samples[0])


@pytest.mark.parametrize("name", ["camvid", "parsing"])
def test_the_real_data_sets_open(shared_data: Path, name: str) -> None:
    dataset = open_dataset(shared_data / name, "val")
    assert len(dataset) in (100, 101)
    assert len(dataset.classes) == 11
    dataset.read(dataset.samples[0])
