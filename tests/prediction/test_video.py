"""Videos: times, audio, rotation, colors, masks, what is left of broken ones, memory."""

from __future__ import annotations

import errno
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import randomize, run_python
from segformer import Predictor, SegFormer, predict_video
from segformer.files import OutputExists
from segformer.prediction.prediction import Prediction
from segformer.prediction.video import writing
from segformer.prediction.video.pixels import upright
from segformer.prediction.video.predict import VideoProgress

av = pytest.importorskip("av", reason="the extra video is not installed")

from prediction.clips import TICKS, audio_packets, cut, pan, read_clip, write_clip  # noqa: E402


@pytest.fixture
def predictor(tiny_model: SegFormer) -> Predictor:
    return Predictor(tiny_model, device="cpu", size=(32, 32))


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_irregular_times_are_kept(predictor: Predictor, tmp_path: Path) -> None:
    ticks = [0, 512, 600, 2000, 2001, 9000, 12800, 30000]
    clip = write_clip(tmp_path / "clip.mp4", pan(8), ticks=ticks)
    seen: list[VideoProgress] = []
    result = predict_video(
        predictor, clip, tmp_path / "out.mp4", on_frame=lambda _, progress: seen.append(progress)
    )
    expected = [tick / TICKS for tick in ticks]
    frames, times = read_clip(tmp_path / "out.mp4")
    assert times == pytest.approx(expected, abs=1e-6)
    assert frames[0].shape == (48, 64, 3)
    assert [progress.seconds for progress in seen] == pytest.approx(expected)
    assert [progress.index for progress in seen] == list(range(8))
    assert (result.frames, result.broken, result.damaged) == (8, None, 0)
    assert result.files == [tmp_path / "out.mp4"]
    assert names(tmp_path) == ["clip.mp4", "out.mp4"]


def test_every_third_frame_keeps_its_time(predictor: Predictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", pan(10))
    totals: set[int | None] = set()
    result = predict_video(
        predictor,
        clip,
        tmp_path / "out.mkv",
        every=3,
        on_frame=lambda _, progress: totals.add(progress.total),
    )
    assert read_clip(tmp_path / "out.mkv")[1] == pytest.approx([0, 0.12, 0.24, 0.36], abs=1e-3)
    assert result.frames == 4
    assert totals == {4}


def test_the_duration_ends_a_video(predictor: Predictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pan(10))
    result = predict_video(predictor, clip, tmp_path / "out.mp4", duration=0.2)
    assert result.broken is None
    assert read_clip(tmp_path / "out.mp4")[1] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_audio_is_copied(predictor: Predictor, tmp_path: Path, suffix: str) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}", pan(12), audio="aac")
    out = tmp_path / f"out{suffix}"
    predict_video(predictor, clip, out, every=5)
    before, after = audio_packets(clip), audio_packets(out)
    assert len(before) > 10
    assert [data for _, data in after] == [data for _, data in before]
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=2e-3)


def test_audio_that_the_format_cannot_store(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = write_clip(tmp_path / "clip.mkv", pan(4), audio="aac")
    predict_video(predictor, clip, tmp_path / "out.webm")
    assert "its audio (aac) cannot be stored as .webm" in caplog.text
    with av.open(str(tmp_path / "out.webm")) as file:
        assert not file.streams.audio
        assert file.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9")


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_the_rotation_is_applied(predictor: Predictor, tmp_path: Path, degrees: int) -> None:
    frames = list(pan(3, seed=1))
    clip = write_clip(tmp_path / "clip.mp4", frames, rotation=degrees, aspect=Fraction(4, 3))
    seen: list[np.ndarray] = []
    predict_video(predictor, clip, tmp_path / "out.mp4", on_frame=lambda p, _: seen.append(p.image))
    expected = np.rot90(frames[0], degrees // 90)
    assert seen[0].shape == expected.shape
    assert np.abs(seen[0].astype(int) - expected).mean() < 12
    with av.open(str(tmp_path / "out.mp4")) as file:
        (first, *_) = file.decode(video=0)
        assert (first.height, first.width) == expected.shape[:2]
        assert first.rotation == 0
        aspect = Fraction(4, 3) if degrees == 180 else Fraction(3, 4)
        assert file.streams.video[0].sample_aspect_ratio == aspect


def test_display_matrices_move_pixels_as_they_say() -> None:
    """Each pixel against (x, y) -> (a x + c y, b x + d y), shifted into the image."""
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, 2)
    for matrix in [
        (1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
        (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0),
    ]:  # fmt: skip
        a, b, c, d = matrix
        found = upright(pixels, tuple(65536 * value for value in matrix))  # type: ignore[arg-type]
        places = {(x, y): (a * x + c * y, b * x + d * y) for x in range(3) for y in range(2)}
        left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
        for (x, y), (right, down) in places.items():
            assert (found[down - top, right - left] == pixels[y, x]).all()
    assert upright(pixels, None) is pixels


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("colorspace", [1, 5])
def test_colors_are_those_of_the_color_space(
    predictor: Predictor, tmp_path: Path, colorspace: int, full_range: bool
) -> None:
    """Saturated colors differ by 20 levels and more between BT.601 and BT.709."""
    colors = [(200, 30, 40), (20, 180, 60), (30, 60, 220), (250, 250, 250), (3, 3, 3)]
    frame = np.zeros((32, 80, 3), np.uint8)
    for i, color in enumerate(colors):
        frame[:, 16 * i : 16 * i + 16] = color
    clip = write_clip(
        tmp_path / "clip.mp4", [frame] * 2, colorspace=colorspace, full_range=full_range
    )
    seen: list[np.ndarray] = []
    predict_video(predictor, clip, tmp_path / "out.mp4", on_frame=lambda p, _: seen.append(p.image))
    for i, color in enumerate(colors):
        assert np.abs(seen[0][16, 16 * i + 8].astype(int) - color).max() <= 4


def test_the_overlay_has_its_colors_again_when_it_is_read(
    predictor: Predictor, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [np.full((48, 64, 3), (40, 90, 200), np.uint8)] * 2)
    drawn: list[np.ndarray] = []
    predict_video(
        predictor,
        clip,
        tmp_path / "out.mp4",
        on_frame=lambda p, _: drawn.append(np.asarray(p.overlay(legend=False))),
    )
    again: list[np.ndarray] = []
    predict_video(
        predictor,
        tmp_path / "out.mp4",
        tmp_path / "again.mp4",
        on_frame=lambda p, _: again.append(p.image),
    )
    assert np.abs(again[0].astype(int) - drawn[0]).mean() < 6


def test_odd_sizes_get_a_row_and_a_column(predictor: Predictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", pan(2, 41, 57), codec="ffv1", pix_fmt="bgr0")
    predict_video(predictor, clip, tmp_path / "out.mp4", masks="video")
    assert read_clip(tmp_path / "out.mp4")[0][0].shape == (42, 58, 3)
    assert read_clip(tmp_path / "out_masks.mkv", "gray")[0][0].shape == (41, 57)


@pytest.mark.parametrize("classes", [5, 300])
def test_class_ids_of_a_lossless_video_are_exact(tmp_path: Path, classes: int) -> None:
    torch.manual_seed(0)
    model = SegFormer.from_variant("b0", num_classes=classes)
    randomize(model)
    predictor = Predictor(model.eval(), device="cpu", size=(64, 64))
    clip = write_clip(tmp_path / "clip.mp4", pan(4))
    found: list[np.ndarray] = []
    predict_video(
        predictor,
        clip,
        tmp_path / "out",
        masks="video",
        overlay=False,
        on_frame=lambda p, _: found.append(p.label_map),
    )
    assert names(tmp_path / "out") == ["clip_masks.mkv"]
    stored = read_clip(tmp_path / "out/clip_masks.mkv", "gray" if classes <= 256 else "gray16le")
    assert len(np.unique(found)) > 1
    np.testing.assert_array_equal(np.stack(stored[0]), np.stack(found))
    assert stored[0][0].dtype == found[0].dtype


def test_masks_as_frames(predictor: Predictor, tmp_path: Path) -> None:
    from PIL import Image

    clip = write_clip(tmp_path / "clip.mp4", pan(5))
    found: list[Prediction] = []
    result = predict_video(
        predictor,
        clip,
        tmp_path / "out",
        masks="frames",
        every=2,
        on_frame=lambda p, _: found.append(p),
    )
    folder = tmp_path / "out/clip_masks"
    assert result.files == [tmp_path / "out/clip_overlay.mp4", folder]
    assert names(folder) == ["000000.png", "000002.png", "000004.png", "times.csv"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "000002.png")), found[1].label_map)
    rows = (folder / "times.csv").read_text().splitlines()
    assert rows[:2] == ["frame,seconds", "0,0.000000"]
    assert rows[3] == "4,0.160000"


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mov"])
def test_a_broken_file_leaves_a_playable_one(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    options = {"movflags": "faststart"} if suffix == ".mov" else {}
    clip = write_clip(tmp_path / f"clip{suffix}", pan(40), audio="aac", options=options)
    cut(clip, 0.6)
    result = predict_video(predictor, clip, tmp_path / "out.mp4", masks="video")
    assert result.broken is not None
    assert result.files == [
        tmp_path / "out.incomplete.mp4",
        tmp_path / "out_masks.incomplete.mkv",
    ]
    assert names(tmp_path) == [f"clip{suffix}", "out.incomplete.mp4", "out_masks.incomplete.mkv"]
    frames, times = read_clip(tmp_path / "out.incomplete.mp4")
    assert 10 < len(frames) == result.frames < 35
    assert len(read_clip(tmp_path / "out_masks.incomplete.mkv", "gray")[0]) == len(frames)
    assert times[-1] == pytest.approx(result.seconds, abs=2e-3)
    assert f"ends at {result.seconds:.2f} s, after {result.frames} frames" in caplog.text
    assert len(audio_packets(tmp_path / "out.incomplete.mp4")) > 5
    with pytest.raises(OutputExists, match=r"out\.incomplete\.mp4 already exists"):
        predict_video(predictor, clip, tmp_path / "out.mp4")


def test_a_whole_file_of_each_format_is_not_broken(predictor: Predictor, tmp_path: Path) -> None:
    for suffix in (".mkv", ".ts", ".mov", ".avi", ".mp4"):
        clip = write_clip(tmp_path / f"clip{suffix}", pan(15), audio="aac")
        result = predict_video(predictor, clip, tmp_path / "out")
        assert (result.broken, result.frames) == (None, 15), suffix
        (tmp_path / "out/clip_overlay.mp4").unlink()


def test_a_file_without_its_index_is_named(predictor: Predictor, tmp_path: Path) -> None:
    clip = cut(write_clip(tmp_path / "clip.mp4", pan(20)), 0.6)
    with pytest.raises(ValueError, match=r"clip\.mp4: cannot be read as a video.*index"):
        predict_video(predictor, clip, tmp_path / "out.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4: cannot be read"):
        predict_video(predictor, tmp_path / "text.mp4", tmp_path / "out.mp4")
    with pytest.raises(ValueError, match=r"none\.mp4: there is no such file"):
        predict_video(predictor, tmp_path / "none.mp4", tmp_path / "out.mp4")
    assert names(tmp_path) == ["clip.mp4", "text.mp4"]


def test_an_interruption_leaves_a_playable_file(predictor: Predictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pan(30), audio="aac")

    def interrupt(_: Prediction, progress: VideoProgress) -> None:
        if progress.index == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_video(predictor, clip, tmp_path / "out.mp4", on_frame=interrupt)
    assert names(tmp_path) == ["clip.mp4", "out.incomplete.mp4"]
    assert len(read_clip(tmp_path / "out.incomplete.mp4")[0]) == 7


def test_an_error_before_the_first_frame_leaves_nothing(
    predictor: Predictor, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pan(3))

    def fail(*_: object) -> list[Any]:
        raise MemoryError("too large")

    predictor._tta_logits = fail  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        predict_video(predictor, clip, tmp_path / "out.mp4")
    assert names(tmp_path) == ["clip.mp4"]


def test_a_full_disk_leaves_nothing(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pan(20))
    add = writing.VideoFile.add

    def fill(self: writing.VideoFile, pixels: Any, frame: Any) -> None:
        if frame.index == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        add(self, pixels, frame)

    monkeypatch.setattr(writing.VideoFile, "add", fill)
    with pytest.raises(OSError, match="No space left on device"):
        predict_video(predictor, clip, tmp_path / "out.mp4")
    assert names(tmp_path) == ["clip.mp4"]


def test_nothing_is_replaced_unless_asked(predictor: Predictor, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pan(2))
    (tmp_path / "out.mp4").write_text("precious")
    with pytest.raises(OutputExists, match=r"out\.mp4 already exists"):
        predict_video(predictor, clip, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_text() == "precious"
    (tmp_path / "clip_masks").mkdir()
    (tmp_path / "clip_masks/mine.png").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(OutputExists):
            predict_video(
                predictor, clip, tmp_path, masks="frames", overlay=False, overwrite=overwrite
            )
    with pytest.raises(ValueError, match="is the video to predict"):
        predict_video(predictor, clip, clip, overwrite=True)
    predict_video(predictor, clip, tmp_path / "out.mp4", overwrite=True)
    assert len(read_clip(tmp_path / "out.mp4")[0]) == 2
    predict_video(predictor, clip, tmp_path / "a", masks="frames")
    predict_video(predictor, clip, tmp_path / "a", masks="frames", every=2, overwrite=True)
    assert names(tmp_path / "a/clip_masks") == ["000000.png", "times.csv"]


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.mp4", {"every": 0}, "every must be"),
        ("out.mp4", {"smoothing": 1.0}, "smoothing must be"),
        ("out.mp4", {"masks": "png"}, "masks must be one of none, frames, video"),
        ("out.mp4", {"duration": -1}, "duration must be"),
        ("out", {"overlay": False}, "nothing to write"),
        ("out.mp4", {"overlay": False, "masks": "video"}, "give a folder for the masks"),
        ("out.avi", {}, r"\.avi does not keep the times of frames; choose one of \.mp4"),
    ],
)
def test_wrong_options_are_named(
    predictor: Predictor, tmp_path: Path, out: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict_video(predictor, tmp_path / "clip.mp4", tmp_path / out, **options)


def test_a_model_of_other_channels_is_refused(tmp_path: Path) -> None:
    model = SegFormer.from_variant("b0", num_classes=2, in_channels=4)
    with pytest.raises(ValueError, match="takes 4 channels, the frames of a video have 3"):
        predict_video(Predictor(model, device="cpu"), tmp_path / "a.mp4", tmp_path / "out.mp4")


def test_the_extra_is_named(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"av is not installed; pip install 'segformer\[video\]'"):
        predict_video(predictor, "a.mp4", tmp_path / "out.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_other_runtimes_give_the_same_class_ids(
    tiny_model: SegFormer, tmp_path: Path, runtime: Any
) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    clip = write_clip(tmp_path / "clip.mp4", pan(3))
    found: dict[str, list[np.ndarray]] = {"torch": [], runtime: []}
    for name, maps in found.items():
        predict_video(
            Predictor(tiny_model, size=(32, 32), device="cpu", runtime=name),  # type: ignore[arg-type]
            clip,
            tmp_path / f"{name}.mp4",
            smoothing=0.5,
            on_frame=lambda p, _, maps=maps: maps.append(p.label_map),
        )
    assert np.mean(np.stack(found["torch"]) == np.stack(found[runtime])) > 0.99


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """The most memory of 3000 frames beside that of 300, each in a process of its own."""
    peaks = []
    for count in (300, 3000):
        clip = write_clip(tmp_path / f"{count}.mp4", pan(count, 128, 160), audio="aac")
        code = (
            "import resource, torch\n"
            "from segformer import Predictor, SegFormer, predict_video\n"
            "torch.set_num_threads(1)\n"
            "model = SegFormer.from_variant('b0', num_classes=5)\n"
            "predictor = Predictor(model, device='cpu', size=(32, 32))\n"
            f"result = predict_video(predictor, {str(clip)!r}, {str(tmp_path / str(count))!r}, "
            "masks='video', smoothing=0.5)\n"
            "print(result.frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        run = run_python(code)
        assert run.returncode == 0, run.stderr
        frames, kilobytes = map(int, run.stdout.split())
        assert frames == count
        peaks.append(kilobytes / 1024)
    decoded = 2700 * 128 * 160 * 3 / 1e6
    assert peaks[1] - peaks[0] < 60 < decoded, peaks
