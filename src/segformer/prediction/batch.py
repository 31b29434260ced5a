"""Many pictures -> files: reading, computing and writing overlap, and a bad file costs itself."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer.files import write_json
from segformer.image import PICTURE_SUFFIXES, PictureSource
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor

_WAITING_WRITES = 8
"""Predictions that may wait to be written; then computing waits too, so memory stays bounded."""


@dataclass(frozen=True)
class Job:
    """A picture, and where its results go.

    Attributes:
        picture: File.
        name: Of the results in the output folder, without suffix; may hold folders.
    """

    picture: Path
    name: str


@dataclass
class BatchResult:
    """What became of many pictures.

    Attributes:
        pictures: A row for each written, in order: file, size, results, shares of the classes.
        failed: A row for each that failed: file and error.
    """

    pictures: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def find_pictures(sources: Sequence[str | Path]) -> list[Job]:
    """Pictures named by files, folders (with all inside) and patterns.

    Results of a folder's pictures keep their folders. Where two pictures would get the same
    results, ``a.jpg`` and ``a.png``, the suffix stays in the name: ``a.jpg.png``, ``a.png.png``.

    Raises:
        ValueError: Something names no picture.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in PICTURE_SUFFIXES
                and file.is_file()
                and not file.name.startswith(".")
            )
            if not inside:
                raise ValueError(f"{path}: there are no pictures in this folder")
            found.update({file: file.relative_to(path) for file in inside})
        elif path.exists():
            found.setdefault(path, Path(path.name))
        else:
            # A pattern that the shell left alone: Windows, or quotes
            matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
            if not matches and glob.has_magic(str(source)):
                raise ValueError(f"{source}: no picture matches this pattern")
            # A file that is not there is reported with the others, at the end
            found.update({match: Path(match.name) for match in matches or [path]})
    stems = Counter(relative.with_suffix("").as_posix().lower() for relative in found.values())
    jobs = []
    taken: Counter[str] = Counter()
    for file, relative in found.items():
        stem = relative.with_suffix("").as_posix()
        name = stem if stems[stem.lower()] == 1 else relative.as_posix()
        taken[name.lower()] += 1
        if taken[name.lower()] > 1:
            name = f"{name}-{taken[name.lower()]}"
        jobs.append(Job(file, name))
    return jobs


def predict_files(
    predictor: Predictor,
    jobs: Sequence[Job],
    out: str | Path,
    *,
    overlay: bool = True,
    on_picture: Callable[[], None] | None = None,
) -> BatchResult:
    """Segment pictures and write ids, overlays and ``summary.json``.

    Nothing that lies beside the pictures is replaced: it may be a picture itself.

    Args:
        predictor: With its model and options.
        jobs: From `find_pictures`.
        out: Folder, made if it is not there.
        overlay: Write overlays too.
        on_picture: Called after each picture, written or failed.
    """
    result = BatchResult()
    out = Path(out)
    writing: list[tuple[Job, Prediction, Future[list[Path]]]] = []

    def finish_first() -> None:
        job, prediction, future = writing.pop(0)
        try:
            written = future.result()
        except (ValueError, OSError) as error:
            fail(job.picture, error)
            return
        height, width = prediction.labels.shape
        result.pictures.append(
            {
                "picture": str(job.picture),
                "height": height,
                "width": width,
                "files": [path.relative_to(out).as_posix() for path in written],
                "shares": {name: round(share, 6) for name, share in prediction.shares.items()},
            }
        )
        if on_picture is not None:
            on_picture()

    def fail(source: PictureSource, error: Exception) -> None:
        result.failed.append({"picture": str(source), "error": str(error)})
        if on_picture is not None:
            on_picture()

    remaining = {job.picture: job for job in jobs}
    pictures_in = {job.picture.resolve().parent for job in jobs}
    for job in jobs:
        ids = (out / f"{job.name}.png").resolve()
        if ids.parent in pictures_in and ids.exists():
            fail(
                job.picture,
                ValueError(f"{ids}: is among the pictures; save elsewhere"),
            )
            del remaining[job.picture]
    with ThreadPoolExecutor(2, thread_name_prefix="writer") as pool:
        pictures: Iterable[Path] = list(remaining)
        for prediction in predictor.stream(pictures, on_error=fail):
            assert prediction.source is not None
            job = remaining[prediction.source]
            writing.append(
                (job, prediction, pool.submit(_save, prediction, out, job.name, overlay))
            )
            if len(writing) > _WAITING_WRITES:
                finish_first()
        while writing:
            finish_first()
    write_json(
        out / "summary.json",
        {
            "classes": list(predictor.model.labels.names),
            "pictures": result.pictures,
            "failed": result.failed,
        },
    )
    return result


def _save(prediction: Prediction, out: Path, name: str, overlay: bool) -> list[Path]:
    return prediction.save(out, name=name, overlay=overlay)
