"""Any number of images to files: listed, planned and summarized while others are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segformer.files import check_writable
from segformer.prediction.names import NameSet
from segformer.prediction.outputs import SUMMARY, Job, read_summary
from segformer.prediction.prediction import output_paths
from segformer.prediction.predictor import Predictor
from segformer.prediction.sharding import Shard
from segformer.prediction.summary_lines import (
    SummaryLines,
    check_parquet,
    check_summary,
    find_lines,
    lines_path,
    read_rows,
    write_parquet,
)
from segformer.prediction.writing import Row, Task, write_predictions

_SHOWN_FAILURES = 20
_FOLDERS = 64
"""Output folders whose names are kept."""


@dataclass
class StreamResult:
    """What became of the images.

    Attributes:
        summary: The file with a line for each image.
        done: Number of images that were segmented in this run.
        skipped: Number of images whose results existed.
        failed: Number of images that failed.
        failures: The first of these: image and error.
    """

    summary: Path
    done: int = 0
    skipped: int = 0
    failed: int = 0
    failures: list[Row] = field(default_factory=list)


def predict_stream(
    predictor: Predictor,
    jobs: Iterable[Job],
    out: str | Path,
    *,
    sources: Sequence[str | Path],
    overlay: bool = True,
    overwrite: bool = False,
    skip_existing: bool = False,
    shard: Shard | None = None,
    parquet: bool = False,
    on_image: Callable[[], None] | None = None,
    on_windows: Callable[[int, int], None] | None = None,
) -> StreamResult:
    """Segment images that are listed while others are computed; memory does not grow.

    Writes what `batch.predict_files` writes, with a summary of JSON lines in place of
    ``summary.json``. An output file that exists is found when its image is planned: without
    ``overwrite`` and ``skip_existing`` it is kept, and the image counts as failed.

    Args:
        predictor: Model and options.
        jobs: From `listing.list_images`.
        out: Output folder; created if it does not exist.
        sources: What the images were listed from.
        overlay: Write overlays.
        overwrite: Replace existing files.
        skip_existing: Keep existing files, skip images that have all their files, and continue the
            summary. Which files exist is read once for each output folder.
        shard: Segment only this part of the images.
        parquet: At the end, also write the summary as a Parquet file, with one row for each image.
        on_image: Called after each image, whether it was written, failed or skipped.
        on_windows: See `Predictor.stream`.

    Raises:
        ValueError: The output folder has images of ``sources`` in it, cannot be written into, or
            holds results of other images or classes. Nothing is written.
        DiskFull: There is no space for results.
    """
    out = Path(out)
    check_stream(
        sources,
        out,
        shard=shard,
        parquet=parquet,
        overwrite=overwrite,
        skip_existing=skip_existing,
    )
    summary = SummaryLines(
        lines_path(out, shard),
        {
            "classes": list(predictor.model.classes.names),
            "sources": [str(Path(source).absolute()) for source in sources],
            "shard": None if shard is None else str(shard),
        },
        overwrite=overwrite,
        resume=skip_existing,
    )
    config = predictor.config
    stream = _Stream(
        out,
        summary,
        {
            "overlay": overlay,
            "confidence": config.confidence,
            "multilabel": predictor.model.config.multilabel,
        },
        "replace" if overwrite else "keep" if skip_existing else "fail",
        on_image,
    )
    try:
        chosen = (job for job in jobs if shard is None or job.name in shard)
        write_predictions(predictor, stream.tasks(chosen), stream.add, on_windows=on_windows)
        result = stream.result
        counts = {"done": result.done, "failed": result.failed, "skipped": result.skipped}
        summary.append({"finished": True, **counts})
    finally:
        summary.close()
    if parquet:
        write_parquet(read_rows([summary.path]), summary.path.with_suffix(".parquet"))
    return result


def check_stream(
    sources: Sequence[str | Path],
    out: Path,
    *,
    shard: Shard | None,
    parquet: bool,
    overwrite: bool,
    skip_existing: bool,
) -> None:
    """Refuse what can be refused before images are listed and a model is loaded.

    The arguments are those of `predict_stream`.

    Raises:
        ValueError: There are images to segment in the output folder, it cannot be written into, or
            the summary would replace one.
    """
    if overwrite and skip_existing:
        raise ValueError("give overwrite or skip_existing, not both")
    resolved = out.resolve()
    for source in sources:
        path = Path(source).resolve()
        folder = path if path.is_dir() else path.parent
        if resolved == folder or resolved in folder.parents:
            raise ValueError(
                f"{out}: the images of {source} are in this folder; choose another --out, which "
                "may be a folder inside of it"
            )
    if read_summary(out / SUMMARY) and not find_lines(out):
        raise ValueError(
            f"{out / SUMMARY}: these results have a summary in another format; choose another --out"
        )
    check_writable(out)
    lines = lines_path(out, shard)
    if parquet:
        check_parquet()
    if not skip_existing:
        check_summary([lines, *([lines.with_suffix(".parquet")] if parquet else [])], overwrite)


class _Stream:
    """The images of one run, as they are planned and done.

    Args:
        out: Output folder.
        summary: Where rows go.
        outputs: Which files are written; see `output_paths`.
        existing: What is done about files that exist: "replace", "keep" or "fail".
        on_image: Called after each image.
    """

    def __init__(
        self,
        out: Path,
        summary: SummaryLines,
        outputs: dict[str, bool],
        existing: str,
        on_image: Callable[[], None] | None,
    ) -> None:
        self.out, self.summary, self.outputs = out, summary, outputs
        self.existing, self.on_image = existing, on_image
        self.result = StreamResult(summary.path)
        self._names: dict[Path, NameSet] = {}

    def tasks(self, jobs: Iterable[Job]) -> Iterator[Task]:
        """What is to be done; other images are counted as skipped or failed."""
        for job in jobs:
            paths = output_paths(self.out, job.name, **self.outputs)
            files = tuple(path.relative_to(self.out).as_posix() for path in paths.values())
            task = Task(job.source, str(job.image), files, paths)
            if self.outputs["confidence"] and job.name.endswith("_confidence"):
                self.add(
                    task, _failed(task, f"{files[0]} could be the confidence of another image")
                )
                continue
            if self.existing != "replace":
                there = {output for output, path in paths.items() if self._exists(path)}
                if self.existing == "fail" and there:
                    first = next(path for output, path in paths.items() if output in there)
                    advice = "pass --overwrite to replace it, or --skip-existing to keep it"
                    self.add(task, _failed(task, f"{first} already exists; {advice}"))
                    continue
                if len(there) == len(paths):
                    self._skip(task)
                    continue
                missing = {output: path for output, path in paths.items() if output not in there}
                task = Task(task.source, task.image, files, missing)
            yield task

    def add(self, task: Task, row: Row) -> None:
        """Count and summarize an image that is done or has failed."""
        self.summary.append(row)
        if "error" in row:
            self.result.failed += 1
            if len(self.result.failures) < _SHOWN_FAILURES:
                self.result.failures.append(row)
        else:
            self.result.done += 1
        self._count()

    def _skip(self, task: Task) -> None:
        if task.image not in self.summary.done:  # the process was killed before the row was written
            self.summary.append({"image": task.image, "files": task.files, "skipped": True})
        self.result.skipped += 1
        self._count()

    def _count(self) -> None:
        if self.on_image is not None:
            self.on_image()

    def _exists(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._names:
            while len(self._names) >= _FOLDERS:
                del self._names[next(iter(self._names))]
            self._names[folder] = NameSet.of_folder(folder)
        return path.name in self._names[folder]


def _failed(task: Task, error: str) -> Row:
    return {"image": task.image, "error": f"{task.image}: {error}"}
