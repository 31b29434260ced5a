"""The files that a prediction of many images writes: planned, checked and summarized."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer.files import OutputExists, check_replaceable, check_writable
from segformer.image import ImageFiles
from segformer.prediction.prediction import Output, output_paths

SUMMARY = "summary.json"

_WRITER = "segformer predict"
"""Marks summaries, so that they and the files they list are recognized later."""


@dataclass(frozen=True)
class Job:
    """An image, and where its results go.

    Attributes:
        image: File; of an image with one file per channel, the first.
        name: Name of the results in the output folder, without suffix; may contain folders.
        channel_files: The file of each channel, in order; None where ``image`` has all channels.
    """

    image: Path
    name: str
    channel_files: tuple[Path, ...] | None = None

    @property
    def source(self) -> ImageFiles:
        """What the predictor reads."""
        return self.channel_files or self.image


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        out: Output folder.
        outputs: All files of each job.
        missing: Those that are to be written; none for jobs that are skipped.
        previous: The summary of an earlier run that is continued, else empty.
    """

    out: Path
    outputs: dict[Job, dict[Output, Path]]
    missing: dict[Job, dict[Output, Path]]
    previous: dict[str, Any]

    def relative(self, path: Path) -> str:
        """A file's path in the output folder, as summaries list it."""
        return path.relative_to(self.out).as_posix()

    def summary(self, finished: bool, **content: Any) -> dict[str, Any]:
        """The content of ``summary.json``; while unfinished, it lists all planned files."""
        paths = (path for outputs in self.outputs.values() for path in outputs.values())
        planned = {} if finished else {"planned": [self.relative(path) for path in paths]}
        return {"written_by": _WRITER, "finished": finished, **content, **planned}


def plan_outputs(
    jobs: Sequence[Job],
    out: str | Path,
    *,
    overlay: bool = True,
    confidence: bool = False,
    multilabel: bool = False,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> Plan:
    """Plan the files to write, and check that they can be written, before anything is computed.

    Args:
        jobs: Images and the names of their results.
        out: Output folder; it need not exist.
        overlay: Overlays are written.
        confidence: Confidences are written.
        multilabel: The model's classes may overlap.
        overwrite: Existing files may be replaced; images that are read never are.
        skip_existing: Existing files are kept, and images with all their files are skipped.

    Raises:
        OutputExists: A file would be replaced.
        ValueError: Two images would be written to the same file, the options contradict each
            other, or the folder cannot be written into.
    """
    if overwrite and skip_existing:
        raise ValueError("give overwrite or skip_existing, not both")
    out = Path(out)
    outputs = {
        job: output_paths(
            out, job.name, overlay=overlay, confidence=confidence, multilabel=multilabel
        )
        for job in jobs
    }
    summary = out / SUMMARY
    _check_distinct(outputs)
    every = [summary, *(path for paths in outputs.values() for path in paths.values())]
    _check_inputs(every, [f for job in jobs for f in job.channel_files or (job.image,)])
    previous: dict[str, Any] = {}
    if skip_existing:
        previous = read_summary(summary)
        if not previous:
            check_replaceable([summary], overwrite=False)
        _check_owners(outputs, out, previous)
    else:
        try:
            check_replaceable(every, overwrite=overwrite)
        except OutputExists as error:
            raise OutputExists(f"{error}, or --skip-existing to keep it") from None
    missing = {
        job: {
            output: path
            for output, path in paths.items()
            if not (skip_existing and os.path.lexists(path))
        }
        for job, paths in outputs.items()
    }
    check_writable(out)
    return Plan(out, outputs, missing, previous)


def read_summary(path: Path) -> dict[str, Any]:
    """A summary that an earlier prediction wrote; empty for other files and none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("written_by") == _WRITER else {}


def results_in(folder: Path) -> set[Path]:
    """Files that an earlier prediction wrote into a folder, as its summary lists them."""
    summary = read_summary(folder / SUMMARY)
    rows = summary.get("images", [])
    listed = [*summary.get("planned", []), *(file for row in rows for file in row["files"])]
    return {(folder / file).resolve() for file in listed}


def _check_distinct(outputs: dict[Job, dict[Output, Path]]) -> None:
    """Refuse two images whose results have the same name, also where case does not count."""
    taken: dict[str, Job] = {}
    for job, paths in outputs.items():
        for path in paths.values():
            other = taken.setdefault(str(path).casefold(), job)
            if other is not job:
                raise ValueError(
                    f"{other.image} and {job.image} would both be written to {path}; "
                    "predict them into different folders"
                )


def _check_owners(
    outputs: dict[Job, dict[Output, Path]], out: Path, previous: dict[str, Any]
) -> None:
    """Refuse to take the results of one image for those of another with the same name."""
    rows = previous.get("images", [])
    owners = {out / file: Path(row["image"]) for row in rows for file in row["files"]}
    for job, paths in outputs.items():
        for path in paths.values():
            owner = owners.get(path, job.image)
            moved = not owner.exists() or not job.image.exists()  # or named from another folder
            if owner.name != job.image.name or not (moved or owner.samefile(job.image)):
                raise ValueError(
                    f"{path} holds results of {owner}, not of {job.image}; "
                    "choose another output folder"
                )


def _check_inputs(paths: Iterable[Path], images: Iterable[Path]) -> None:
    """Refuse to replace images that are read, whatever else may be replaced."""
    read = {image.resolve() for image in images}
    for path in paths:
        if path.resolve() in read:
            raise OutputExists(f"{path} is one of the images to predict; choose another --out")
