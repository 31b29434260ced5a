"""What a worker does with a range of the list. Nothing here knows of Ray.

Each image is computed and written as in a folder on one machine (`prediction.writing`); only
reading and writing go through `cluster.storage`.
"""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from segformer.classes import ClassSet
from segformer.cluster import storage
from segformer.cluster.manifest import Part, Unit, read_part, read_table, write_table
from segformer.cluster.storage import Unreachable, join
from segformer.image import ImageArray, ImageSource, UnreadableImage, read_image, read_mask
from segformer.prediction.prediction import Output, Prediction, output_paths
from segformer.prediction.predictor import Predictor
from segformer.prediction.summary_lines import as_table
from segformer.prediction.writing import Row, Task, row_of, write_predictions

_LOOKUPS = 32
"""Files that are looked up at the same time."""


@dataclass(frozen=True)
class Outputs:
    """Where results go, and which there are.

    Attributes:
        out: Output folder, a URI or an absolute path.
        overlay: Overlays are written.
        confidence: Confidences are written.
        multilabel: The model's classes may overlap.
    """

    out: str
    overlay: bool
    confidence: bool
    multilabel: bool

    def files(self, name: str) -> dict[Output, str]:
        """The results of an image, relative to the output folder."""
        paths = output_paths(
            Path(),
            name,
            overlay=self.overlay,
            confidence=self.confidence,
            multilabel=self.multilabel,
        )
        return {output: path.as_posix() for output, path in paths.items()}


@dataclass
class UnitResult:
    """What became of the images of a unit.

    Attributes:
        unit: The range.
        done: Number of images that were segmented.
        skipped: Number of images whose results existed.
        failed: Those that failed: image and error.
        seconds: How long it took.
    """

    unit: Unit
    done: int = 0
    skipped: int = 0
    failed: list[Row] = field(default_factory=list)
    seconds: float = 0.0


def read_remotely(predictor: Predictor) -> None:
    """Let a predictor read URIs; its reading threads fetch them ahead of the model."""

    def read(source: ImageSource) -> ImageArray:
        uri = str(source)
        try:
            return read_image(
                storage.read_bytes(uri),
                predictor.model.config.in_channels,
                as_8_bit=predictor.preprocessing.expects_8_bit,
                value_range=predictor.config.value_range,
                nodata=predictor.preprocessing.nodata,
            )
        except UnreadableImage as error:
            raise UnreadableImage(str(error).replace("image in memory", uri, 1)) from None

    predictor.reader = read


def run_unit(predictor: Predictor, outputs: Outputs, unit: Unit) -> UnitResult:
    """Segment the images of a unit whose results do not exist, and write its summary.

    Results are written whole, and the summary after them. So a unit that was interrupted can be run
    again by any worker, which then does what is missing.

    Args:
        predictor: Model and options, prepared by `read_remotely`.
        outputs: Where results go.
        unit: The range.

    Raises:
        CannotContinue: Further images would fail as well: no space or no access.
        Unreachable: The list cannot be read or the summary cannot be written.
    """
    began = time.monotonic()
    out = outputs.out
    part = Part(unit.part, unit.count)
    rows: dict[str, Row] = {}
    result = UnitResult(unit)
    tasks, skipped = [], []
    for uri, name, missing in _planned(outputs, read_part(out, part, unit.start, unit.stop)):
        files = outputs.files(name)
        paths = {output: Path(file) for output, file in files.items() if output in missing}
        task = Task(uri, uri, tuple(files.values()), paths)
        if missing:
            tasks.append(task)
        else:
            skipped.append(task)
            rows[uri] = {"image": uri, "files": list(task.files)}

    def add(task: Task, row: Row) -> None:
        rows[task.image] = row
        if "error" in row:
            result.failed.append(row)
        else:
            result.done += 1

    with tempfile.TemporaryDirectory(prefix="segformer-") as folder:

        def write(prediction: Prediction, task: Task) -> None:
            _write(prediction, task, out, Path(folder))

        write_predictions(predictor, tasks, add, write=write)
    if skipped:
        _complete(rows, skipped, outputs, unit, predictor.model.classes)
        result.skipped = len(skipped)
    write_summary(out, unit, list(rows.values()))
    result.seconds = time.monotonic() - began
    return result


def write_summary(out: str, unit: Unit, rows: list[Row]) -> None:
    """Write the summary of a unit, which marks it as done, and the list of its failures."""
    failed = [row for row in rows if "error" in row]
    if failed:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in failed)
        storage.write_bytes(
            join(out, unit.failures), lines.encode("utf-8", errors="backslashreplace")
        )
    write_table(join(out, unit.summary), as_table(rows))
    if not failed:
        storage.remove(join(out, unit.failures))


def _planned(outputs: Outputs, images: list[tuple[str, str]]) -> list[tuple[str, str, set[Output]]]:
    """The images, each with those of its results that do not exist."""
    files = [
        (row, output, join(outputs.out, file))
        for row, (_, name) in enumerate(images)
        for output, file in outputs.files(name).items()
    ]
    with ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup") as pool:
        found = list(pool.map(storage.exists, [uri for _, _, uri in files]))
    missing: list[set[Output]] = [set() for _ in images]
    for (row, output, _), there in zip(files, found, strict=True):
        if not there:
            missing[row].add(output)
    return [(uri, name, lacks) for (uri, name), lacks in zip(images, missing, strict=True)]


def _write(prediction: Prediction, task: Task, out: str, temporary: Path) -> None:
    """Write the missing results, the label map last: with it an image is complete."""
    for output, path in reversed(list(task.missing.items())):
        with tempfile.TemporaryDirectory(dir=temporary) as folder:
            local = Path(folder) / path.name
            prediction.write({output: local})
            storage.write_bytes(join(out, path.as_posix()), local.read_bytes())


def _complete(
    rows: dict[str, Row], skipped: list[Task], outputs: Outputs, unit: Unit, classes: ClassSet
) -> None:
    """Complete the rows of images whose results existed.

    They are in an earlier summary of the unit, or, if it was interrupted before there was one, they
    are computed from the label maps.
    """
    try:
        table = read_table(join(outputs.out, unit.summary)).to_pylist()
    except Unreachable:
        table = []
    earlier = {row["image"]: row for row in table if row["error"] is None}
    for task in skipped:
        if row := earlier.get(task.image):
            kept = {key: value for key, value in row.items() if value is not None}
            rows[task.image] = {**kept, "class_fractions": dict(row["class_fractions"])}
        elif not outputs.multilabel:
            label_map = read_mask(storage.read_bytes(join(outputs.out, task.files[0])))
            rows[task.image] = row_of(Prediction(label_map, classes, label_map), task)
