import os
import stat
import zipfile
from pathlib import Path

import pytest

from segformer.data.errors import DatasetError
from segformer.data.layouts import archive
from segformer.data.layouts.archive import unpacked


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in members.items():
            written.writestr(name, data)
    return path


def test_unpacked_once_beside_itself(tmp_path: Path) -> None:
    path = pack(tmp_path / "straße v1.zip", {"a/b.txt": b"1", "a/leer/": b"", "__MACOSX/x": b"2"})
    folder = unpacked(path)
    assert folder == tmp_path / "straße v1"
    assert (folder / "a/b.txt").read_bytes() == b"1"
    assert (folder / "a/leer").is_dir()
    assert not (folder / "__MACOSX").exists()
    (folder / "a/b.txt").write_bytes(b"kept")
    assert unpacked(path) == folder
    assert (folder / "a/b.txt").read_bytes() == b"kept"


def test_a_folder_that_is_not_of_this_zip_is_not_used(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"b.txt": b"1"})
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match="this folder exists, but is not what"):
        unpacked(path)
    (tmp_path / "a").rmdir()
    unpacked(path)
    pack(path, {"b.txt": b"another"})
    with pytest.raises(DatasetError, match="this folder exists, but is not what"):
        unpacked(path)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "C:\\x", "..\\x"])
def test_paths_that_lead_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / "inner/a.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as written:
        member = zipfile.ZipInfo("x")
        member.filename = name
        written.writestr(member, b"1")
    with pytest.raises(DatasetError, match="leads out of the folder"):
        unpacked(path)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.zip", "inner"]


def test_symbolic_links(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as written:
        written.writestr(member, "/etc/passwd")
    with pytest.raises(DatasetError, match="'link': a symbolic link"):
        unpacked(tmp_path / "a.zip")


def test_encrypted_members(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"secret.txt": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match=r"'secret\.txt': it is encrypted"):
        unpacked(path)


def test_members_that_occur_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as written, pytest.warns(UserWarning, match="Duplicate"):
        written.writestr("b.txt", b"1")
        written.writestr("b.txt", b"2")
    with pytest.raises(DatasetError, match="it occurs twice"):
        unpacked(path)


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.zip", {"zeros": bytes(1 << 20)})
    monkeypatch.setattr(archive, "_SMALL", 1 << 10)
    with pytest.raises(DatasetError, match="unpacks to 1,048,576 bytes"):
        unpacked(path)
    monkeypatch.setattr(archive, "_SMALL", 1 << 30)
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 10)
    with pytest.raises(DatasetError, match="not plausible"):
        unpacked(path)


def test_broken_zips_leave_nothing(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a.txt": os.urandom(5000), "b.txt": os.urandom(5000)})
    data = path.read_bytes()
    for end in (0, 10, 3000, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(DatasetError, match=r"a\.zip: the zip cannot be read"):
            unpacked(path)
    spoiled = bytearray(data)
    spoiled[6000] ^= 255
    path.write_bytes(bytes(spoiled))
    with pytest.raises(DatasetError, match=r"a\.zip: .*b\.txt"):
        unpacked(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_zip_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.zip: "):
        unpacked(tmp_path / "a.zip")
