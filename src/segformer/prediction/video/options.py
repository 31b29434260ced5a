"""The options of `predict_video` and of the command, and the files that it writes.

Nothing here imports PyAV or torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

from segformer.files import check_replaceable, check_replaceable_folder, check_writable
from segformer.options import depends
from segformer.prediction.video.source import VIDEO_SUFFIXES, result_name

Masks: TypeAlias = Literal["none", "frames", "video"]
"""How label maps of a video are written."""

OUTPUT_SUFFIXES = (".mp4", ".mkv", ".mov", ".m4v", ".webm")
"""Formats that keep the time of each frame."""

TIMES = "times.csv"
"""File beside the masks of frames; marks a folder that was written here."""


@dataclass(frozen=True)
class VideoOptions:
    """What of a video is segmented, and what is written besides the overlay.

    Attributes:
        every: Segment every n-th frame. Times are kept, so the result is as long as the video.
        smoothing: Weight, from 0 to below 1, of the logits of earlier frames in those of a frame
            (exponential average): less flicker, but labels lag behind what moves. The average
            starts again where the scene changes.
        masks: Class ids, as frames (a folder with a PNG for each frame) or as a lossless video
            (FFV1, gray levels, in Matroska).
        duration: Seconds of the video after which to stop.

    Raises:
        ValueError: An option is out of range.
    """

    every: int = 1
    smoothing: float = 0.0
    masks: Masks = "none"
    duration: Annotated[float | None, depends("SECONDS", "the whole video")] = None

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a whole number of at least 1, not {self.every!r}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be from 0 to below 1, not {self.smoothing!r}")
        if self.masks not in get_args(Masks):
            known = ", ".join(get_args(Masks))
            raise ValueError(f"masks must be one of {known}, not {self.masks!r}")
        if self.duration is not None and not self.duration > 0:
            raise ValueError(f"duration must be positive, not {self.duration!r}")


@dataclass(frozen=True)
class VideoPaths:
    """The files of a video's results.

    Attributes:
        overlay: Video with the classes in color; None if it is not written.
        mask_video: Lossless video of class ids, or None.
        mask_folder: Folder with the class ids of each frame, or None.
    """

    overlay: Path | None
    mask_video: Path | None
    mask_folder: Path | None

    @property
    def all(self) -> list[Path]:
        """The files and folders that are written."""
        paths = (self.overlay, self.mask_video, self.mask_folder)
        return [path for path in paths if path is not None]

    def check(self, source: str | Path, *, overwrite: bool) -> None:
        """Check that the results can be written, before anything is read.

        Raises:
            OutputExists: A result, or an incomplete one, exists and may not be replaced.
            ValueError: The source would be replaced, or the folder cannot be written into.
        """
        for path in self.all:
            if Path(source).exists() and path.resolve() == Path(source).resolve():
                raise ValueError(f"{path} is the video to predict; choose another --out")
            for each in (path, incomplete(path)):
                if path == self.mask_folder:
                    check_replaceable_folder(each, TIMES, overwrite=overwrite)
                else:
                    check_replaceable([each], overwrite=overwrite)
            check_writable(path.parent)


def incomplete(path: Path) -> Path:
    """The name of a result that ends before its video does: ``out.incomplete.mp4``."""
    suffix = path.suffix if path.suffix.lower() in OUTPUT_SUFFIXES else ""
    return path.with_name(f"{path.name.removesuffix(suffix)}.incomplete{suffix}")


def is_video_file(out: str | Path) -> bool:
    """Whether an output is the name of a video file and not that of a folder."""
    return Path(out).suffix.lower() in VIDEO_SUFFIXES and not Path(out).is_dir()


def plan_video(
    source: str | Path, out: str | Path, options: VideoOptions, *, overlay: bool = True
) -> VideoPaths:
    """The files that are written for a video.

    Args:
        source: The video.
        out: A video file, beside which masks are written as ``OUT_masks.mkv`` or ``OUT_masks/``;
            or a folder for ``NAME_overlay.mp4``, ``NAME_masks.mkv`` or ``NAME_masks/``.
        options: What is written.
        overlay: Write the overlay.

    Raises:
        ValueError: Nothing would be written, or the output's format is not possible.
    """
    out = Path(out)
    if not overlay and options.masks == "none":
        raise ValueError(
            "without overlay and masks there is nothing to write; give masks=video or "
            "masks=frames (--masks)"
        )
    if is_video_file(out):
        if not overlay:
            raise ValueError(f"{out}: without overlay, give a folder for the masks")
        if out.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ValueError(
                f"{out}: {out.suffix} does not keep the times of frames; choose one of "
                f"{', '.join(OUTPUT_SUFFIXES)}"
            )
        shown, masks = out, out.with_name(f"{out.stem}_masks")
    else:
        name = result_name(source)
        shown, masks = out / f"{name}_overlay.mp4", out / f"{name}_masks"
    return VideoPaths(
        overlay=shown if overlay else None,
        mask_video=masks.with_name(f"{masks.name}.mkv") if options.masks == "video" else None,
        mask_folder=masks if options.masks == "frames" else None,
    )
