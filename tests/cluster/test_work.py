"""Lists, ranges and the work of one worker, without Ray."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformer import Predictor, SegFormer
from segformer.prediction.batch import predict_files
from segformer.prediction.listing import find_images

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from segformer.cluster import manifest, storage
from segformer.cluster.manifest import (
    Part,
    Unit,
    find_done,
    find_parts,
    list_sources,
    read_part,
    read_table,
    remaining_units,
    write_parts,
)
from segformer.cluster.options import ClusterOptions
from segformer.cluster.storage import STATE, StorageRefused, Unreachable, join
from segformer.cluster.work import Outputs, read_remotely, run_unit
from segformer.prediction.writing import DiskFull


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for name in ("a.jpg", "a.png", "b/c.png", "b/.hidden.png", "b/e.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 0, 0)).save(path)
    (folder / "b" / "d.jpg").write_text("broken")
    return folder


@pytest.fixture
def predictor(tiny_model: SegFormer) -> Predictor:
    predictor = Predictor(tiny_model, size=(32, 32), device="cpu")
    read_remotely(predictor)
    return predictor


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0)


def outputs(out: str | Path) -> Outputs:
    return Outputs(str(out), overlay=True, confidence=False, multilabel=False)


def prepare(source: str, out: str) -> list[Unit]:
    parts = write_parts(list_sources([source], out), out)
    return [unit for part in parts for unit in remaining_units(part, (), 100)]


def test_units_cover_what_is_not_done_exactly() -> None:
    part = Part(7, 1050)
    units = list(remaining_units(part, (), 100))
    assert [len(unit) for unit in units] == [100] * 10 + [50]
    done = [(300, 400), (0, 100), (150, 175), (1000, 1050)]
    left = [(unit.start, unit.stop) for unit in remaining_units(part, done, 100)]
    assert left[:4] == [(100, 150), (175, 200), (200, 300), (400, 500)]
    covered = np.zeros(1050, int)
    for start, stop in [*left, *done]:
        covered[start:stop] += 1
    assert (covered == 1).all()
    first, second = units[-1].halves()
    assert (first.start, first.stop, second.start, second.stop) == (1000, 1025, 1025, 1050)
    assert not list(remaining_units(part, [(0, 1050)], 100))


def test_names_are_listed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PART_NAMES", 1000)
    names = ((f"s3://bucket/{i:07}.jpg", f"{i:07}") for i in range(2500))
    out = str(tmp_path / "out")
    parts = list(write_parts(names, out))
    assert [part.count for part in parts] == [1000, 1000, 500]
    assert find_parts(out) == parts
    assert read_part(out, parts[1], 10, 12) == [
        ("s3://bucket/0001010.jpg", "0001010"),
        ("s3://bucket/0001011.jpg", "0001011"),
    ]
    more = [("s3://bucket/0000001.jpg", "0000001"), ("s3://bucket/new.jpg", "new")]
    (new,) = write_parts(more, out, existing=parts)
    assert new == Part(3, 1)
    assert read_part(out, new) == [("s3://bucket/new.jpg", "new")]


def test_names_are_those_of_one_machine(album: Path, tmp_path: Path) -> None:
    listed = dict(list_sources([str(album)], str(tmp_path / "out")))
    assert listed == {str(job.image): job.name for job in find_images([album])}
    some = dict(list_sources([str(album / "a.jpg"), str(album / "b" / "*.png")], ""))
    assert sorted(some.values()) == ["a", "c"]
    both = dict(list_sources([str(album), str(album / "b")], ""))
    assert both[str(album / "b" / "c.png")] in ("album/b/c", "b/c")
    (tmp_path / "empty").mkdir()
    for sources, message in (
        ([tmp_path / "empty"], "no images in this folder"),
        ([album / "*.tiff"], "no image matches"),
        ([album / "a.jpg", album / "b" / ".." / "a.jpg"], "two images are called"),
        ([album, tmp_path / "x" / "album"], "two folders have the same name"),
    ):
        (tmp_path / "x" / "album").mkdir(parents=True, exist_ok=True)
        with pytest.raises(ValueError, match=message):
            list(list_sources([str(source) for source in sources], ""))


def test_a_list_of_images_as_parquet(album: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "images.parquet"
    pq.write_table(pa.table({"uri": ["s3://b/x/a.jpg"]}), path)
    assert list(list_sources([str(path)], "")) == [("s3://b/x/a.jpg", "b/x/a.jpg")]
    pq.write_table(pa.table({"uri": ["s3://b/x/a.jpg"], "name": ["1"]}), path)
    assert list(list_sources([str(path)], "")) == [("s3://b/x/a.jpg", "1")]
    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(ValueError, match="needs a column uri"):
        list(list_sources([str(path)], ""))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_unit_gives_what_one_machine_gives(
    album: Path, tmp_path: Path, predictor: Predictor, kind: str
) -> None:
    out = str(tmp_path / "out") if kind == "local" else "memory://unit/out"
    (unit,) = prepare(str(album), out)
    result = run_unit(predictor, outputs(out), unit)
    assert (result.done, result.skipped, len(result.failed)) == (4, 0, 1)
    assert f"{album}/b/d.jpg: not an image in a known format" == result.failed[0]["error"]
    predictor.reader = None
    single = predict_files(predictor, find_images([album]), tmp_path / "single")
    for row in single.images:
        for file in row["files"]:
            assert storage.read_bytes(join(out, file)) == (tmp_path / "single" / file).read_bytes()
    rows = {row["image"]: row for row in read_table(join(out, unit.summary)).to_pylist()}
    assert len(rows) == 5
    for row in single.images:
        found = rows[row["image"]]
        assert dict(found["class_fractions"]) == row["class_fractions"]
        assert found["files"] == row["files"]


def test_an_interrupted_unit_does_what_is_missing(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    out = str(tmp_path / "out")
    (unit,) = prepare(str(album), out)
    run_unit(predictor, outputs(out), unit)
    expected = sorted(read_table(join(out, unit.summary)).to_pylist(), key=lambda r: r["image"])
    for state in ("complete", "no summary"):
        if state == "no summary":
            (tmp_path / "out" / unit.summary).unlink()
        (tmp_path / "out" / "b" / "c_overlay.jpg").unlink()
        before = (tmp_path / "out" / "b" / "c.png").stat().st_mtime_ns
        result = run_unit(predictor, outputs(out), unit)
        assert (result.done, result.skipped) == (1, 3)
        assert (tmp_path / "out" / "b" / "c.png").stat().st_mtime_ns == before
        rows = sorted(read_table(join(out, unit.summary)).to_pylist(), key=lambda r: r["image"])
        assert rows == expected


def test_failures_are_tried_again(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = str(tmp_path / "out")
    (unit,) = prepare(str(album), out)
    run_unit(predictor, outputs(out), unit)
    assert find_done(out) == {}
    assert find_done(out, retry_failed=False) == {0: [(0, 5)]}
    Image.new("RGB", (40, 30)).save(album / "b" / "d.jpg")
    result = run_unit(predictor, outputs(out), unit)
    assert (result.done, result.skipped, result.failed) == (1, 4, [])
    assert find_done(out) == {0: [(0, 5)]}


class Broken:
    """A file system whose first calls fail."""

    protocol = "broken"

    def __init__(self, error: Exception, failures: int) -> None:
        self.error, self.left = error, failures

    def cat_file(self, path: str) -> bytes:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return b"content"


class NoCredentialsError(Exception):
    """Named as that of botocore."""


@pytest.mark.usefixtures("no_delay")
@pytest.mark.parametrize(
    ("error", "failures", "raised", "message"),
    [
        (ConnectionError("reset"), 3, None, ""),
        (ConnectionError("reset"), 9, Unreachable, "cannot be read after 4 attempts .*reset"),
        (FileNotFoundError(), 9, Unreachable, "x: no such file"),
        (PermissionError("denied"), 1, Unreachable, "cannot be read .denied"),
        (NoCredentialsError("none"), 9, StorageRefused, "no credentials .*on each machine"),
        (OSError(errno.ENOSPC, "full"), 9, DiskFull, "no space left.*run the same command again"),
    ],
)
def test_errors_of_storage(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    failures: int,
    raised: type[Exception] | None,
    message: str,
) -> None:
    broken = Broken(error, failures)
    monkeypatch.setattr(storage, "resolve", lambda uri: (broken, "x"))
    if raised is None:
        assert storage.read_bytes("broken://x") == b"content"
        return
    with pytest.raises(raised, match=message):
        storage.read_bytes("broken://x")
    assert broken.left == failures - (4 if "attempts" in message else 1)


@pytest.mark.parametrize("error", [DiskFull("full"), StorageRefused("no access")])
def test_errors_that_end_a_run(
    album: Path,
    tmp_path: Path,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    out = str(tmp_path / "out")
    (unit,) = prepare(str(album), out)
    write, written = storage.write_bytes, []

    def fail(uri: str, data: bytes) -> None:
        written.append(uri)
        if len(written) > 5:  # two files of each image
            raise error
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail)
        with pytest.raises(type(error)):
            run_unit(predictor, outputs(out), unit)
    assert find_done(out) == {}
    result = run_unit(predictor, outputs(out), unit)
    assert result.done + result.skipped == 4
    assert result.skipped >= 1


def test_unknown_file_systems_and_options() -> None:
    with pytest.raises(ValueError, match="nowhere://x"):
        storage.read_bytes("nowhere://x")
    for options in ({"workers": 0}, {"images_per_unit": 0}, {"gpus_per_worker": -1}):
        with pytest.raises(ValueError, match="must"):
            ClusterOptions(**options)  # type: ignore[arg-type]
    assert manifest.PART_NAMES % ClusterOptions().images_per_unit == 0


def test_the_output_folder_is_not_searched(album: Path, predictor: Predictor) -> None:
    out = str(album / "out")
    (unit,) = prepare(str(album), out)
    run_unit(predictor, outputs(out), unit)
    assert (album / "out" / STATE).is_dir()
    assert len(list(list_sources([str(album)], out))) == 5


def test_images_over_http(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(album)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    out = str(tmp_path / "out")
    parts = write_parts(list_sources([f"{base}/a.jpg", f"{base}/gone.jpg"], out), out)
    (unit,) = (unit for part in parts for unit in remaining_units(part, (), 100))
    result = run_unit(predictor, outputs(out), unit)
    server.shutdown()
    server.server_close()
    assert result.done == 1
    assert result.failed[0]["error"] == f"{base}/gone.jpg: no such file"
