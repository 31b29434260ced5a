"""Many images -> files: reading, computing and writing overlap, and a bad file costs itself."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer.files import write_json
from segformer.image import IMAGE_SUFFIXES, ImageSource
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor

_WAITING_WRITES = 8
"""Predictions that may wait to be written; then computing waits too, so memory stays bounded."""


@dataclass(frozen=True)
class Job:
    """An image, and where its results go.

    Attributes:
        image: File.
        name: Of the results in the output folder, without suffix; may hold folders.
    """

    image: Path
    name: str


@dataclass
class BatchResult:
    """What became of many images.

    Attributes:
        images: One entry for each image written, in order: file, size, results, class fractions.
        failed: A row for each that failed: file and error.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def find_images(sources: Sequence[str | Path]) -> list[Job]:
    """Images named by files, folders (with all inside) and patterns.

    Results of a folder's images keep their folders. Where two images would get the same
    results, ``a.jpg`` and ``a.png``, the suffix stays in the name: ``a.jpg.png``, ``a.png.png``.

    Raises:
        ValueError: Something names no image.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES
                and file.is_file()
                and not file.name.startswith(".")
            )
            if not inside:
                raise ValueError(f"{path}: there are no images in this folder")
            found.update({file: file.relative_to(path) for file in inside})
        elif path.exists():
            found.setdefault(path, Path(path.name))
        else:
            # A pattern that the shell left alone: Windows, or quotes
            matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
            if not matches and glob.has_magic(str(source)):
                raise ValueError(f"{source}: no image matches this pattern")
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
    on_image: Callable[[], None] | None = None,
) -> BatchResult:
    """Segment images and write ids, overlays and ``summary.json``.

    Nothing that lies beside the images is replaced: it may be an image itself.

    Args:
        predictor: With its model and options.
        jobs: From `find_images`.
        out: Folder, made if it is not there.
        overlay: Write overlays too.
        on_image: Called after each image, written or failed.
    """
    result = BatchResult()
    out = Path(out)
    writing: list[tuple[Job, Prediction, Future[list[Path]]]] = []

    def finish_first() -> None:
        job, prediction, future = writing.pop(0)
        try:
            written = future.result()
        except (ValueError, OSError) as error:
            fail(job.image, error)
            return
        height, width = prediction.label_map.shape
        result.images.append(
            {
                "image": str(job.image),
                "height": height,
                "width": width,
                "files": [path.relative_to(out).as_posix() for path in written],
                "class_fractions": {
                    name: round(fraction, 6)
                    for name, fraction in prediction.class_fractions.items()
                },
            }
        )
        if on_image is not None:
            on_image()

    def fail(source: ImageSource, error: Exception) -> None:
        result.failed.append({"image": str(source), "error": str(error)})
        if on_image is not None:
            on_image()

    remaining = {job.image: job for job in jobs}
    images_in = {job.image.resolve().parent for job in jobs}
    for job in jobs:
        ids = (out / f"{job.name}.png").resolve()
        if ids.parent in images_in and ids.exists():
            fail(
                job.image,
                ValueError(f"{ids}: is among the images; save elsewhere"),
            )
            del remaining[job.image]
    with ThreadPoolExecutor(2, thread_name_prefix="writer") as pool:
        images: Iterable[Path] = list(remaining)
        for prediction in predictor.stream(images, on_error=fail):
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
            "classes": list(predictor.model.classes.names),
            "images": result.images,
            "failed": result.failed,
        },
    )
    return result


def _save(prediction: Prediction, out: Path, name: str, overlay: bool) -> list[Path]:
    return prediction.save(out, name=name, overlay=overlay)
