from pathlib import Path

import numpy as np
from PIL import Image

from conftest import draw_dataset
from segformer.data.check import check_split
from segformer.data.dataset import open_dataset


def test_a_good_split(small_dataset: Path) -> None:
    seen = []
    report = check_split(open_dataset(small_dataset), lambda: seen.append(1))
    assert report.errors == report.warnings == []
    assert len(seen) == 6
    assert report.sizes == {(48, 64): 6}
    masks = [np.array(Image.open(f)) for f in (small_dataset / "masks/train").iterdir()]
    assert report.pixels.tolist() == [sum((m == c).sum() for m in masks) for c in range(3)]
    assert report.ignored == sum((m == 255).sum() for m in masks)
    assert report.frequencies.sum() == 1


def test_everything_that_can_be_wrong(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "d", train=8)
    images, masks = root / "images/train", root / "masks/train"
    (masks / "00.png").unlink()
    (images / "01.png").unlink()
    Image.new("L", (10, 10)).save(masks / "02.png")
    values = np.array(Image.open(masks / "03.png"))
    values[0, :7], values[1, :2] = 151, 77
    Image.fromarray(values).save(masks / "03.png")
    (images / "04.png").write_bytes((images / "04.png").read_bytes()[:500])
    (masks / "05.png").write_text("not a mask")
    for name in ("06", "07"):
        flat = np.array(Image.open(masks / f"{name}.png"))
        flat[flat == 2] = 0
        Image.fromarray(flat).save(masks / f"{name}.png")
    report = check_split(open_dataset(root))
    assert [error.partition(": ")[0].rpartition("/")[2] for error in report.errors] == [
        "00.png", "02.png", "03.png", "04.png", "05.png",
    ]  # fmt: skip
    assert "there is no mask for this image" in report.errors[0]
    assert "the mask is 10 x 10 pixels, its image 64 x 48" in report.errors[1]
    assert "77 (2 pixels), 151 (7 pixels)" in report.errors[2]
    assert "01.png: no image belongs to this mask" in report.warnings[0]
    assert "class 'disc' never occurs in split 'train'" in report.warnings[1]


def test_nothing_labeled(small_dataset: Path) -> None:
    for mask in (small_dataset / "masks/train").iterdir():
        Image.new("L", (64, 48), 255).save(mask)
    assert check_split(open_dataset(small_dataset)).errors == ["no pixel of any mask is labeled"]
