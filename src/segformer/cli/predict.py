"""`segformer predict`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer.cli.terminal import FAILED, parse

if TYPE_CHECKING:
    from segformer.prediction.config import PredictConfig


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.prediction.config import PredictConfig

    @dataclass
    class Predict:
        """Segment images: class ids as PNG, overlays with a legend, and a summary.

        Example: segformer predict holiday/ --model runs/mine/best --out masks

        Attributes:
            images: Files, folders, or patterns such as 'photos/*.jpg'.
            model: Folder, file or Hub id of a model; left out, the one that ships inside (human
                parsing). A classifier tells the five most probable classes.
            out: Folder for the results.
            overlay: Write overlays beside the ids.
        """

        images: tyro.conf.Positional[tuple[str, ...]]
        model: str | None = None
        out: Path = Path("predictions")
        overlay: bool = True
        config: tyro.conf.OmitArgPrefixes[PredictConfig] = field(default_factory=PredictConfig)

    options = parse(Predict, "predict", words)
    if not options.images:
        raise ValueError("which images? name files, folders or patterns")

    from segformer.checkpoints.opening import open_checkpoint
    from segformer.prediction.batch import find_images, predict_files
    from segformer.prediction.predictor import Predictor
    from segformer.progress import ProgressBar

    jobs = find_images(options.images)
    if options.model is not None and open_checkpoint(options.model).kind == "classifier":
        return _classify([job.image for job in jobs], options.model, options.out, options.config)
    predictor = Predictor(options.model, options.config)
    with ProgressBar("predicting", len(jobs), "images") as bar:
        result = predict_files(
            predictor, jobs, options.out, overlay=options.overlay, on_image=bar.advance
        )
    if len(result.images) <= 10:
        for row in result.images:
            largest = ", ".join(
                f"{n} {fraction:.0%}" for n, fraction in list(row["class_fractions"].items())[:5]
            )
            print(f"{row['image']}: {largest}")
    print(f"{len(result.images)} of {len(jobs)} images segmented into {options.out}")
    if result.failed:
        print(f"{len(result.failed)} failed:", file=sys.stderr)
        for failure in result.failed:
            print(f"  {failure['error']}", file=sys.stderr)
        return FAILED
    return 0


def _classify(images: list[Path], model: str, out: Path, config: "PredictConfig") -> int:
    from segformer.files import write_json
    from segformer.prediction.classifier import ClassPredictor
    from segformer.progress import ProgressBar

    failed: list[str] = []
    rows: list[dict[str, Any]] = []
    predictor = ClassPredictor(model, device=config.device, precision=config.precision)
    with ProgressBar("classifying", len(images), "images") as bar:
        for result in predictor.stream(images, on_error=lambda _, e: failed.append(str(e))):
            rows.append({"image": str(result.source), "classes": result.top(5)})
            bar.advance()
    for row in rows[:10]:
        best = ", ".join(f"{name} {fraction:.0%}" for name, fraction in row["classes"].items())
        print(f"{row['image']}: {best}")
    write_json(out / "classes.json", {"model": model, "images": rows, "failed": failed})
    print(f"{len(rows)} of {len(images)} images classified into {out / 'classes.json'}")
    for sentence in failed:
        print(f"  {sentence}", file=sys.stderr)
    return FAILED if failed else 0
