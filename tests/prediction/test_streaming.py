"""Any number of images: listed while others are computed, summarized line by line."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformer import ClassSet, SegFormer
from segformer.cli import main
from segformer.files import OutputExists
from segformer.prediction.batch import predict_files
from segformer.prediction.listing import find_images, list_images
from segformer.prediction.names import NameSet, result_names
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor
from segformer.prediction.sharding import Shard
from segformer.prediction.streaming import StreamResult, predict_stream
from segformer.prediction.summary_lines import find_lines, read_rows
from segformer.prediction.writing import DiskFull

CLASSES = ClassSet(("sky", "road"))


class FakePredictor:
    """Predicts one pixel of class 1, without reading the image unless its name has "bad" in it."""

    model = SimpleNamespace(classes=CLASSES, config=SimpleNamespace(multilabel=False))
    config = SimpleNamespace(confidence=False)

    def __init__(self) -> None:
        self.taken = 0

    def stream(self, sources: Any, *, on_error: Any, on_windows: Any) -> Iterator[Prediction]:
        pixel = np.ones((1, 1), np.uint8)
        for source in sources:
            self.taken += 1
            if "bad" in source.name:
                on_error(source, ValueError(f"{source}: bad"))
            else:
                yield Prediction(pixel, CLASSES, np.zeros((1, 1, 3), np.uint8), source)


def generate(root: Path, folders: int, files: int) -> None:
    for folder in range(folders):
        inside = root / f"{folder:04}"
        inside.mkdir(parents=True)
        for file in range(files):
            (inside / f"image_{file:06}.jpg").touch()


def stream(source: Path, out: Path, **options: Any) -> StreamResult:
    predictor = options.pop("predictor", FakePredictor())
    jobs = list_images([source], out=out)
    return predict_stream(predictor, jobs, out, sources=[source], overlay=False, **options)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    generate(tmp_path / "album", 3, 4)
    (tmp_path / "album" / "0001" / "bad.jpg").touch()
    return tmp_path / "album"


@pytest.fixture(autouse=True)
def no_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this test's predictions are empty, which is faster than PNG and flushing."""

    def touch(_: Prediction, paths: dict[str, Path]) -> None:
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    monkeypatch.setattr(Prediction, "write", touch)


def test_names_sets_and_repetitions() -> None:
    names = [f"image_{i}.jpg" for i in range(100_000)]
    found = NameSet(names)
    assert all(name in found for name in names)
    assert not any(f"other_{i}.jpg" in found for i in range(100_000))
    assert "a" not in NameSet()
    files = ["a.jpg", "a.png", "A.gif", "b.c.jpg", "b.jpg"]
    assert list(result_names(files)) == ["a.jpg", "a.png", "A.gif", "b.c", "b"]
    assert list(result_names(names)) == [name[:-4] for name in names]


def test_shards_are_disjoint_complete_and_of_about_one_size() -> None:
    names = [f"{i % 100}/image_{i}" for i in range(100_000)]
    shards = [Shard(number, 16) for number in range(1, 17)]
    counts = [sum(name in shard for name in names) for shard in shards]
    assert sum(counts) == len(names)
    assert all(sum(name in shard for shard in shards) == 1 for name in names[:1000])
    assert max(counts) < 1.1 * min(counts)
    assert Shard.parse("3/16") == shards[2]
    for text in ("0/4", "5/4", "1/0", "3", "a/b", "-1/4"):
        with pytest.raises(ValueError, match="shard"):
            Shard.parse(text)


def test_the_share_of_a_name_does_not_change_between_versions() -> None:
    assert [Shard(number, 4) for number in range(1, 5) if "b/c" in Shard(number, 4)] == [
        Shard(4, 4)
    ]


def test_a_folder_is_listed_while_it_is_predicted(tmp_path: Path) -> None:
    generate(tmp_path / "album", 20, 50)
    predictor, seen = FakePredictor(), []
    jobs = iter(list_images([tmp_path / "album"]))
    result = predict_stream(
        predictor,  # type: ignore[arg-type]
        (seen.append(predictor.taken) or job for job in jobs),  # type: ignore[func-returns-value]
        tmp_path / "out",
        sources=[tmp_path / "album"],
        overlay=False,
    )
    assert result.done == 1000
    assert seen == list(range(1000))  # each is listed when those before it have been taken


def test_lists_are_the_same_lazily_and_at_once(album: Path) -> None:
    (album / "0001" / "bad.png").touch()
    (album / "0000" / ".hidden.jpg").touch()
    (album / "top.jpg").touch()
    jobs = list(list_images([album]))
    assert jobs == find_images([album])
    assert [job.name for job in jobs][:2] == ["top", "0000/image_000000"]
    assert [job.name for job in jobs if "bad" in job.name] == ["0001/bad.jpg", "0001/bad.png"]


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """1,000 images, rows and plans in memory would take more than 1 MB."""
    import tracemalloc

    generate(tmp_path / "album", 20, 50)
    stream(tmp_path / "album" / "0000", tmp_path / "before")  # loads modules
    tracemalloc.start()
    stream(tmp_path / "album", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000


def test_every_image_has_a_row(album: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    result = stream(album, tmp_path / "out", on_image=lambda: seen.append(1))
    assert (result.done, result.failed, result.skipped, len(seen)) == (12, 1, 0, 13)
    head, *found, end = rows(tmp_path / "out" / "summary.jsonl")
    assert head["classes"] == ["sky", "road"]
    assert end == {"finished": True, "done": 12, "failed": 1, "skipped": 0}
    assert [row["image"] for row in found if "error" in row] == [str(album / "0001/bad.jpg")]
    row = next(row for row in found if "error" not in row)
    assert row["files"] == ["0000/image_000000.png"]
    assert row["class_fractions"] == {"road": 1.0}
    assert result.failures[0]["error"].endswith("bad.jpg: bad")


def test_the_second_run_does_only_what_is_missing(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stream(album, out)
    (out / "0002" / "image_000001.png").unlink()
    (album / "0001" / "bad.jpg").rename(album / "0001" / "good.jpg")
    (album / "new.jpg").touch()
    predictor = FakePredictor()
    result = stream(album, out, skip_existing=True, predictor=predictor)
    assert predictor.taken == 3
    assert (result.done, result.skipped, result.failed) == (3, 11, 0)
    merged = list(read_rows([out / "summary.jsonl"]))
    assert len(merged) == 15  # the renamed file is still listed under its former name
    assert len({row["image"] for row in merged}) == 15
    with pytest.raises(OutputExists, match=r"summary\.jsonl already exists.*--skip-existing"):
        stream(album, out)


def test_an_image_that_failed_and_then_did_not_has_one_row(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stream(album, out)
    fixed = FakePredictor()
    fixed.stream = lambda sources, **_: (  # type: ignore[method-assign, assignment]
        Prediction(np.ones((1, 1), np.uint8), CLASSES, np.zeros((1, 1, 3), np.uint8), source)
        for source in sources
    )
    assert stream(album, out, skip_existing=True, predictor=fixed).done == 1
    merged = {row["image"]: row for row in read_rows([out / "summary.jsonl"])}
    assert len(merged) == 13
    assert "error" not in merged[str(album / "0001" / "bad.jpg")]


def test_a_killed_run_is_continued(album: Path, tmp_path: Path) -> None:
    """Its last line is not whole, and an image has results but no row."""
    out = tmp_path / "out"
    stream(album, out)
    path = out / "summary.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    done = ["error" not in row for row in read_rows([path])]
    assert len(done) == 4
    result = stream(album, out, skip_existing=True)
    assert (result.done, result.skipped, result.failed) == (0, 12, 1)
    merged = list(read_rows([path]))
    assert len(merged) == 13
    assert sum(row.get("skipped", False) for row in merged) == 12 - sum(done)
    assert all("files" in row for row in merged if "error" not in row)


def test_shards_write_summaries_of_their_own(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = [stream(album, out, shard=Shard(number, 3)) for number in (1, 2, 3)]
    assert sum(result.done for result in results) == 12
    paths = sorted(out.glob("summary*.jsonl"))
    assert [path.name for path in paths] == [
        f"summary-0000{number}-of-00003.jsonl" for number in (1, 2, 3)
    ]
    assert len({row["image"] for row in read_rows(paths)}) == 13


def test_files_that_exist_are_kept_unless_asked(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "0000").mkdir(parents=True)
    precious = out / "0000" / "image_000002.png"
    precious.write_bytes(b"precious")
    result = stream(album, out)
    assert (result.done, result.failed) == (11, 2)
    assert "image_000002.png already exists" in result.failures[0]["error"]
    assert precious.read_bytes() == b"precious"
    assert stream(album, out, overwrite=True).done == 12


def test_refusals_before_anything_is_written(album: Path, tmp_path: Path) -> None:
    for out in (album, album / "..", tmp_path):
        with pytest.raises(ValueError, match="are in this folder; choose another --out"):
            stream(album, out)
    out = tmp_path / "out"
    stream(album, out)
    with pytest.raises(ValueError, match="not of .*0000; choose another"):
        stream(album / "0000", out, skip_existing=True)
    other = FakePredictor()
    other.model = SimpleNamespace(classes=ClassSet(("a",)), config=other.model.config)
    with pytest.raises(ValueError, match="a model with other classes"):
        stream(album, out, skip_existing=True, predictor=other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.jsonl").write_text("mine\n")
    with pytest.raises(OutputExists):
        stream(album, tmp_path / "mine", skip_existing=True)
    with pytest.raises(ValueError, match="not both"):
        stream(album, tmp_path / "new", skip_existing=True, overwrite=True)
    assert not (tmp_path / "new").exists()


def test_results_of_such_a_run_are_no_images(
    album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = find_images([album])
    stream(album, album / "results")
    assert find_lines(album / "results")
    with caplog.at_level("INFO"):
        assert find_images([album]) == before
    assert "results of predictions; the folder is skipped" in caplog.text
    with pytest.raises(ValueError, match="no images in this folder other than results"):
        find_images([album / "results"])


def test_a_full_disk_ends_the_run(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Prediction, paths: dict[str, Path]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Prediction, "write", full)
        with pytest.raises(DiskFull, match="free some space, then continue with --skip-existing"):
            stream(album, tmp_path / "out")
        with pytest.raises(DiskFull):
            predict_files(FakePredictor(), find_images([album]), tmp_path / "few")  # type: ignore[arg-type]
    failed = [row for row in rows(tmp_path / "out" / "summary.jsonl") if "error" in row]
    assert all(row["image"].endswith("bad.jpg") for row in failed)
    assert stream(album, tmp_path / "out", skip_existing=True).done == 12


def test_an_interruption_keeps_the_rows(album: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def interrupt() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(album, tmp_path / "out", on_image=interrupt)
    done = list(read_rows([tmp_path / "out" / "summary.jsonl"]))
    assert len(done) >= 3
    assert stream(album, tmp_path / "out", skip_existing=True).skipped >= 3


def test_a_name_that_could_be_a_confidence(album: Path, tmp_path: Path) -> None:
    (album / "0000" / "image_000000_confidence.jpg").touch()
    predictor = FakePredictor()
    predictor.config = SimpleNamespace(confidence=True)
    result = stream(album, tmp_path / "out", predictor=predictor)
    assert result.failed == 2
    assert "could be the confidence of another image" in result.failures[0]["error"]


def test_parquet(album: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    stream(album, tmp_path / "out", parquet=True)
    table = parquet.read_table(tmp_path / "out" / "summary.parquet").to_pylist()
    assert len(table) == 13
    done = next(row for row in table if row["error"] is None)
    assert done["class_fractions"] == [("road", 1.0)]
    assert sum(row["error"] is not None for row in table) == 1


def test_the_command(
    tmp_path: Path,
    tiny_model: SegFormer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.undo()  # writes real files
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("model")
    for name in ("photos/a.jpg", "photos/b/c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (9, 99, 199)).save(name)
    Path("photos/b/bad.jpg").write_text("bad")
    words = ["predict", "photos", "--model", "model", "--out", "masks"]
    assert main([*words, "--summary", "jsonl"]) == 3
    printed = capsys.readouterr()
    assert "2 of 3 images segmented into masks; see summary.jsonl" in printed.out
    assert "bad.jpg: not an image" in printed.err
    streamed = {row["image"]: row for row in read_rows([Path("masks/summary.jsonl")])}
    assert main([*words, "--skip-existing"]) == 3
    assert "2 of them earlier" in capsys.readouterr().out
    assert main(["predict", "photos", "--model", "model", "--out", "few"]) == 3
    for row in json.loads(Path("few/summary.json").read_text())["images"]:
        assert row == streamed[row["image"]]
        for file in row["files"]:
            assert Path("few", file).read_bytes() == Path("masks", file).read_bytes()
    assert main([*words, "--shard", "1/2", "--summary", "json"]) == 1
    assert "jsonl or parquet, not as json" in capsys.readouterr().err
    assert main([*words[:-1], "few", "--summary", "jsonl", "--skip-existing"]) == 1
    assert "a summary in another format" in capsys.readouterr().err
    codes = [main([*words[:-1], "parts", "--shard", f"{number}/2"]) for number in (1, 2)]
    assert set(codes) <= {0, 1, 3}
    assert len(list(read_rows(Path("parts").glob("summary-*.jsonl")))) == 3
    Path("empty").mkdir()
    assert main(["predict", "empty", "--model", "model", "--out", "e", "--summary", "jsonl"]) == 1
    assert not Path("e").exists()


def test_many_images_are_streamed_without_being_asked(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: SegFormer
) -> None:
    from segformer.cli import predict_many

    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("model")
    monkeypatch.setattr(predict_many, "_FEW", 10)
    monkeypatch.setattr(Predictor, "stream", FakePredictor().stream)
    assert main(["predict", str(album), "--model", "model", "--no-overlay"]) == 3
    assert Path("predictions/summary.jsonl").exists()
    assert not Path("predictions/summary.json").exists()
