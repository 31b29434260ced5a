"""Many images to files. Reading, computing and writing overlap; a bad file stops no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segformer.files import write_json
from segformer.image import image_name
from segformer.prediction.outputs import SUMMARY, Job, Plan, plan_outputs
from segformer.prediction.predictor import Predictor
from segformer.prediction.writing import Row, Task, write_predictions


@dataclass
class BatchResult:
    """What became of many images.

    Attributes:
        images: An entry for each image with results, image, size, files, class fractions.
        failed: An entry for each image that failed: image and error.
        skipped: Number of images that were skipped because their results exist.
    """

    images: list[Row]
    failed: list[Row]
    skipped: int


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
        jobs: From `prediction.listing`.
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
        self.rows: dict[str, Row] = {}
        self.failed: list[Row] = []

    def run(self, on_windows: Callable[[int, int], None] | None) -> BatchResult:
        earlier = {row["image"]: row for row in self.plan.previous.get("images", [])}
        tasks = []
        for job, missing in self.plan.missing.items():
            files = tuple(self.plan.relative(path) for path in self.plan.outputs[job].values())
            if missing:
                tasks.append(Task(job.source, str(job.image), files, missing))
                continue
            row = {"image": str(job.image), "files": list(files)}
            self.rows[str(job.image)] = {**earlier.get(str(job.image), row), "skipped": True}
            self._count()
        skipped = len(self.rows)
        self._write_summary(finished=False)  # marks the folder, should the process be killed
        finished = False
        try:
            write_predictions(self.predictor, tasks, self._add, on_windows=on_windows)
            finished = True
        finally:
            self._write_summary(finished=finished)
        return BatchResult(list(self.rows.values()), self.failed, skipped)

    def _add(self, task: Task, row: Row) -> None:
        if "error" in row:
            # All files, where there is one for each channel
            self.failed.append({**row, "image": image_name(task.source)})
        else:
            self.rows[task.image] = row
        self._count()

    def _count(self) -> None:
        if self.on_image is not None:
            self.on_image()

    def _images(self) -> list[Row]:
        """Entries of a continued summary's other images, then those of this run in order."""
        own = [str(job.image) for job in self.plan.outputs]
        known = set(own)
        others = [row for row in self.plan.previous.get("images", []) if row["image"] not in known]
        return [*others, *(self.rows[image] for image in own if image in self.rows)]

    def _write_summary(self, finished: bool) -> None:
        content = {"classes": self.classes, "images": self._images(), "failed": self.failed}
        write_json(self.plan.out / SUMMARY, self.plan.summary(finished, **content))
