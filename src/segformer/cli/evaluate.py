"""`segformer evaluate`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer.cli.terminal import PARTIAL, parse, show, show_failures

if TYPE_CHECKING:
    from segformer.cli.models import OpenedModel


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.cli.scoring_options import ScoringOptions

    @dataclass(kw_only=True)
    class Evaluate(ScoringOptions):
        """Score a model on a data set and write a report.

        The report is report.html, report.json, confusion.png and per_image.csv.

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
            out: Folder for these four files.
        """

        dataset: tyro.conf.Positional[Path]
        model: str

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
    show_failures(failed)
    return PARTIAL if failed else 0


def _evaluate_masks(options: Any, model: "OpenedModel") -> tuple[Any, list[Path], Sequence[object]]:
    from segformer.data.source import open_split
    from segformer.evaluation.details import Details
    from segformer.evaluation.evaluate import Failure, evaluate, score_table, write_report
    from segformer.evaluation.multilabel import evaluate_multilabel, write_multilabel_report
    from segformer.evaluation.protocol import open_predictor
    from segformer.image import ImageSource, image_name
    from segformer.progress import ProgressBar

    dataset = open_split(options.dataset, options.split, options.reading, options.reading.seed)
    predictor = open_predictor(model.load(), options.config, options.protocol)
    failed: list[Failure] = []

    def fail(source: ImageSource, error: Exception) -> None:
        failed.append(Failure(image_name(source), str(error)))

    if dataset.multilabel:
        with ProgressBar("evaluating", len(dataset), "images") as bar:
            scores = evaluate_multilabel(dataset, predictor, on_image=bar.advance, on_error=fail)
        about = _about(options)
        written = write_multilabel_report(scores, options.out, dataset, about, failed)
        return scores.table(), written, failed
    details = Details.of(predictor)
    with ProgressBar("evaluating", len(dataset), "images") as bar:
        matrix = evaluate(
            dataset,
            predictor,
            match_classes=options.match_classes,
            on_image=bar.advance,
            on_error=fail,
            collector=details,
        )
    written = write_report(matrix, options.out, dataset, _about(options), details, failed)
    return score_table(matrix.scores()), written, failed


def _evaluate_classes(
    options: Any, model: "OpenedModel"
) -> tuple[Any, list[Path], Sequence[object]]:
    from segformer.data.class_folders import open_class_folders
    from segformer.evaluation.classify import class_table, evaluate_classes, write_class_report
    from segformer.prediction.classifier import ClassPredictor, check_classifier_options
    from segformer.progress import ProgressBar

    check_classifier_options(options.config)
    if options.protocol != "default":
        raise ValueError("protocol is an option of segmentation models; this is a classifier")
    if options.reading.divides or options.reading.layout is not None:
        raise ValueError("a classifier reads folders of classes; layout and division do not apply")
    dataset = open_class_folders(options.dataset, options.split)
    predictor = ClassPredictor(model.load(), options.config)
    with ProgressBar("evaluating", len(dataset), "images") as bar:
        scores = evaluate_classes(
            dataset, predictor, match_classes=options.match_classes, on_image=bar.advance
        )
    written = write_class_report(scores, options.out, dataset, _about(options))
    return class_table(scores), written, scores.failed


def _about(options: Any) -> dict[str, object]:
    """What the report says of the model and of how it saw the images."""
    return {"model": options.model, **options.entries()}
