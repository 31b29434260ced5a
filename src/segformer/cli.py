"""The command line: parsing only. What a command needs is imported when the command runs.

A command's options are a dataclass, which tyro reads. The annotations must be real types here, not
the strings of PEP 563, because these classes live inside their functions.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from segformer.data.check import SplitReport
    from segformer.prediction.config import PredictConfig

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes beside 0: something failed; the words were wrong; Ctrl-C."""

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    words, level = _take_log_level(words)
    _log_to_terminal(level)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from segformer import __version__

        print(__version__)
        return 0
    name = words.pop(0)
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"segformer: no command {name!r}{hint}\n\n{_help()}", file=sys.stderr)
        return USAGE
    try:
        return COMMANDS[name].run(words)
    except (ValueError, OSError, MemoryError) as error:
        print(f"segformer {name}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"segformer {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = COMMANDS[name].extra
        if extra is None or (error.name or "").startswith("segformer"):
            raise
        print(
            f"segformer {name}: {error.name} is not installed; "
            f"pip install 'segformer[{extra}]' brings it",
            file=sys.stderr,
        )
        return FAILED


def _take_log_level(words: list[str]) -> tuple[list[str], int]:
    """The words without --quiet and --verbose, and the level of messages they ask for."""
    levels = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}
    asked = [levels[word] for word in words if word in levels]
    return [word for word in words if word not in levels], asked[-1] if asked else logging.INFO


class _TerminalHandler(logging.Handler):
    """Messages on standard error, each as one line however narrow the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        from segformer.progress import console

        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        console.print(level + record.getMessage(), highlight=False, markup=False, soft_wrap=True)


def _log_to_terminal(level: int) -> None:
    """Show the package's messages of a level and above."""
    logger = logging.getLogger("segformer")
    logger.setLevel(level)
    if not any(isinstance(handler, _TerminalHandler) for handler in logger.handlers):
        logger.addHandler(_TerminalHandler())


def _predict(words: list[str]) -> int:
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

    options = _parse(Predict, "predict", words)
    if not options.images:
        raise ValueError("which images? name files, folders or patterns")

    from segformer.checkpoints.store import open_checkpoint
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


def _convert(words: list[str]) -> int:
    import tyro

    @dataclass
    class Convert:
        """Write a model's weights with another codebase's names, bit for bit.

        Example: segformer convert segformer.b0.512x512.ade.160k.pth b0-ade --format hf

        Attributes:
            source: Folder, file or Hub id of a model, in any format.
            destination: File (.pth, .safetensors, ...), or for hf and smp a folder.
            format: Whose names to write: transformers and the Hub, the original code, OpenMMLab
                1.x, or segmentation_models.pytorch.
            half: Store float16.
        """

        source: tyro.conf.Positional[str]
        destination: tyro.conf.Positional[Path]
        format: Literal["hf", "nvlabs", "mmseg", "smp"]
        half: bool = False

    options = _parse(Convert, "convert", words)

    import torch

    from segformer.checkpoints.store import convert

    found = convert(
        options.source,
        options.destination,
        options.format,
        dtype=torch.float16 if options.half else None,
    )
    print(f"{found.format.title} {found.kind} -> {options.destination} ({options.format})")
    left_out = found.unused + found.unknown
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        print(f"left out: {', '.join(left_out[:5])}{more}", file=sys.stderr)
    return 0


def _info(words: list[str]) -> int:
    import tyro

    @dataclass
    class Info:
        """Tell what a model is: sizes, work, classes, normalization, format, license.

        Example: segformer info nvidia/segformer-b0-finetuned-ade-512-512 --size 1024 2048

        Attributes:
            model: Folder, file or Hub id of a model; left out, the one that ships inside.
            size: Height and width in pixels to count the work for; left out, the model's own.
            json: Print JSON.
        """

        model: tyro.conf.Positional[str | None] = None
        size: tuple[int, int] | None = None
        json: bool = False

    options = _parse(Info, "info", words)

    from segformer.checkpoints.info import describe, tables
    from segformer.checkpoints.store import SHIPPED, open_checkpoint

    description = describe(open_checkpoint(options.model or SHIPPED), options.size)
    if options.json:
        import json

        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        for table in tables(description):
            _show(table)
    return 0


def _train(words: list[str]) -> int:
    import tyro

    from segformer.training.config import TrainConfig

    recipe, words = _take_option(words, "--recipe")
    config = TrainConfig.from_yaml(recipe) if recipe is not None else TrainConfig()

    @dataclass
    class Train:
        """Train a model on images and masks, or a classifier on a folder of images per class.

        Example: segformer train water/ --variant b0 --epochs 100 --out runs/water
        Example: segformer train imagenet/ --task classify --recipe recipes/imagenet-b0.yaml

        The run folder holds config.yaml, metrics.csv, best/ and last/ (each a model), curves.png,
        confusion.png, val_examples.jpg and report.json. A run that was stopped or killed goes on
        with: segformer train --resume runs/water

        Attributes:
            dataset: Folder with dataset.yaml, or with images/{train,val} and masks/{train,val}; to
                classify, with train/CLASS/ and val/CLASS/.
            out: Folder for the run.
            resume: Folder of a run to go on with; takes no other option.
            recipe: YAML file of options; those on the command line win.
        """

        dataset: tyro.conf.Positional[Path | None] = None
        out: Path = Path("run")
        resume: Path | None = None
        recipe: Path | None = None
        config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=lambda: config)

    options = _parse(Train, "train", words)
    alone = Train(resume=options.resume)
    if options.resume is not None and (options != alone or recipe is not None):
        raise ValueError("--resume goes on with the run's own recipe; it takes no other option")
    if options.resume is None and options.dataset is None:
        raise ValueError("which data set? name its folder: segformer train DATASET")

    from segformer.training.run import TrainingStopped, resume, train

    try:
        if options.resume is not None:
            out, outcome = options.resume, resume(options.resume)
        else:
            assert options.dataset is not None
            out, outcome = options.out, train(options.dataset, options.out, options.config)
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    if outcome is not None:
        _show(outcome.table)
        print(f"best model: {out / 'best'}")
    else:
        print(f"model: {out / 'last'}")
    return 0


def _evaluate(words: list[str]) -> int:
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

    options = _parse(Evaluate, "evaluate", words)

    from dataclasses import asdict

    from segformer.checkpoints.store import SHIPPED, open_checkpoint
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
    _show(score_table(matrix.scores()))
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
    _show(class_table(scores))
    print("written: " + ", ".join(str(path) for path in written))
    for sentence in scores.failed:
        print(f"left out: {sentence}", file=sys.stderr)
    return FAILED if scores.failed else 0


def _data(words: list[str]) -> int:
    import tyro

    @dataclass
    class Check:
        """Read every image and mask of a data set once and say what is wrong with it.

        Exit code 1 if training would fail.

        Attributes:
            dataset: Folder with dataset.yaml, or with images/{train,val} and masks/{train,val}.
        """

        dataset: tyro.conf.Positional[Path]

    if not words or words[0] != "check":
        if words and words[0] not in ("-h", "--help"):
            raise ValueError(f"no such action {words[0]!r}; there is: check")
        print("usage: segformer data check DATASET\n\n" + (Check.__doc__ or "").split("\n")[0])
        return 0
    options = _parse(Check, "data check", words[1:])

    from segformer.data.check import check_split
    from segformer.data.dataset import DatasetError, open_dataset, splits
    from segformer.progress import ProgressBar

    found = splits(options.dataset)
    if "train" not in found:
        raise DatasetError(f"{options.dataset}: there is no split 'train' to train on")
    failed = False
    for split in found:
        dataset = open_dataset(options.dataset, split)
        with ProgressBar(f"checking {split}", len(dataset), "images") as bar:
            report = check_split(dataset, bar.advance)
        _show_check(report)
        failed = failed or bool(report.errors)
    print("training would fail" if failed else "ready to train")
    return FAILED if failed else 0


def _show_check(report: "SplitReport") -> None:
    from rich.table import Table

    dataset = report.dataset
    sizes = ", ".join(
        f"{width}x{height} ({count})" for (height, width), count in report.sizes.most_common(4)
    )
    more = f" and {len(report.sizes) - 4} more" if len(report.sizes) > 4 else ""
    print(f"\nsplit {dataset.split}: {len(dataset)} images of {sizes or 'no readable size'}{more}")
    table = Table()
    for column, justify in (("id", "right"), ("class", "left"), ("pixels", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("images", justify="right")
    rows = zip(dataset.classes.names, report.frequencies, report.images, strict=True)
    for i, (name, frequency, images) in enumerate(rows):
        table.add_row(str(i), name, f"{frequency:.2%}", str(images))
    total = int(report.pixels.sum()) + report.ignored
    table.add_row(
        str(dataset.classes.ignore_index), "(ignored)", f"{report.ignored / max(total, 1):.2%}", ""
    )
    _show(table)
    for word, sentences in (("error", report.errors), ("warning", report.warnings)):
        for sentence in sentences[:50]:
            print(f"{word}: {sentence}")
        if len(sentences) > 50:
            print(f"... and {len(sentences) - 50} more {word}s")


@dataclass(frozen=True)
class _Command:
    run: Callable[[list[str]], int]
    summary: str
    extra: str | None = None


COMMANDS = {
    "predict": _Command(_predict, "segment images: files, folders, patterns"),
    "train": _Command(_train, "train a model on your own masks", "train"),
    "evaluate": _Command(_evaluate, "score a model on a data set with masks", "train"),
    "data": _Command(_data, "check a data set before training on it"),
    "convert": _Command(_convert, "write a model's weights for another codebase"),
    "info": _Command(_info, "tell what a model is: sizes, work, classes, origin"),
}


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: segformer COMMAND ...\n\n"
        "SegFormer semantic segmentation: pretrained models, training, evaluation, prediction.\n\n"
        f"commands:\n{rows}\n\n"
        "segformer COMMAND --help tells more; segformer --version prints the version."
    )


def _parse(command: type[T], name: str, words: list[str]) -> T:
    """Options of a command as its dataclass; wrong words exit with code 2."""
    import tyro

    return tyro.cli(command, prog=f"segformer {name}", args=words)


def _take_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of ``option``, whose file gives the others their defaults, and the rest."""
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1], words[:i] + words[i + 2 :]
        if word.startswith(option + "="):
            return word.partition("=")[2], words[:i] + words[i + 1 :]
    return None, words


def _show(table: Any) -> None:
    from rich.console import Console

    Console(markup=False).print(table)  # names of classes may hold brackets


if __name__ == "__main__":
    sys.exit(main())
