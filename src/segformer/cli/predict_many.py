"""`segformer predict` of so many images that they are listed while others are computed."""

import sys
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from segformer.cli.terminal import FAILED, PARTIAL, printable

if TYPE_CHECKING:
    from segformer.cli.models import OpenedModel
    from segformer.prediction.outputs import Job

_FEW = 10_000
"""Images up to which all of them are planned, checked and summarized together."""


def is_streamed(options: Any, jobs: "Iterable[Job]") -> "tuple[bool, Iterable[Job]]":
    """Whether images are planned one after another, and the images.

    That is so if it is asked for, if the earlier run that is continued did so, or if there are
    many images.
    """
    from segformer.prediction.outputs import SUMMARY, read_summary
    from segformer.prediction.summary_lines import lines_path

    if options.summary is not None or options.shard is not None:
        if options.summary == "json" and options.shard is not None:
            raise ValueError("a share of the images is summarized as jsonl or parquet, not as json")
        return options.summary != "json", _begun(jobs)
    if options.skip_existing or options.overwrite:
        if lines_path(options.out).exists():
            return True, _begun(jobs)
        if read_summary(options.out / SUMMARY):
            return False, jobs
    upcoming = iter(jobs)
    first = list(islice(upcoming, _FEW))
    return len(first) == _FEW, chain(first, upcoming)


def _begun(jobs: "Iterable[Job]") -> "Iterable[Job]":
    """The same images; a folder without any is refused here, before the model is built."""
    upcoming = iter(jobs)
    return chain(list(islice(upcoming, 1)), upcoming)


def segment_stream(options: Any, jobs: "Iterable[Job]", model: "OpenedModel") -> int:
    """Segment images; returns the exit code."""
    from segformer.prediction.predictor import Predictor
    from segformer.prediction.sharding import Shard
    from segformer.prediction.streaming import check_stream, predict_stream
    from segformer.progress import ProgressBar

    policy = {
        "shard": None if options.shard is None else Shard.parse(options.shard),
        "parquet": options.summary == "parquet",
        "overwrite": options.overwrite,
        "skip_existing": options.skip_existing,
    }
    # Before the model is built, as a refusal should not take time
    check_stream(options.images, options.out, **policy)
    predictor = Predictor(model.load(), options.config)
    with ProgressBar("predicting", None, "images") as bar:
        result = predict_stream(
            predictor,
            jobs,
            options.out,
            sources=options.images,
            overlay=options.overlay,
            **policy,
            on_image=bar.advance,
            on_windows=lambda done, count: bar.within(done / count, f"window {done}/{count}"),
        )
    share = "" if options.shard is None else f" of share {options.shard}"
    skipped = f", {result.skipped} of them earlier" if result.skipped else ""
    done = result.done + result.skipped
    print(
        f"{done} of {done + result.failed} images{share} segmented into {options.out}{skipped}; "
        f"see {result.summary.name}"
    )
    errors = [row["error"] for row in result.failures]
    return exit_code(errors, result.failed, done=done)


def exit_code(errors: Sequence[str], count: int, *, done: int) -> int:
    """List errors; the code tells whether all or only some of the images failed.

    Args:
        errors: The first of them.
        count: Number of all.
        done: Number of images that did not fail.
    """
    if not count:
        return 0
    print(f"{count} failed:", file=sys.stderr)
    for error in errors:
        print(printable(f"  {error}"), file=sys.stderr)
    if count > len(errors):
        print(f"  and {count - len(errors)} more, see the summary", file=sys.stderr)
    return PARTIAL if done else FAILED
