from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import draw_dataset
from segformer.data.check import check_split
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset, splits
from segformer.image import turn_upright


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
        ({"channels": "many"}, "channels must be a number of at least 1 or a list"),
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


class TestNamesOfMasks:
    def rename(self, root: Path, form: str) -> Path:
        for file in sorted((root / "masks").rglob("*.png")):
            file.rename(file.with_name(form.format(file.stem)))
        return root

    def test_a_suffix(self, small_dataset: Path) -> None:
        self.rename(small_dataset, "{}_mask.png")
        with pytest.raises(DatasetError, match=r"masks like 00_mask.png; .* mask_suffix: _mask"):
            open_dataset(small_dataset)
        describe(small_dataset, mask_suffix="_mask")
        dataset = open_dataset(small_dataset)
        assert {s.mask.name for s in dataset} == {f"{i:02}_mask.png" for i in range(6)}
        assert dataset.stray_masks == ()

    def test_a_pattern(self, small_dataset: Path) -> None:
        self.rename(small_dataset, "{}_gt.png")
        describe(small_dataset, masks_dir=None, masks="masks/{split}/{stem}_gt.png")
        for split in ("train", "val"):
            dataset = open_dataset(small_dataset, split)
            assert all(s.mask == small_dataset / f"masks/{split}/{s.image.stem}_gt.png"
                       for s in dataset)  # fmt: skip
        nested = small_dataset / "images/train/a/b"
        nested.mkdir(parents=True)
        (small_dataset / "images/train/00.png").rename(nested / "00.png")
        other = small_dataset / "masks/train/a/b"
        other.mkdir(parents=True)
        (small_dataset / "masks/train/00_gt.png").rename(other / "00_gt.png")
        describe(small_dataset, masks="masks/{split}/{parent}/{stem}_gt.png")
        dataset = open_dataset(small_dataset)
        assert dataset.has_masks
        assert all(sample.mask is not None for sample in dataset)

    def test_masks_beside_their_images(self, small_dataset: Path) -> None:
        self.rename(small_dataset, "{}_mask.png")
        for split in ("train", "val"):
            for file in sorted((small_dataset / "masks" / split).iterdir()):
                file.rename(small_dataset / "images" / split / file.name)
            (small_dataset / "masks" / split).rmdir()
        with pytest.raises(DatasetError) as caught:
            open_dataset(small_dataset)
        pattern = "images/{split}/{parent}/{stem}_mask.png"
        assert f'masks: "{pattern}"' in str(caught.value)
        describe(small_dataset, masks_dir=None, masks=pattern)
        dataset = open_dataset(small_dataset)
        assert len(dataset) == 6
        assert all(sample.mask.stem == f"{sample.image.stem}_mask" for sample in dataset)
        describe(small_dataset, masks=None, masks_dir="images", mask_suffix="_mask")
        assert open_dataset(small_dataset).samples == dataset.samples
        describe(small_dataset, mask_suffix=None)
        with pytest.raises(DatasetError, match="images and masks would be read from the same"):
            open_dataset(small_dataset)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"masks": "masks/{name}.png"}, r"must hold \{stem\}"),
            ({"masks": "masks/{stem"}, "is not a pattern"),
            ({"masks": "masks/{stem}_gt"}, "must end with the suffix of the masks"),
            ({"masks": "m/{stem}.png", "mask_suffix": "_a"}, "masks replaces masks_dir"),
            ({"mask_suffix": 3}, "mask_suffix must be of type str, not 3"),
            ({"allow_missing_classes": "maybe"}, "allow_missing_classes must be of type bool"),
            ({"train": ["a", "b"]}, "train must be of type str"),
            ({"palette": {"star": [1, 2, 3]}}, "palette: there is no class 'star'"),
            ({"palette": {"box": [1, 2, 3], "disc": [1, 2, 3]}}, "two classes have the color"),
            ({"\x1b[2J": 1}, r"unknown keys: \?\[2J"),
        ],
    )
    def test_wrong_entries(self, small_dataset: Path, entries: dict, message: str) -> None:
        describe(small_dataset, masks_dir=None, **entries)
        with pytest.raises(DatasetError, match=message):
            open_dataset(small_dataset)

    def test_two_masks_for_one_image(self, small_dataset: Path) -> None:
        mask = small_dataset / "masks/train/03.png"
        Image.open(mask).save(mask.with_suffix(".tif"))
        with pytest.raises(DatasetError, match=r"03.png and .*03.tif: several masks for the"):
            open_dataset(small_dataset)


def test_hidden_files_are_no_data(small_dataset: Path) -> None:
    before = open_dataset(small_dataset)
    for kind in ("images", "masks"):
        folder = small_dataset / kind / "train"
        (folder / ".ipynb_checkpoints").mkdir()
        Image.open(folder / "00.png").save(folder / ".ipynb_checkpoints" / "00-checkpoint.png")
        (folder / "._00.png").write_bytes(b"resource fork")
        (folder / "__MACOSX").mkdir()
        Image.open(folder / "00.png").save(folder / "__MACOSX" / "00.png")
        (folder / "Thumbs.db").write_bytes(b"")
    assert open_dataset(small_dataset) == before


def test_a_hidden_folder_may_hold_the_data_set(tmp_path: Path) -> None:
    assert len(open_dataset(draw_dataset(tmp_path / ".cache" / "d"))) == 6


@pytest.mark.parametrize("folder", ["images/train", "train"])
def test_absolute_paths(tmp_path: Path, folder: str) -> None:
    root = draw_dataset(tmp_path / "d")
    if folder == "train":
        (root / "images/train").rename(root / "train")
    describe(root, train=str(root / folder))
    (sample, *_) = open_dataset(root).samples
    assert sample.image == root / folder / "00.png"
    assert sample.mask == root / "masks/train/00.png"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dataset.yaml").write_text((root / "dataset.yaml").read_text())
    (sample, *_) = open_dataset(elsewhere).samples if folder != "train" else (sample,)
    assert sample.mask == root / "masks/train/00.png"


class TestOrientation:
    """An image of a disc on the right, and its mask, stored with every EXIF orientation."""

    @pytest.fixture
    def upright(self) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[:48, :64]
        mask = ((x - 50) ** 2 + (y - 10) ** 2 < 64).astype(np.uint8)
        return np.repeat(200 * mask[:, :, None], 3, 2), mask

    def store(
        self, root: Path, image: np.ndarray, mask: np.ndarray, orientation: int, mask_exif: bool
    ) -> np.ndarray:
        for kind, values in (("images", image), ("masks", mask)):
            exif = Image.Exif()
            if kind == "images" or mask_exif:
                exif[0x0112] = orientation
            (root / kind / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(values)).save(
                root / kind / "train/a.png", exif=exif
            )
        dataset = open_dataset(root)
        read, ids = dataset.read(dataset.samples[0])
        return (read[:, :, 0] > 100) == (ids == 1)

    def stored(self, values: np.ndarray, orientation: int) -> np.ndarray:
        """What `turn_upright` turns into ``values``."""
        inverse = {6: 8, 8: 6}.get(orientation, orientation)
        return turn_upright(values, inverse)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mask_exif", [True, False])
    def test_a_mask_stored_like_its_image(
        self, tmp_path: Path, upright: tuple, orientation: int, mask_exif: bool
    ) -> None:
        if orientation in (2, 3, 4) and not mask_exif:
            pytest.skip("sizes cannot tell: reported by data check")
        image, mask = (self.stored(values, orientation) for values in upright)
        assert self.store(tmp_path, image, mask, orientation, mask_exif).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_mask_drawn_on_the_upright_image(
        self, tmp_path: Path, upright: tuple, orientation: int
    ) -> None:
        image = self.stored(upright[0], orientation)
        assert self.store(tmp_path, image, upright[1], orientation, False).all()


WORDS = st.text(st.characters(exclude_characters="/.~"), max_size=8)
"""Not paths, which could lead anywhere."""

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.sampled_from([10**30, -(10**30), 2**31, 2**63, float("inf"), float("nan"), 1.5]),
    WORDS,
    st.lists(st.integers(-9, 300), max_size=4),
    st.lists(st.lists(st.integers(-9, 300), max_size=4), max_size=4),
    st.dictionaries(
        st.one_of(st.integers(-1, 3), WORDS, st.none()),
        st.one_of(st.integers(-(10**20), 10**20), WORDS, st.none()),
        max_size=3,
    ),
)
KEYS = (
    "path train val masks_dir masks mask_suffix ignore_index names nc label_mapping palette "
    "channels allow_missing_classes"
).split()


@settings(max_examples=100, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), ODD, min_size=1, max_size=3))
def test_any_entries_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict
) -> None:
    root = tmp_path_factory.getbasetemp() / "any_entries"
    if not root.exists():
        draw_dataset(root, train=2, val=1)
        (root / "dataset.yaml").rename(root / "good.yaml")
    entries = yaml.safe_load((root / "good.yaml").read_text())
    entries.update(changes)
    (root / "dataset.yaml").write_text(yaml.safe_dump(entries))
    with suppress(ValueError, OSError):
        check_split(open_dataset(root))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        open_dataset(file)
