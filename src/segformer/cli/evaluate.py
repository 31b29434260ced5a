"""`segformer evaluate`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer.cli.terminal import FAILED, parse, show


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.prediction.config import PredictConfig

    @dataclass
    class Evaluate:
        """Score a model on a data set: IoU, accuracy and Dice per class, at the masks' own size.

        A classifier is scored by top-1 and top-5.

        Example: segformer evaluate water/ --model runs/water/best

        Attributes:
            dataset: Folder with dataset.yaml, or with images/val and masks/val; for a classifier,
                with val/CLASS/.
            model: Folder, file or Hub id of a model; left out, the one that ships inside.
            split: Which part of the data set.
            out: Folder for report.json and confusion.png.
        """

        dataset: tyro.conf.Positional[Path]
        model: str | None = None
        split: str = "val"
        out: Path = Path("evaluation")
        config: tyro.conf.OmitArgPrefixes[PredictConfig] = field(default_factory=PredictConfig)

    options = parse(Evaluate, "evaluate", words)

    from dataclasses import asdict

    from segformer.checkpoints.opening import SHIPPED, open_checkpoint
    from segformer.data.dataset import open_dataset
    from segformer.evaluation.evaluate import evaluate, score_table, write_report
    from segformer.prediction.predictor import Predictor
    from segformer.progress import ProgressBar

    if options.model is not None and open_checkpoint(options.model).kind == "classifier":
        return _evaluate_classifier(
            options.dataset, options.model, options.split, options.out, options.config.device
        )
    dataset = open_dataset(options.dataset, options.split)
    predictor = Predictor(options.model, options.config)
    names = predictor.model.classes.names
    if dataset.classes.names != names and len(dataset.classes) == len(names):
        print(f"warning: the model calls its classes {', '.join(names)}", file=sys.stderr)
    with ProgressBar("evaluating", len(dataset), "images") as bar:
        matrix = evaluate(dataset, predictor, on_image=bar.advance)
    protocol = {"model": options.model or SHIPPED, "protocol": asdict(options.config)}
    written = write_report(matrix, options.out, dataset, protocol)
    show(score_table(matrix.scores()))
    print("written: " + ", ".join(str(path) for path in written))
    return 0


def _evaluate_classifier(dataset: Path, model: str, split: str, out: Path, device: Any) -> int:
    from segformer.data.class_folders import open_class_folders
    from segformer.evaluation.classify import class_table, evaluate_classes, write_class_report
    from segformer.prediction.classifier import ClassPredictor
    from segformer.progress import ProgressBar

    images = open_class_folders(dataset, split)
    predictor = ClassPredictor(model, device=device)
    with ProgressBar("evaluating", len(images), "images") as bar:
        scores = evaluate_classes(images, predictor, on_image=bar.advance)
    written = write_class_report(scores, out, images, {"model": model})
    show(class_table(scores))
    print("written: " + ", ".join(str(path) for path in written))
    for sentence in scores.failed:
        print(f"left out: {sentence}", file=sys.stderr)
    return FAILED if scores.failed else 0
