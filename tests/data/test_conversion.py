"""Conversion and tiling: what is read back is what was read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from conftest import draw_dataset
from layout_samples import columns, write_image, write_mask
from segformer.classes import ClassSet
from segformer.data import conversion
from segformer.data.conversion import convert
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.opening import open_dataset
from segformer.data.options import SourceOptions
from segformer.data.pairing import Sample
from segformer.data.run_lengths import encode
from segformer.data.source import open_parts
from segformer.data.tiling import tile, tile_starts
from segformer.files import OutputExists

NONE = SourceOptions()


def class_names(dataset: Dataset, sample: Sample) -> np.ndarray:
    """Names of the classes of a mask, (H, W)."""
    _, ids = dataset.read(sample)
    ignored = dataset.classes.ignore_index
    table = np.full(max(ignored, len(dataset.classes)) + 1, "ignored", object)
    table[: len(dataset.classes)] = dataset.classes.names
    return table[ids]


def assert_same_masks(before: Dataset, after: Dataset) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert Path(new.name).name == Path(old.name).name
        assert new.image.read_bytes() == old.image.read_bytes()
        assert (class_names(before, old) == class_names(after, new)).all()


@pytest.mark.parametrize("form", ["masks", "coco"])
def test_all_masks_are_identical_when_read_back(
    small_dataset: Path, tmp_path: Path, form: conversion.Format
) -> None:
    seen = []
    done = convert(
        open_parts(small_dataset, NONE),
        tmp_path / "out",
        format=form,
        on_sample=lambda: seen.append(1),
    )
    assert done.images == {"train": 6, "val": 2}
    assert (len(seen), done.skipped) == (8, [])
    assert bool(done.notes) == (form == "coco")
    for split in ("train", "val"):
        assert_same_masks(open_dataset(small_dataset, split), open_dataset(tmp_path / "out", split))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("layout", ["cityscapes", "coco_stuff164k", "VOCdevkit"])
@pytest.mark.parametrize("form", ["masks", "coco"])
def test_genuine_layouts_are_converted(
    shared_data: Path, tmp_path: Path, layout: str, form: conversion.Format
) -> None:
    parts = open_parts(shared_data / "layouts" / layout, NONE)
    few = [Dataset(**{**vars(part), "samples": part.samples[:2]}) for part in parts]
    convert(few, tmp_path / "out", format=form)
    for part in few:
        assert_same_masks(part, open_dataset(tmp_path / "out", part.split))


def test_more_than_256_classes_and_another_ignore_index(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_image(source / "images/train/a.jpg")
    mask = columns(0, 1, 2).astype(np.uint16) * 140
    mask[0] = 9999
    (source / "masks/train").mkdir(parents=True)
    Image.fromarray(mask).save(source / "masks/train/a.png")
    names = {i: f"c{i}" for i in range(300)}
    text = {"train": "images/train", "names": names, "ignore_index": 9999}
    (source / "dataset.yaml").write_text(
        yaml.safe_dump({**text, "allow_missing_classes": True}), encoding="utf-8"
    )
    convert(open_parts(source, NONE), tmp_path / "out")
    written = np.asarray(Image.open(tmp_path / "out/masks/train/a.png"))
    assert written.dtype == np.uint16
    assert (written == mask).all()
    assert_same_masks(open_dataset(source), open_dataset(tmp_path / "out"))


def test_unreadable_files_are_skipped_and_listed(small_dataset: Path, tmp_path: Path) -> None:
    (small_dataset / "images/train/02.png").write_bytes(b"broken")
    (small_dataset / "masks/train/03.png").unlink()
    done = convert(open_parts(small_dataset, NONE), tmp_path / "out")
    assert done.images == {"train": 4, "val": 2}
    assert [message.partition(": ")[0][-6:] for message in done.skipped] == ["02.png", "03.png"]
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert record["skipped"] == done.skipped
    assert len(open_dataset(tmp_path / "out")) == 4


def test_images_that_differ_by_suffix_and_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("a.jpg", "a.png"):
        write_image(source / name)
    mask = write_mask(source / "mask.png", columns(0, 1))
    samples = tuple(Sample(name, source / name, mask) for name in ("a.jpg", "a.png"))
    dataset = Dataset(source, "all", samples, ClassSet(("background", "water")))
    convert([dataset], tmp_path / "out", link=True)
    written = open_dataset(tmp_path / "out")
    assert [sample.name for sample in written] == ["a.jpg", "a_2.png"]
    assert written.samples[0].image.samefile(source / "a.jpg")


def test_nothing_is_replaced_that_was_not_written_here(small_dataset: Path, tmp_path: Path) -> None:
    parts, out = open_parts(small_dataset, NONE), tmp_path / "out"
    convert(parts, out)
    with pytest.raises(OutputExists, match="pass --overwrite"):
        convert(parts, out)
    (out / "masks/train/extra.png").touch()
    convert(parts, out, overwrite=True)
    assert not (out / "masks/train/extra.png").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match="holds other files"):
        convert(parts, out, overwrite=True)
    with pytest.raises(ValueError, match="the source"):
        convert(parts, tmp_path, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_stopped_conversion_leaves_what_was_there(
    small_dataset: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    parts, out = open_parts(small_dataset, NONE), tmp_path / "out"

    def stop() -> None:
        raise error

    with pytest.raises(error):
        convert(parts, out, on_sample=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shapes"]
    convert(parts, out)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    with pytest.raises(error):
        convert(parts, out, overwrite=True, on_sample=stop)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shapes"]


def test_nothing_to_convert(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "d")
    for file in root.rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"none of its images .* the first error: .*00.png"):
        convert([open_dataset(root)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_run_lengths_are_those_of_coco() -> None:
    """Strings of pycocotools 2.0.11, encode(np.asfortranarray(mask))["counts"]."""
    mask = np.zeros((3, 4), bool)
    assert encode(mask) == "<"
    mask[1:, 1] = mask[0, 2] = True
    assert encode(mask) == "435"
    assert encode(~np.zeros((3, 4), bool)) == "0<"


def test_starts_of_tiles_cover_each_side() -> None:
    assert tile_starts(100, 512, 64) == [0]
    assert tile_starts(512, 512, 64) == [0]
    assert tile_starts(1000, 512, 64) == [0, 448, 488]
    assert tile_starts(960, 512, 64) == [0, 448]


def test_tiles_put_together_are_the_image(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "d", size=(50, 70))
    mask = np.array(Image.open(root / "masks/train/00.png"))
    mask[:, 38:] = 255
    Image.fromarray(mask).save(root / "masks/train/00.png")
    done = tile(open_parts(root, NONE), tmp_path / "out", size=32, overlap=8)
    assert done.images == {"train": 6, "val": 2}
    assert done.tiles == {"train": 6 * 6 - 2, "val": 12}
    assert done.unlabeled == 2
    source, tiles = open_dataset(root, "val"), open_dataset(tmp_path / "out", "val")
    image, ids = source.read(source.samples[0])
    together, marked = np.zeros_like(image), np.full_like(ids, 77)
    for sample in tiles:
        name, y, x = sample.image.stem.rsplit("_", 2)
        if name == "00":
            window = np.s_[int(y[1:]) : int(y[1:]) + 32, int(x[1:]) : int(x[1:]) + 32]
            together[window], marked[window] = tiles.read(sample)
    assert (together == image).all()
    assert (marked == ids).all()


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".tif", np.int16), (".tif", np.float32), (".npy", np.uint16)]
)
def test_tiles_keep_channels_and_types(tmp_path: Path, suffix: str, kind: type) -> None:
    root = tmp_path / "d"
    values = (np.random.default_rng(0).normal(0, 999, (40, 50, 5))).astype(kind)
    for folder in ("images/train", "masks/train"):
        (root / folder).mkdir(parents=True)
    if suffix == ".npy":
        np.save(root / "images/train/a.npy", values)
    else:
        tifffile.imwrite(root / "images/train/a.tif", values, photometric="minisblack")
    Image.fromarray((values[:, :, 0] > 0).astype(np.uint8)).save(root / "masks/train/a.png")
    (root / "dataset.yaml").write_text("train: images/train\nnames: [dry, water]\nchannels: 5\n")
    tile(open_parts(root, NONE), tmp_path / "out", size=32, overlap=0)
    tiles = open_dataset(tmp_path / "out")
    assert tiles.channels == 5
    assert [s.name for s in tiles][-1] == f"a_y00008_x00018{suffix}"
    image, ids = tiles.read(tiles.samples[-1])
    assert image.dtype == kind
    assert (image == values[8:, 18:]).all()
    assert (ids == (values[8:, 18:, 0] > 0)).all()


def test_wrong_tiles(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overlap must be from 0 to below size"):
        tile(open_parts(small_dataset, NONE), tmp_path / "out", size=32, overlap=32)
