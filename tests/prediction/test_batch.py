import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer import Predictor, SegFormer
from segformer.prediction.batch import find_images, predict_files


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for name in ("a.jpg", "a.png", "b/c.png", "b/d.webp", "notes.txt", ".hidden.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("not an image")
        else:
            Image.new("RGB", (40, 30), (200, 0, 0)).save(path)
    return folder


def test_folders_keep_their_folders_and_equal_stems_their_suffix(album: Path) -> None:
    jobs = find_images([album])
    assert [job.name for job in jobs] == ["a.jpg", "a.png", "b/c", "b/d"]


def test_patterns_files_and_repetitions(album: Path) -> None:
    jobs = find_images([str(album / "**" / "*.png"), album / "a.png", album / "a.jpg"])
    assert sorted(job.image.name for job in jobs) == ["a.jpg", "a.png", "c.png"]
    with pytest.raises(ValueError, match="no image matches this pattern"):
        find_images([str(album / "*.tiff")])
    (album / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in this folder"):
        find_images([album / "empty"])


def test_names_of_two_folders_do_not_collide(album: Path) -> None:
    (album / "x").mkdir()
    (album / "x" / "a.jpg").write_bytes((album / "a.jpg").read_bytes())
    names = [job.name for job in find_images([album / "a.jpg", album / "x" / "a.jpg"])]
    assert len(set(names)) == 2


def test_a_broken_file_costs_only_itself(
    album: Path, tiny_model: SegFormer, tmp_path: Path
) -> None:
    (album / "b" / "bad.jpg").write_bytes((album / "a.jpg").read_bytes()[:200])
    (album / "b" / "16-bit.png").parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((30, 40), 40000, np.uint16)).save(album / "b" / "16-bit.png")
    predictor = Predictor(tiny_model, size=(32, 32), device="cpu")
    jobs = [*find_images([album]), *find_images(["gone.jpg"])]
    seen = []
    result = predict_files(predictor, jobs, tmp_path / "out", on_image=lambda: seen.append(1))
    assert len(seen) == len(jobs) == 7
    assert [Path(row["image"]).name for row in result.failed] == ["bad.jpg", "gone.jpg"]
    assert "gone.jpg: no such file" in result.failed[1]["error"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["images"]) == 5
    for row in summary["images"]:
        assert sum(row["class_fractions"].values()) == pytest.approx(1, abs=1e-4)
        ids = np.asarray(Image.open(tmp_path / "out" / row["files"][0]))
        assert ids.shape == (row["height"], row["width"]) == (30, 40)
    assert (tmp_path / "out" / "b" / "c_overlay.jpg").exists()


def test_images_that_are_not_inputs_are_spared_too(album: Path, tiny_model: SegFormer) -> None:
    before = (album / "a.png").read_bytes()
    predictor = Predictor(tiny_model, size=(32, 32), device="cpu")
    result = predict_files(predictor, find_images([album / "a.jpg"]), album)
    assert "a.png: is among the images" in result.failed[0]["error"]
    assert (album / "a.png").read_bytes() == before


def test_a_folder_named_like_a_image(album: Path) -> None:
    (album / "b" / "folder.jpg").mkdir()
    assert len(find_images([album / "b"])) == 2


def test_results_beside_the_images_spare_the_images(album: Path, tiny_model: SegFormer) -> None:
    before = (album / "b" / "c.png").read_bytes()
    predictor = Predictor(tiny_model, size=(32, 32), device="cpu")
    result = predict_files(predictor, find_images([album / "b"]), album / "b")
    assert (album / "b" / "c.png").read_bytes() == before
    assert "c.png: is among the images" in result.failed[0]["error"]
    assert [Path(row["image"]).name for row in result.images] == ["d.webp"]
