"""Measure what a folder of a million images costs without the model: listing, planning, summary.

    python benchmarks/many_images.py FOLDER --generate 1000000 --per-folder 1000000
    python benchmarks/many_images.py FOLDER --generate 1000000 --per-folder 1000

The images are empty files, and a predictor that reads nothing takes the place of the model. Results
are empty files too. The second line is a run with `--skip-existing`, which has nothing left to do.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from segformer import ClassSet
from segformer.prediction.listing import list_images
from segformer.prediction.prediction import Output, Prediction
from segformer.prediction.streaming import predict_stream

CLASSES = ClassSet(("background", "object"))
PIXEL = np.ones((1, 1), np.uint8)
IMAGE = np.zeros((1, 1, 3), np.uint8)


class EmptyFiles(Prediction):
    """A prediction whose files are empty."""

    def write(self, paths: Mapping[Output, Path]) -> None:
        """Write them."""
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


class NoModel:
    """A predictor that reads nothing."""

    model = SimpleNamespace(classes=CLASSES, config=SimpleNamespace(multilabel=False))
    config = SimpleNamespace(confidence=False)

    def stream(self, sources: Iterable[Path], **_: Any) -> Iterator[Prediction]:
        """Predictions of one pixel."""
        for source in sources:
            yield EmptyFiles(PIXEL, CLASSES, IMAGE, source)


def main() -> None:
    parser = argparse.ArgumentParser(description="A folder of many images, without the model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generate", type=int, help="number of empty images to write first")
    parser.add_argument("--per-folder", type=int, default=1000)
    parser.add_argument("--resume", action="store_true", help="only the run with nothing to do")
    options = parser.parse_args()
    if options.generate:
        generate(options.folder, options.generate, options.per_folder)
    out = options.folder.with_name(options.folder.name + "-out")
    if not options.resume:
        shutil.rmtree(out, ignore_errors=True)
    before = peak_mib()
    began = time.perf_counter()
    listed = sum(1 for _ in list_images([options.folder], out=out))
    seconds = time.perf_counter() - began
    print(json.dumps({"listed": listed, "images_per_s": round(listed / seconds)}))
    for skip_existing in (True,) if options.resume else (False, True):
        row = measure(options.folder, out, skip_existing)
        print(json.dumps({**row, "added_peak_mib": round(peak_mib() - before, 1)}))


def generate(folder: Path, images: int, per_folder: int) -> None:
    for number in range(images):
        inside = folder / f"{number // per_folder:05}"
        if number % per_folder == 0:
            inside.mkdir(parents=True, exist_ok=True)
        (inside / f"image_{number:09}.jpg").touch()


def measure(folder: Path, out: Path, skip_existing: bool) -> dict[str, Any]:
    began, first = time.perf_counter(), 0.0

    def note() -> None:
        nonlocal first
        first = first or time.perf_counter() - began

    predict: Callable[..., Any] = predict_stream
    result = predict(
        NoModel(),
        list_images([folder], out=out),
        out,
        sources=[folder],
        overlay=False,
        skip_existing=skip_existing,
        on_image=note,
    )
    seconds = time.perf_counter() - began
    return {
        "skip_existing": skip_existing,
        "done": result.done,
        "skipped": result.skipped,
        "first_result_s": round(first, 2),
        "microseconds_per_image": round(1e6 * seconds / (result.done + result.skipped), 1),
    }


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    main()
