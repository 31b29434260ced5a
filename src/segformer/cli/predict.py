"""`segformer predict`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segformer.cli.predict_many import (
    is_streamed,
    refuse_uris,
    segment_on_cluster,
    segment_stream,
)
from segformer.cli.terminal import parse, print_outcome, printable

if TYPE_CHECKING:
    from segformer.cli.models import OpenedModel
    from segformer.prediction.outputs import Job

_SHOWN = 10
"""Images, up to which there is a line for each."""


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.cluster.options import ClusterOptions
    from segformer.options import depends
    from segformer.prediction.config import PredictConfig
    from segformer.prediction.video.options import VideoOptions
    from segformer.raster.config import SceneConfig
    from segformer.raster.polygons_config import PolygonConfig
    from segformer.raster.stac_config import StacConfig

    @dataclass
    class Predict:
        """Segment images and videos: label maps as PNG, overlays with a legend, and a summary.

        Example: segformer predict holiday/ --model runs/mine/best --out masks

        For each image there are NAME.png (class ids) and NAME_overlay.jpg, with --confidence also
        NAME_confidence.png (8-bit: 255 is a probability of 1); summary.json lists the files and
        the class fractions. With a classifier there is classes.json: the five most probable
        classes of each image. Unreadable images are skipped and listed.

        A video gives NAME_overlay.mp4 in the folder, or the file that --out names: --out clip.mp4.
        A video that is broken or interrupted gives NAME.incomplete.mp4, up to where it breaks.

        A georeferenced scene (a GeoTIFF, a VRT, a URL, a STAC item) is predicted window by window
        whatever its size, into NAME.tif; see the scene options below. With --cluster its parts are
        spread over the machines.

        Attributes:
            images: Files, folders, or patterns such as 'photos/*.jpg'. Or videos: files, addresses
                such as rtsp://host/stream, or the number of a camera. With --cluster also URIs
                such as s3://bucket/photos, and Parquet files with a column uri.
            channel_files: Images with one file per channel: the path of each channel's file in the
                folder that is given as IMAGE, in the model's order, such as '{stem}_B04.tif'
                '{stem}_B03.tif', with {stem} for the name of the image and {parent}/ for
                subfolders.
            model: Folder, file or Hub id of a model. A folder that "segformer export" wrote runs
                without PyTorch.
            out: Folder for the results, or the file of a video's overlay.
            overlay: Write overlays.
            summary: json: summary.json, with all checks before anything is computed. jsonl:
                summary.jsonl, a line for each image; images are listed while others are computed,
                so that memory does not grow. parquet: the same, and summary.parquet at the end.
            shard: Segment only one of N parts of the images, such as 3/16 for the third of 16.
            overwrite: Replace files that exist. An image that is read is never replaced.
            skip_existing: Keep files that exist, and skip images that have all their results.
        """

        images: Annotated[
            tyro.conf.Positional[tuple[str, ...]],
            tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint=""),
        ]
        channel_files: Annotated[
            tuple[str, ...], depends("PATTERN ...", "one file has all channels")
        ] = ()
        model: Annotated[str | None, depends("MODEL", "the human parsing model inside")] = None
        out: Path = Path("predictions")
        overlay: bool = True
        summary: Annotated[
            Literal["json", "jsonl", "parquet"] | None,
            depends("json|jsonl|parquet", "json; jsonl from 10,000 images on"),
        ] = None
        shard: Annotated[str | None, depends("I/N", "all images")] = None
        overwrite: bool = False
        skip_existing: bool = False
        config: Annotated[
            PredictConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="prediction")
        ] = field(default_factory=PredictConfig)
        video: Annotated[VideoOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="video")] = (
            field(default_factory=VideoOptions)
        )
        scenes: Annotated[SceneConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="scene")] = (
            field(default_factory=SceneConfig)
        )
        scene_polygons: Annotated[
            PolygonConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="polygon")
        ] = field(default_factory=PolygonConfig)
        scene_item: Annotated[StacConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="item")] = (
            field(default_factory=StacConfig)
        )
        machines: Annotated[
            ClusterOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="many machines")
        ] = field(default_factory=ClusterOptions)

    options = parse(Predict, "predict", words)
    if not options.images:
        raise ValueError("no images given; name files, folders or patterns")
    from segformer.cli.predict_scene import find_scenes, predict_scenes

    if options.machines.cluster is not None:
        from segformer.cli.predict_scene_cluster import find_cluster_scenes

        scenes = find_cluster_scenes(options, words)
        return predict_scenes(options, scenes) if scenes else segment_on_cluster(options, words)

    from segformer.cli.models import open_model
    from segformer.prediction.listing import find_channel_files, list_images
    from segformer.prediction.video.source import only_videos

    if only_videos(options.images):
        from segformer.cli.predict_video import segment_videos

        return segment_videos(options, open_model(options.model))
    if options.video != VideoOptions():
        raise ValueError("--every, --smoothing, --masks and --duration are options for videos")
    scenes = find_scenes(options, words)
    if scenes:
        return predict_scenes(options, scenes)
    refuse_uris(options)
    jobs: Iterable[Job]
    if options.channel_files:
        jobs = find_channel_files(options.images, options.channel_files)
    else:
        jobs = list_images(options.images, out=options.out)
    model = open_model(options.model)
    if len(options.channel_files) not in (0, model.config.in_channels):
        raise ValueError(
            f"--channel-files names {len(options.channel_files)} channels, the model takes "
            f"{model.config.in_channels}"
        )
    if model.kind == "classifier":
        only = {"--overlay", "--no-overlay", "--skip-existing", "--summary", "--shard"}
        given = only.intersection(words)
        if given:
            raise ValueError(
                f"the model is a classifier, which gives one class per image: {min(given)} cannot "
                "be used with it"
            )
        return _classify(options, list(jobs), model)
    streamed, jobs = is_streamed(options, jobs)
    if streamed:
        return segment_stream(options, jobs, model)
    return _segment(options, list(jobs), model)


def _segment(options: Any, jobs: "Sequence[Job]", model: "OpenedModel") -> int:
    from segformer.prediction.batch import predict_files
    from segformer.prediction.outputs import plan_outputs
    from segformer.prediction.predictor import Predictor
    from segformer.progress import ProgressBar

    policy = {
        "overlay": options.overlay,
        "overwrite": options.overwrite,
        "skip_existing": options.skip_existing,
    }
    # Before the model is built, as a refusal should not take time
    plan_outputs(
        jobs,
        options.out,
        confidence=options.config.confidence,
        multilabel=model.config.multilabel,
        **policy,
    )
    predictor = Predictor(model.load(), options.config)
    with ProgressBar("predicting", len(jobs), "images") as bar:
        result = predict_files(
            predictor,
            jobs,
            options.out,
            **policy,
            on_image=bar.advance,
            on_windows=lambda done, count: bar.within(done / count, f"window {done}/{count}"),
        )
    if len(result.images) <= _SHOWN:
        for row in result.images:
            _print_best(row["image"], row.get("class_fractions", {}))
    return print_outcome(
        f"images segmented into {options.out}",
        done=len(result.images),
        earlier=result.skipped,
        failed=len(result.failed),
        errors=[failure["error"] for failure in result.failed],
    )


def _classify(options: Any, jobs: "Sequence[Job]", model: "OpenedModel") -> int:
    from segformer.files import check_replaceable, write_json
    from segformer.image import ImageSource, image_name
    from segformer.prediction.classifier import ClassPredictor, check_classifier_options
    from segformer.progress import ProgressBar

    check_classifier_options(options.config)
    written = options.out / "classes.json"
    check_replaceable([written], overwrite=options.overwrite)
    predictor = ClassPredictor(model.load(), options.config)
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    content = {"model": options.model, "finished": False, "images": rows, "failed": failed}
    write_json(written, content)  # fails here, not after the work, if it cannot be written

    with ProgressBar("classifying", len(jobs), "images") as bar:

        def fail(source: ImageSource, error: Exception) -> None:
            failed.append({"image": image_name(source), "error": str(error)})
            bar.advance()

        try:
            for result in predictor.stream([job.source for job in jobs], on_error=fail):
                rows.append({"image": image_name(result.source), "classes": result.top(5)})
                bar.advance()
            content["finished"] = True
        finally:
            write_json(written, content)
    for row in rows[:_SHOWN]:
        _print_best(row["image"], row["classes"])
    return print_outcome(
        f"images classified into {written}",
        done=len(rows),
        failed=len(failed),
        errors=[failure["error"] for failure in failed],
    )


def _print_best(image: str, classes: dict[str, float]) -> None:
    best = ", ".join(f"{name} {fraction:.0%}" for name, fraction in list(classes.items())[:5])
    print(printable(f"{image}: {best}" if best else image))
