import os
from pathlib import Path

import pytest

from segformer.files import whole_file, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with whole_file(target) as partial:
        partial.write_text("first")
        assert partial.suffix == ".txt"
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
