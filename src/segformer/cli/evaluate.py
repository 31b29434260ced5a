"""`segformer evaluate`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from segformer.cli.terminal import PARTIAL, parse, show

if TYPE_CHECKING:
    from segformer.cli.models import OpenedModel


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.data.options import SeededSourceOptions
    from segformer.evaluation.matching import MatchClasses
    from segformer.prediction.config import PredictConfig

    @dataclass
    class Evaluate:
        """Score a model on a data set and write report.json and confusion.png.

        A segmentation model is compared with masks, at the size of each mask: IoU, accuracy and
        Dice per class. A classifier is compared with the folders of the images: top-1 and top-5
        accuracy.

        Example: segformer evaluate water/ --model runs/water/best --out evaluation

        Unreadable images and masks are skipped and listed, and the report is written without them.
        The exit code is then 3.

        Attributes:
            dataset: Folder with dataset.yaml, or with images/val and masks/val, or in a known
                layout; for a classifier, folder with val/CLASS/.
            model: Folder, file or Hub id of the model.
            split: Split of the data set to evaluate.
            out: Folder for report.json and confusion.png.
            overwrite: Replace these two files if they exist, instead of refusing to start.
            match_classes: Match the model's classes with those of the data set by name (case is
                ignored, the order may differ), or by position, where equal class ids mean the
                same class whatever the names.
        """

        dataset: tyro.conf.Positional[Path]
        model: str
        split: str = "val"
        out: Path = Path("evaluation")
        overwrite: bool = False
        match_classes: MatchClasses = "name"
        config: Annotated[
            PredictConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="prediction")
        ] = field(default_factory=PredictConfig)
        reading: Annotated[
            SeededSourceOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="data set")
        ] = field(default_factory=SeededSourceOptions)

    options = parse(Evaluate, "evaluate", words)

    from segformer.cli.models import open_model
    from segformer.evaluation.evaluate import REPORT_FILES
    from segformer.files import check_replaceable, check_writable

    check_replaceable([options.out / name for name in REPORT_FILES], overwrite=options.overwrite)
    check_writable(options.out)
    model = open_model(options.model)
    evaluate = _evaluate_classes if model.kind == "classifier" else _evaluate_masks
    table, written, failed = evaluate(options, model)
    show(table)
    print("written: " + ", ".join(str(path) for path in written))
    if failed:
        print(f"skipped images: {len(failed)}", file=sys.stderr)
        for failure in failed:
            print(f"  {failure}", file=sys.stderr)
        return PARTIAL
    return 0


def _evaluate_masks(options: Any, model: "OpenedModel") -> tuple[Any, list[Path], Sequence[object]]:
    from segformer.data.source import open_split
    from segformer.evaluation.evaluate import Failure, evaluate, score_table, write_report
    from segformer.image import image_name
    from segformer.prediction.predictor import Predictor
    from segformer.progress import ProgressBar

    dataset = open_split(options.dataset, options.split, options.reading, options.reading.seed)
    predictor = Predictor(model.load(), options.config)
    failed: list[Failure] = []
    with ProgressBar("evaluating", len(dataset), "images") as bar:
        matrix = evaluate(
            dataset,
            predictor,
            match_classes=options.match_classes,
            on_image=bar.advance,
            on_error=lambda source, error: failed.append(Failure(image_name(source), str(error))),
        )
    written = write_report(matrix, options.out, dataset, _protocol(options), failed)
    return score_table(matrix.scores()), written, failed


def _evaluate_classes(
    options: Any, model: "OpenedModel"
) -> tuple[Any, list[Path], Sequence[object]]:
    from segformer.data.class_folders import open_class_folders
    from segformer.evaluation.classify import class_table, evaluate_classes, write_class_report
    from segformer.prediction.classifier import ClassPredictor, check_classifier_options
    from segformer.progress import ProgressBar

    check_classifier_options(options.config)
    if options.reading.divides or options.reading.layout is not None:
        raise ValueError("a classifier reads folders of classes; layout and division do not apply")
    dataset = open_class_folders(options.dataset, options.split)
    predictor = ClassPredictor(model.load(), options.config)
    with ProgressBar("evaluating", len(dataset), "images") as bar:
        scores = evaluate_classes(
            dataset, predictor, match_classes=options.match_classes, on_image=bar.advance
        )
    written = write_class_report(scores, options.out, dataset, _protocol(options))
    return class_table(scores), written, scores.failed


def _protocol(options: Any) -> dict[str, object]:
    """What the report says of the model and of how it saw the images."""
    return {
        "model": options.model,
        "match_classes": options.match_classes,
        "protocol": asdict(options.config),
    }
