"""Many images to files. Reading, computing and writing overlap; a bad file stops no other."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer.data.channel_files import channel_files
from segformer.data.layouts.base import WHOLE
from segformer.files import write_json
from segformer.image import IMAGE_SUFFIXES, ImageFiles, ImageSource, image_name
from segformer.prediction.outputs import SUMMARY, Job, Plan, plan_outputs, results_in
from segformer.prediction.prediction import Prediction
from segformer.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

_WAITING_WRITES = 8
"""Predictions that may wait to be written, so that memory stays bounded."""

_WAITING_PIXELS = 1 << 25
"""Pixels of these predictions, beyond the first."""


@dataclass
class BatchResult:
    """What became of many images.

    Attributes:
        images: An entry for each image with results, image, size, files, class fractions.
        failed: An entry for each image that failed: image and error.
        skipped: Number of images that were skipped because their results exist.
    """

    images: list[dict[str, Any]]
    failed: list[dict[str, str]]
    skipped: int


def find_images(sources: Sequence[str | Path], *, out: str | Path | None = None) -> list[Job]:
    """Images named by files, folders (with their subfolders) and patterns.

    Results of a folder's images keep their folders. Where two images would get the same results,
    ``a.jpg`` and ``a.png``, the suffix is kept in the name: ``a.jpg.png``, ``a.png.png``.

    Hidden files, results of earlier predictions, and the output folder inside of a folder are
    skipped, unless they are named as files.

    Args:
        sources: Files, folders, patterns.
        out: Output folder.

    Raises:
        ValueError: A folder or pattern has no images.
    """
    found: dict[Path, Path] = {}
    results: dict[Path, set[Path]] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_visible_image(file, path))
            images = _without_results(inside, path, out, results)
            if not images:
                other = "" if not inside else " other than results of earlier predictions"
                raise ValueError(f"{path}: there are no images in this folder{other}")
            found.update({file: file.relative_to(path) for file in images})
        elif path.exists():
            found.setdefault(path, Path(path.name))
        else:
            # A pattern that the shell did not expand: on Windows, or in quotes
            matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
            images = _without_results(matches, None, out, results)
            if not images and glob.has_magic(str(source)):
                other = "" if not matches else " other than results of earlier predictions"
                raise ValueError(f"{source}: no image{other} matches this pattern")
            # A file that does not exist is reported with the other failures
            found.update({match: Path(match.name) for match in images or [path]})
    stems = Counter(relative.with_suffix("").as_posix().lower() for relative in found.values())
    names = {}
    for file, relative in found.items():
        stem = relative.with_suffix("").as_posix()
        names[file] = stem if stems[stem.lower()] == 1 else relative.as_posix()
    return [Job(file, name) for file, name in _distinct(names).items()]


def find_channel_files(folders: Sequence[str | Path], patterns: Sequence[str]) -> list[Job]:
    """Images with one file per channel.

    Args:
        folders: Where they are.
        patterns: For each channel, in the model's order, the path of its file relative to a
            folder, with ``{stem}``, the image's name, and where there are subfolders ``{parent}/``
            in it: ``{parent}/{stem}_B04.tif``.

    Raises:
        ValueError: A pattern is not valid, or a folder has no such images.
    """
    names, files = {}, {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder}: images with one file per channel are given as a folder")
        channels = {f"channel {number}": pattern for number, pattern in enumerate(patterns, 1)}
        found = channel_files(channels, folder).find(WHOLE)
        if not found:
            raise ValueError(f"{folder}: no files like {patterns[0]}")
        for path, parts in found.items():
            names[parts[0]] = path.relative_to(folder).with_suffix("").as_posix()
            files[parts[0]] = parts
    return [Job(file, name, files[file]) for file, name in _distinct(names).items()]


def _distinct(names: Mapping[Path, str]) -> dict[Path, str]:
    """The names of files; those that occurred before get a number, also where case differs."""
    taken: Counter[str] = Counter()
    distinct = {}
    for file, name in names.items():
        taken[name.lower()] += 1
        number = taken[name.lower()]
        distinct[file] = name if number == 1 else f"{name}-{number}"
    return distinct


def predict_files(
    predictor: Predictor,
    jobs: Sequence[Job],
    out: str | Path,
    *,
    overlay: bool = True,
    overwrite: bool = False,
    skip_existing: bool = False,
    on_image: Callable[[], None] | None = None,
    on_windows: Callable[[int, int], None] | None = None,
) -> BatchResult:
    """Segment images and write label maps, overlays, confidences and ``summary.json``.

    If it is interrupted, the summary holds what was done and has ``"finished": false``.

    Args:
        predictor: Model and options.
        jobs: From `find_images` or `find_channel_files`.
        out: Output folder; created if it does not exist.
        overlay: Write overlays.
        overwrite: Replace existing files; an image that is read is never replaced.
        skip_existing: Keep existing files, and skip images that have all their files.
        on_image: Called after each image, whether it was written, failed or skipped.
        on_windows: See `Predictor.stream`.

    Raises:
        OutputExists: A file would be replaced; nothing is written.
        ValueError: The results cannot be written as asked, or not into the folder; nothing is
            written.
    """
    plan = plan_outputs(
        jobs,
        out,
        overlay=overlay,
        confidence=predictor.config.confidence,
        multilabel=predictor.model.config.multilabel,
        overwrite=overwrite,
        skip_existing=skip_existing,
    )
    return _Batch(predictor, plan, on_image).run(on_windows)


class _Batch:
    """One run over many images."""

    def __init__(
        self, predictor: Predictor, plan: Plan, on_image: Callable[[], None] | None
    ) -> None:
        self.predictor, self.plan, self.on_image = predictor, plan, on_image
        self.classes = list(predictor.model.classes.names)
        if plan.previous.get("classes", self.classes) != self.classes:
            raise ValueError(
                f"{plan.out / SUMMARY}: these are results of a model with other classes; "
                "choose another output folder"
            )
        self.rows: dict[Path, dict[str, Any]] = {}
        self.failed: list[dict[str, str]] = []
        self.writing: list[tuple[Job, Prediction, Future[None]]] = []

    def run(self, on_windows: Callable[[int, int], None] | None) -> BatchResult:
        earlier = {row["image"]: row for row in self.plan.previous.get("images", [])}
        remaining: dict[ImageFiles, Job] = {}
        for job, missing in self.plan.missing.items():
            if missing:
                remaining[job.source] = job
                continue
            files = [self.plan.relative(path) for path in self.plan.outputs[job].values()]
            row = {"image": str(job.image), "files": files}
            self.rows[job.image] = {**earlier.get(str(job.image), row), "skipped": True}
            self._count()
        skipped = len(self.rows)
        self._write_summary(finished=False)  # marks the folder, should the process be killed
        finished = False
        try:
            with ThreadPoolExecutor(2, thread_name_prefix="writer") as pool:
                stream = self.predictor.stream(
                    list(remaining), on_error=self._fail, on_windows=on_windows
                )
                for prediction in stream:
                    assert isinstance(prediction.source, Path | tuple)
                    job = remaining[prediction.source]
                    future = pool.submit(prediction.write, self.plan.missing[job])
                    self.writing.append((job, prediction, future))
                    while self._too_many_wait():
                        self._finish_first()
                while self.writing:
                    self._finish_first()
            finished = True
        finally:
            while self.writing:
                self._finish_first()
            self._write_summary(finished=finished)
        return BatchResult(list(self.rows.values()), self.failed, skipped)

    def _too_many_wait(self) -> bool:
        pixels = sum(prediction.label_map.size for _, prediction, _ in self.writing[1:])
        return len(self.writing) > _WAITING_WRITES or pixels > _WAITING_PIXELS

    def _finish_first(self) -> None:
        job, prediction, future = self.writing.pop(0)
        try:
            future.result()
        except (ValueError, OSError, MemoryError) as error:
            self._fail(job.source, error)
            return
        height, width = prediction.label_map.shape
        fractions = prediction.class_fractions
        row = {
            "image": str(job.image),
            "height": height,
            "width": width,
            "files": [self.plan.relative(path) for path in self.plan.outputs[job].values()],
            "class_fractions": {name: round(value, 6) for name, value in fractions.items()},
        }
        if prediction.confidence is not None:
            row["mean_confidence"] = round(float(prediction.confidence.mean()), 6)
        self.rows[job.image] = row
        self._count()

    def _fail(self, source: ImageSource, error: Exception) -> None:
        self.failed.append({"image": image_name(source), "error": str(error)})
        self._count()

    def _count(self) -> None:
        if self.on_image is not None:
            self.on_image()

    def _images(self) -> list[dict[str, Any]]:
        """Entries of a continued summary's other images, then those of this run in order."""
        own = {str(job.image) for job in self.plan.outputs}
        others = [row for row in self.plan.previous.get("images", []) if row["image"] not in own]
        done = [self.rows[job.image] for job in self.plan.outputs if job.image in self.rows]
        return [*others, *done]

    def _write_summary(self, finished: bool) -> None:
        content = {"classes": self.classes, "images": self._images(), "failed": self.failed}
        write_json(self.plan.out / SUMMARY, self.plan.summary(finished, **content))


def _is_visible_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file()


def _without_results(
    files: Sequence[Path],
    searched: Path | None,
    out: str | Path | None,
    results: dict[Path, set[Path]],
) -> list[Path]:
    """The files that are not results of predictions, with a message about the others.

    Args:
        files: Found in a folder or by a pattern.
        searched: The folder; None for a pattern.
        out: Output folder of this run; if it lies in the searched folder, it is not searched.
        results: Results of earlier predictions by folder, extended here.
    """
    inside: Path | None = None
    if out is not None and searched is not None:
        inside, root = Path(out).resolve(), searched.resolve()
        if inside == root or inside in root.parents:
            inside = None
    kept, skipped = [], Counter[Path]()
    for file in files:
        resolved = file.resolve()
        if inside is not None and inside in resolved.parents:
            skipped[inside] += 1
            continue
        for folder in resolved.parents:
            if folder not in results:
                results[folder] = results_in(folder)
            if resolved in results[folder]:
                skipped[folder] += 1
                break
        else:
            kept.append(file)
    for folder, count in skipped.items():
        logger.info(f"{folder}: {count} results of predictions are skipped")
    return kept
