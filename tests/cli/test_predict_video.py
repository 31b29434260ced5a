"""`segformer predict` with videos."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from segformer import SegFormer
from segformer.cli import main
from segformer.prediction.video import opening
from segformer.prediction.video.source import is_video, only_videos, result_name, shown_name

av = pytest.importorskip("av", reason="the extra video is not installed")

from prediction.clips import cut, pan, read_clip, write_clip  # noqa: E402


@pytest.fixture
def words(tmp_path: Path, tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The end of a command; the current folder has clip.mp4."""
    tiny_model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", pan(6))
    return ["--model", str(tmp_path / "model"), "--size", "32", "32", "--device", "cpu"]


def test_a_file_or_a_folder_for_the_results(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "clip.mp4", "--out", "seen.mp4", *words]) == 0
    assert "clip.mp4: 6 frames segmented into seen.mp4, " in capsys.readouterr().out
    assert len(read_clip(Path("seen.mp4"))[0]) == 6
    command = ["predict", "clip.mp4", "--masks", "video", "--every", "2", *words]
    assert main(command) == 0
    assert len(read_clip(Path("predictions/clip_overlay.mp4"))[0]) == 3
    assert len(read_clip(Path("predictions/clip_masks.mkv"), "gray")[0]) == 3
    assert main(command) == 1
    assert "clip_overlay.mp4 already exists" in capsys.readouterr().err
    assert main([*command, "--skip-existing"]) == 0
    assert main([*command, "--overwrite", "--smoothing", "0.5"]) == 0


def test_exit_codes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cut(write_clip(Path("broken.mkv"), pan(40)), 0.6)
    assert main(["predict", "broken.mkv", "clip.mp4", "--out", "a", *words]) == 3
    assert sorted(path.name for path in Path("a").iterdir()) == [
        "broken_overlay.incomplete.mp4", "clip_overlay.mp4",
    ]  # fmt: skip
    cut(Path("clip.mp4"), 0.5)
    assert main(["predict", "clip.mp4", "--out", "b", *words]) == 1
    assert "cannot be read as a video" in capsys.readouterr().err
    write_clip(Path("whole.mp4"), pan(2))
    assert main(["predict", "clip.mp4", "whole.mp4", "--out", "c", *words]) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["clip.mp4", "--confidence"], "cannot be used with videos"),
        (["clip.mp4", "other.mp4", "--out", "a.mp4"], "need a folder for their results"),
        (["clip.mp4", "sub/clip.mkv"], "would both be written to"),
        (["clip.mp4", "photo.jpg"], "clip.mp4 is a video and photo.jpg is not"),
        (["photo.jpg", "--every", "2"], "are options for videos"),
        (["clip.mp4", "--no-overlay"], "nothing to write"),
    ],
)
def test_wrong_use_is_named(
    words: list[str], capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save("photo.jpg")
    assert main(["predict", *given, *words]) == 1
    assert message in capsys.readouterr().err


def test_what_is_a_video(words: list[str]) -> None:
    Path("clip").write_bytes(Path("clip.mp4").read_bytes())
    write_clip(Path("stream.ts"), pan(12))
    Path("stream.dat").write_bytes(Path("stream.ts").read_bytes())
    write_clip(Path("a.mkv"), pan(2)).rename("matroska")
    Path("notes").write_text("G as in text. " * 40)
    Path("7").write_text("a file")
    for source in ("clip", "stream.dat", "matroska", "none.mp4", "0", "rtsp://host/a", "RTSP://h"):
        assert is_video(source), source
    for source in ("notes", "7", "photo.jpg", "folder", "*.jpg", "scene.tif", "123"):
        assert not is_video(source), source
    assert only_videos(["0", "clip"])
    assert not only_videos([])


def test_names_have_no_passwords() -> None:
    address = "rtsp://me:secret@10.0.0.1:554/live/door.mp4?token=1"
    assert shown_name(address) == "rtsp://me:***@10.0.0.1:554/live/door.mp4?token=1"
    assert result_name(address) == "door"
    assert result_name("rtsp://me:secret@host") == "host"
    assert result_name("0") == "camera0"


def test_a_camera_is_opened_by_its_number(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    open_file = av.open

    def open_camera(file: str, format: str | None = None, **_: object) -> object:
        asked.append((file, format))
        return open_file("clip.mp4")

    monkeypatch.setattr(opening.sys, "platform", "linux")
    with monkeypatch.context() as patch:
        patch.setattr(av, "open", lambda file, *mode, **more: (
            open_file(file, *mode, **more) if mode else open_camera(file, **more)
        ))  # fmt: skip
        assert main(["predict", "3", "--duration", "60", "--out", "a", *words]) == 3
    assert asked == [("/dev/video3", "v4l2")]
    assert Path("a/camera3_overlay.incomplete.mp4").is_file()
    assert main(["predict", "63", "--out", "b", *words]) == 1
    assert "camera 63: cannot be opened: No such file" in capsys.readouterr().err


def test_a_stream_that_ends(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As from a network: no length, and the connection is closed."""
    data = write_clip(Path("sent.ts"), pan(40), audio="aac").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(data)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert main(["predict", address, "--out", "a.mp4", *words]) == 3
        thread.join(10)
    assert "the stream has ended" in capsys.readouterr().err
    frames, times = read_clip(Path("a.incomplete.mp4"))
    assert 1 <= len(frames) <= 40
    assert times[0] >= 0
    closed = f"tcp://127.0.0.1:{server_port()}"
    assert main(["predict", closed, "--out", "b.mp4", *words]) == 1
    assert "cannot be opened: Connection refused" in capsys.readouterr().err


def server_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
