"""Videos on the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("fastapi", "gradio"):
    pytest.importorskip(package, reason="the extra serve is not installed")
av = pytest.importorskip("av", reason="the extra video is not installed")

from conftest import TINY, randomize
from segformer import Predictor, SegFormer
from segformer.prediction.video.predict import predict_video
from segformer.serving.models import serve_model
from segformer.serving.page.mount import mount_page
from serving.live import Live, named, photo, running
from serving.visitor import Visitor

# Gradio 6.31 beside pandas 3
pytestmark = pytest.mark.filterwarnings(
    "ignore:'future.no_silent_downcasting'", "ignore:The copy keyword is deprecated"
)


@pytest.fixture(scope="module")
def paged() -> Iterator[Live]:
    predictor = Predictor(named(randomize(SegFormer(TINY)).eval()), device="cpu")
    served = serve_model("tiny", predictor)
    with running(served, mounts=(mount_page,), max_megapixels=0.1) as service:
        yield service


def draw_video(path: Path, frames: int = 6, side: int = 64) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        for seed in range(frames):
            frame = av.VideoFrame.from_ndarray(photo(side, side, seed), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def segment(live: Live, name: str, data: bytes) -> Any:
    visitor = Visitor(live)
    (path,) = visitor.upload(name, data).json
    chosen = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    return visitor.trigger("segment_clip", chosen)


def test_a_video_is_that_of_predict_video(paged: Live, tmp_path: Path) -> None:
    source = draw_video(tmp_path / "walk.mp4")
    update = segment(paged, "walk.mp4", source.read_bytes())
    found = Path(update["value"].get("video", update["value"])["path"])
    assert found.name == "walk_overlay.mp4"
    predict_video(paged.predictor, source, tmp_path / "expected.mp4")
    expected = frames_of(tmp_path / "expected.mp4")
    assert len(expected) == 6
    np.testing.assert_array_equal(frames_of(found), expected)
    assert paged.service.places.taken == 0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "cannot be read"),
        (b"\0\0\0\x18ftypmp42" + bytes(300), "cannot be read"),
    ],
)
def test_files_that_are_no_videos(paged: Live, data: bytes, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence) as caught:
        segment(paged, "clip.mp4", data)
    assert "/tmp" not in str(caught.value)


def test_pixels_are_limited(paged: Live, tmp_path: Path) -> None:
    data = draw_video(tmp_path / "large.mp4", 1, 400).read_bytes()
    with pytest.raises(AssertionError, match="more than 0.1 megapixels"):
        segment(paged, "large.mp4", data)
