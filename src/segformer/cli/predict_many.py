"""`segformer predict` of many images: listed while others are computed, or on many machines."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer.cli.terminal import print_outcome

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
            raise ValueError("a shard of the images is summarized as jsonl or parquet, not as json")
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
    shard = "" if options.shard is None else f" of shard {options.shard}"
    return print_outcome(
        f"images{shard} segmented into {options.out}",
        done=result.done + result.skipped,
        earlier=result.skipped,
        failed=result.failed,
        errors=[row["error"] for row in result.failures],
        note=f"; see {result.summary.name}",
    )


def refuse_uris(options: Any) -> None:
    """Images and outputs of other file systems are for a cluster, which may be this machine."""
    for place in (*options.images, output_uri(options.out)):
        if "://" in place:
            raise ValueError(f"{place}: give --cluster local to read and write URIs")


def segment_on_cluster(options: Any, words: Sequence[str]) -> int:
    """Segment images on the machines of a Ray cluster; returns the exit code."""
    for option in ("channel-files", "overwrite", "skip-existing", "summary", "shard"):
        if any(word.partition("=")[0] == f"--{option}" for word in words):
            raise ValueError(
                f"--{option} cannot be used with --cluster, which keeps what exists and does what "
                "is missing"
            )
    try:
        from segformer.cluster.prediction import ClusterResult, predict_on_cluster
        from segformer.cluster.storage import absolute
        from segformer.cluster.work import Outputs
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; pip install 'segformer[cluster]' brings it"
        ) from None
    from segformer.cli.models import open_model
    from segformer.prediction.predictor import Predictor
    from segformer.progress import ProgressBar

    opened = open_model(options.model)
    if opened.kind == "classifier":
        raise ValueError("the model is a classifier, which cannot be used with --cluster")
    model = opened.load()
    outputs = Outputs(
        absolute(output_uri(options.out)),
        options.overlay,
        options.config.confidence,
        opened.config.multilabel,
    )
    with ProgressBar("predicting", None, "images") as bar:

        def show(result: ClusterResult) -> None:
            bar.total = result.images - result.earlier or None
            bar.advance(result.done + result.skipped + result.failed - bar.done)

        result = predict_on_cluster(
            model,
            Predictor(model, options.config).model.classes.names,
            options.images,
            outputs,
            options.config,
            options.machines,
            on_progress=show,
        )
    lost = f"; {result.lost_workers} workers were lost" if result.lost_workers else ""
    earlier = result.earlier + result.skipped
    return print_outcome(
        f"images segmented into {outputs.out} by {result.workers} workers in "
        f"{result.seconds:.0f} s",
        done=result.done + earlier,
        earlier=earlier,
        failed=result.failed,
        errors=[row["error"] for row in result.failures],
        note=lost,
    )


def output_uri(out: Path) -> str:
    """A URI as it was given: as a path, it has lost one of its slashes."""
    return re.sub(r"^([a-z0-9+]{2,}):/(?!/)", r"\1://", out.as_posix())
