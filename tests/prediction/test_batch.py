import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer import ClassSet, Predictor, SegFormer
from segformer.files import OutputExists
from segformer.prediction.batch import _Batch, predict_files
from segformer.prediction.listing import find_images
from segformer.prediction.outputs import plan_outputs
from segformer.prediction.writing import _Writing


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


def test_a_folder_named_like_an_image(album: Path) -> None:
    (album / "b" / "folder.jpg").mkdir()
    assert len(find_images([album / "b"])) == 2


@pytest.fixture
def predictor(tiny_model: SegFormer) -> Predictor:
    return Predictor(tiny_model, size=(32, 32), device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("existing", ["d.png", "d_overlay.jpg", "summary.json"])
def test_existing_files_are_not_replaced(
    album: Path, predictor: Predictor, tmp_path: Path, existing: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / existing).write_bytes(b"precious")
    before = contents(out)
    jobs = find_images([album / "b"])
    with pytest.raises(OutputExists, match=f"{existing} already exists.*--skip-existing"):
        predict_files(predictor, jobs, out)
    assert contents(out) == before
    result = predict_files(predictor, jobs, out, overwrite=True)
    assert len(result.images) == 2
    assert contents(out)[existing] != b"precious"


def test_an_image_that_is_read_is_never_replaced(
    album: Path, predictor: Predictor, tmp_path: Path
) -> None:
    before = contents(album)
    for sources, out in (
        ([album / "b"], album / "b"),  # c.png is an image, and would be a label map
        ([album / "x.jpg", album / "x_overlay.jpg"], album),
    ):
        for name in ("x.jpg", "x_overlay.jpg"):
            (album / name).write_bytes(before["a.jpg"])
        jobs = find_images(sources)
        with pytest.raises(OutputExists, match="is one of the images to predict"):
            predict_files(predictor, jobs, out, overwrite=True)
    assert contents(album) == {**before, "x.jpg": before["a.jpg"], "x_overlay.jpg": before["a.jpg"]}


@pytest.mark.parametrize("out", ["predictions", "."])
def test_results_are_not_the_images_of_the_next_run(
    album: Path, predictor: Predictor, caplog: pytest.LogCaptureFixture, out: str
) -> None:
    (album / "a.png").unlink()
    (album / "b" / "c.png").unlink()
    jobs = find_images([album], out=album / out)
    predict_files(predictor, jobs, album / out)
    assert len(contents(album)) == 4 + 5
    with caplog.at_level("INFO"):
        assert find_images([album]) == jobs
    assert "4 results of predictions are skipped" in caplog.text
    assert find_images([album], out=album / out) == jobs
    assert len(find_images([str(album / "**" / "*.*p*")])) == 2
    with pytest.raises(ValueError, match="no image other than results of earlier predictions"):
        find_images([str(album / out / "*_overlay.jpg")])
    (album / "mine").mkdir()
    (album / "mine" / "new.png").write_bytes((album / "a.jpg").read_bytes())
    assert len(find_images([album])) == 3
    assert find_images([album], out=album / "mine") == jobs


def test_results_of_a_killed_run_are_recognized(
    album: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were killed while the first image is written: nothing runs after that."""
    (album / "b" / "c.png").unlink()
    write, written = _Batch._write_summary, []

    def write_once(batch: _Batch, finished: bool) -> None:
        if not written:
            write(batch, finished)
        written.append(finished)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Batch, "_write_summary", write_once)
    monkeypatch.setattr(_Writing, "_finish_first", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, find_images([album]), album)
    assert (album / "a.jpg_overlay.jpg").exists()
    assert json.loads((album / "summary.json").read_text())["images"] == []
    names = [job.name for job in find_images([album])]
    assert names == ["a.jpg", "a.png", "b/d"]


def test_existing_results_are_skipped(album: Path, predictor: Predictor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = find_images([album / "b" / "c.png", album / "a.jpg"])
    predict_files(predictor, first, out)
    before = contents(out)
    (out / "a_overlay.jpg").unlink()
    seen: list[int] = []
    jobs = find_images([album / "b" / "c.png", album / "a.jpg", album / "b" / "d.webp"])
    result = predict_files(
        predictor, jobs, out, skip_existing=True, on_image=lambda: seen.append(1)
    )
    assert len(seen) == 3
    assert result.skipped == 1
    after = contents(out)
    assert {name: after[name] for name in before if name != "summary.json"} == {
        name: data for name, data in before.items() if name != "summary.json"
    }
    summary = json.loads(after["summary.json"])
    assert summary["finished"]
    assert [Path(row["image"]).name for row in summary["images"]] == ["c.png", "a.jpg", "d.webp"]
    assert summary["images"][0]["class_fractions"]
    assert [row.get("skipped", False) for row in summary["images"]] == [True, False, False]
    with pytest.raises(ValueError, match=r"a\.png holds results of .*a\.jpg, not of .*a\.png"):
        predict_files(predictor, find_images([album / "a.png"]), out, skip_existing=True)
    (album / "e.png").write_bytes((album / "a.png").read_bytes())
    predict_files(predictor, find_images([album / "e.png"]), out, skip_existing=True)
    assert len(json.loads((out / "summary.json").read_text())["images"]) == 4


def test_existing_results_of_other_classes_are_not_mixed_in(
    album: Path, predictor: Predictor, tmp_path: Path, tiny_model: SegFormer
) -> None:
    predict_files(predictor, find_images([album / "a.jpg"]), tmp_path / "out")
    tiny_model.classes = ClassSet(tuple("abcde"))
    with pytest.raises(ValueError, match="a model with other classes"):
        predict_files(predictor, find_images([album]), tmp_path / "out", skip_existing=True)
    (tmp_path / "out" / "summary.json").write_text("[]")
    with pytest.raises(OutputExists, match=r"summary\.json already exists"):
        predict_files(predictor, find_images([album]), tmp_path / "out", skip_existing=True)
    with pytest.raises(ValueError, match="overwrite or skip_existing, not both"):
        plan_outputs([], tmp_path, overwrite=True, skip_existing=True)


def test_an_interrupted_run_leaves_a_summary_of_what_was_done(
    album: Path, predictor: Predictor, tmp_path: Path
) -> None:
    jobs, done = find_images([album]), []

    def interrupt_after_two() -> None:
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    # One image waits to be written at a time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segformer.prediction.writing.WAITING_WRITES", 0)
        with pytest.raises(KeyboardInterrupt):
            predict_files(predictor, jobs, tmp_path / "out", on_image=interrupt_after_two)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["finished"]
    assert [row["image"] for row in summary["images"]] == [str(job.image) for job in jobs[:2]]
    result = predict_files(predictor, jobs, tmp_path / "out", skip_existing=True)
    assert result.skipped >= 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["finished"]
    assert len(summary["images"]) == len(jobs)
    assert "planned" not in summary


def test_two_images_are_never_written_to_one_file(
    album: Path, tiny_model: SegFormer, tmp_path: Path
) -> None:
    (album / "a_confidence.png").write_bytes((album / "a.png").read_bytes())
    jobs = find_images([album / "a.jpg", album / "a_confidence.png"])
    predictor = Predictor(tiny_model, size=32, confidence=True, device="cpu")
    with pytest.raises(ValueError, match="would both be written to"):
        predict_files(predictor, jobs, tmp_path / "out")
    result = predict_files(predictor, jobs[:1], tmp_path / "out")
    assert result.images[0]["files"] == ["a.png", "a_overlay.jpg", "a_confidence.png"]
    assert 0.2 < result.images[0]["mean_confidence"] <= 1


def test_a_folder_that_cannot_be_written_to_is_found_before_computing(
    album: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(Predictor, "stream", never)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="file"):
        predict_files(predictor, find_images([album]), tmp_path / "file")
    with pytest.raises(ValueError, match="version"):
        predict_files(predictor, find_images([album]), "/proc/version/out")
