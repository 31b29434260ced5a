import os
from pathlib import Path

import pytest

from segformer import files
from segformer.files import (
    OutputExists,
    check_replaceable,
    check_replaceable_folder,
    whole_file,
    write_json,
)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with whole_file(target) as partial:
        partial.write_text("first")
        assert partial.suffix == ".txt"
        assert partial.name.startswith(".partial-")
        assert not target.exists()
    assert target.read_text() == "first"
    with pytest.raises(RuntimeError), whole_file(target) as partial:
        partial.write_text("sec")
        raise RuntimeError
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "a.bin") as partial:
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT, 0o600))
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Müller"})
    assert "Müller" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_files_are_flushed_through_a_writable_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    flushed = []

    def fsync(handle: int) -> None:  # Windows raises EBADF for a handle opened for reading
        flushed.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "a.json", {})
    assert flushed == [os.O_RDWR]


def test_a_target_that_is_open_elsewhere_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = os.replace, [PermissionError(13, "in use"), PermissionError(13, "in use")]

    def replace(source: Path, target: Path) -> None:
        if failures:
            raise failures.pop()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").is_file()
    failures.extend(PermissionError(13, "in use") for _ in range(20))
    with pytest.raises(PermissionError, match=r"open in another program.*b\.json"):
        write_json(tmp_path / "b.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_existing_files_are_refused_by_name(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c", "d")]
    check_replaceable(paths, overwrite=False)
    paths[1].touch()
    with pytest.raises(OutputExists, match=r"b already exists; .*--overwrite"):
        check_replaceable(paths, overwrite=False)
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    for path in (paths[0], paths[3]):
        path.touch()
    with pytest.raises(OutputExists, match=r"a, .*b, .*c and 1 more already exist"):
        check_replaceable(paths, overwrite=False)
    check_replaceable(paths, overwrite=True)


def test_only_folders_of_the_same_command_are_replaced(tmp_path: Path) -> None:
    check_replaceable_folder(tmp_path / "new", "record.json", overwrite=False)
    check_replaceable_folder(tmp_path, "record.json", overwrite=False)  # empty
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"has no record\.json"):
        check_replaceable_folder(tmp_path, "record.json", overwrite=True)
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(OutputExists, match="already exists"):
        check_replaceable_folder(tmp_path, "record.json", overwrite=False)
    check_replaceable_folder(tmp_path, "record.json", overwrite=True)
