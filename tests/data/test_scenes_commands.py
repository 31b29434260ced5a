"""The commands of `segformer data` on data sets of scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
pytest.importorskip("pyogrio", reason="needs the extra geo")
pytest.importorskip("shapely", reason="needs the extra geo")

from scene_samples import draw_pixels, write_scene  # noqa: E402
from segformer.cli import main  # noqa: E402
from segformer.data.opening import open_dataset  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
]


@pytest.fixture(params=[("uint8", 3), ("int16", 5)], ids=["RGB", "five bands"])
def scenes(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A scene whose labels are a raster: the left half is water, ten columns are not labeled."""
    dtype, bands = request.param
    root = tmp_path / "scenes"
    root.mkdir()
    write_scene(root / "scene.tif", draw_pixels(120, 160, bands).astype(dtype))
    labels = np.zeros((120, 160, 1), np.uint8)
    labels[:, :80], labels[:, 150:] = 1, 255
    write_scene(root / "labels.tif", labels)
    description = {
        "scenes": [{"image": "scene.tif", "labels": "labels.tif"}],
        "names": ["dry", "water"],
        "tile_size": 40,
        "block_size": 60,
        "block_gap": 8,
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    return root


def test_check_reads_all_tiles(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(scenes)]) == 0
    printed = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"split {split}: {len(open_dataset(scenes, split))} images of 40x40" in printed
    assert "ready to train" in printed


def test_check_names_the_scene_and_the_value(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rasterio.open(scenes / "labels.tif", "r+") as labels:
        labels.write(np.full((1, 120, 160), 7, np.uint8))
    assert main(["data", "check", str(scenes)]) == 1
    printed = capsys.readouterr()
    assert "labels.tif" in printed.out + printed.err and "7" in printed.out + printed.err


def test_show_draws_the_tiles(scenes: Path, tmp_path: Path) -> None:
    for options in ([], ["--augmented"]):
        path = tmp_path / f"sheet{len(options)}.png"
        assert (
            main(["data", "show", str(scenes), "--out", str(path), "--count", "2", *options]) == 0
        )
        with Image.open(path) as sheet:
            assert np.asarray(sheet).std() > 10


def test_stats_are_those_of_the_pixels(scenes: Path, tmp_path: Path) -> None:
    assert main(["data", "stats", str(scenes), "--out", str(tmp_path / "stats")]) == 0
    stats = json.loads((tmp_path / "stats" / "stats.json").read_text())
    for split in ("train", "val"):
        dataset = open_dataset(scenes, split)
        read = [dataset.read(sample) for sample in dataset]
        pixels = np.concatenate([image.reshape(-1, image.shape[-1]) for image, _ in read])
        assert stats["splits"][split]["channels"]["mean"] == pytest.approx(pixels.mean(0), rel=1e-3)
        ids = np.concatenate([mask.ravel() for _, mask in read])
        counts = [row["pixels"] for row in stats["splits"][split]["class_frequencies"]]
        assert counts == [int((ids == i).sum()) for i in range(2)]


def test_convert_writes_files_of_the_tiles(scenes: Path, tmp_path: Path) -> None:
    assert main(["data", "convert", str(scenes), str(tmp_path / "files")]) == 0
    for split in ("train", "val"):
        ours, files = open_dataset(scenes, split), open_dataset(tmp_path / "files", split)
        assert [sample.name for sample in ours] == [sample.name for sample in files]
        for sample, other in zip(ours, files, strict=True):
            for expected, found in zip(ours.read(sample), files.read(other), strict=True):
                np.testing.assert_array_equal(expected, found)


def test_convert_to_coco(scenes: Path, tmp_path: Path) -> None:
    words = ["data", "convert", str(scenes), str(tmp_path / "coco"), "--format", "coco"]
    assert main(words) == 0
    for split in ("train", "val"):
        file = tmp_path / "coco" / "annotations" / f"instances_{split}.json"
        names = [image["file_name"] for image in json.loads(file.read_text())["images"]]
        assert sorted(names) == sorted(sample.name for sample in open_dataset(scenes, split))


def test_tile_cuts_the_tiles_smaller_only_if_they_are_files(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "tile", str(scenes), str(tmp_path / "tiles")]) == 0
    for split in ("train", "val"):
        tiles = open_dataset(tmp_path / "tiles", split)
        assert len(tiles) == len(open_dataset(scenes, split))
    capsys.readouterr()
    assert main(["data", "tile", str(scenes), str(tmp_path / "small"), "--size", "32"]) == 1
    assert "tile_size" in capsys.readouterr().err
