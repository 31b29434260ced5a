"""`segformer predict` for videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segformer.cli.models import OpenedModel
from segformer.cli.terminal import FAILED, PARTIAL, printable
from segformer.prediction.prediction import Prediction
from segformer.prediction.video.options import VideoPaths, is_video_file, plan_video
from segformer.prediction.video.predict import VideoProgress, VideoResult, predict_video
from segformer.prediction.video.source import shown_name


def segment_videos(options: Any, model: OpenedModel) -> int:
    """Segment videos one after the other; returns the exit code.

    Args:
        options: Those of the command.
        model: What segments them.
    """
    plans = _plan(options, model)
    from segformer.prediction.predictor import Predictor

    predictor = Predictor(model.load(), options.config)
    results: list[VideoResult] = []
    failed: list[str] = []
    for source, paths in plans.items():
        if options.skip_existing and all(path.exists() for path in paths.all):
            print(printable(f"{shown_name(source)}: skipped, there are results"))
            continue
        try:
            results.append(_segment(predictor, source, options))
        except (ValueError, MemoryError) as error:
            failed.append(str(error))
    for message in failed:
        print(printable(f"segformer predict: {message}"), file=sys.stderr)
    if failed:
        return PARTIAL if results else FAILED
    return PARTIAL if any(result.broken for result in results) else 0


def _segment(predictor: Any, source: str, options: Any) -> VideoResult:
    from segformer.progress import ProgressBar

    with ProgressBar(shown_name(source), None, "frames") as bar:

        def advance(_: Prediction, progress: VideoProgress) -> None:
            bar.total = progress.total
            bar.advance(note=f"at {progress.seconds:.1f} s")

        result = predict_video(
            predictor,
            source,
            options.out,
            **asdict(options.video),
            overlay=options.overlay,
            overwrite=options.overwrite,
            on_frame=advance,
        )
        rate = bar.rate
    dropped = f", {result.dropped} left out because the model was slower" if result.dropped else ""
    files = ", ".join(map(str, result.files))
    print(
        printable(
            f"{shown_name(source)}: {result.frames} frames segmented into {files}, "
            f"{rate:.1f} frames/s{dropped}"
        )
    )
    return result


def _plan(options: Any, model: OpenedModel) -> dict[str, VideoPaths]:
    """The results of each video, checked before the model is loaded.

    Raises:
        ValueError: The options do not fit, or results cannot be written.
    """
    if model.kind != "segmenter":
        raise ValueError("the model is a classifier; videos need a model that segments")
    if options.channel_files or options.config.confidence:
        raise ValueError("--channel-files and --confidence cannot be used with videos")
    if options.overwrite and options.skip_existing:
        raise ValueError("give --overwrite or --skip-existing, not both")
    sources: Sequence[str] = options.images
    if len(sources) > 1 and is_video_file(options.out):
        raise ValueError(f"{options.out}: several videos need a folder for their results")
    plans: dict[str, VideoPaths] = {}
    owners: dict[Path, str] = {}
    for source in sources:
        paths = plan_video(source, options.out, options.video, overlay=options.overlay)
        for path in paths.all:
            other = owners.setdefault(path, source)
            if other != source:
                raise ValueError(
                    f"{shown_name(other)} and {shown_name(source)} would both be written to "
                    f"{path}; predict them into different folders"
                )
        if not (options.skip_existing and all(path.exists() for path in paths.all)):
            paths.check(source, overwrite=options.overwrite)
        plans[source] = paths
    return plans
