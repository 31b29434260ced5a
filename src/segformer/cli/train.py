"""`segformer train`.

tyro reads the options from a dataclass made inside the function, so annotations must be types
here, not the strings of PEP 563.
"""

import sys
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from segformer.cli.terminal import INTERRUPTED, parse, show, take_option

SEGMENT_HELP = """Train a segmentation model on images and masks.

Example: segformer train water/ --variant b0 --epochs 100 --out runs/water

A classifier on images in one folder per class has other options; see
segformer train --task classify --help
"""

CLASSIFY_HELP = """Train a classifier on images in one folder per class.

Example: segformer train imagenet/ --task classify --recipe imagenet --variant b0 --out runs/mit-b0
"""

COMMON_HELP = """
See what it will be, and how long it takes, without writing anything:
segformer train water/ --epochs 100 --dry-run
The run folder holds config.yaml, metrics.csv, best/ and last/ (each a model), curves.png,
confusion.png, val_examples.jpg, report.html, report.json, per_image.csv, and the names of the
images in train.txt and val.txt.
Continue a run that was stopped or killed with
segformer train --resume runs/water
"""

EXTENSIONS = ("epochs", "max_steps", "max_time")
"""Options of optimization that extend a run."""


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    from segformer.training.config import CONFIGS, Recipe, TrainConfig

    name, words = take_option(words, "--recipe")
    task, words = take_option(words, "--task")
    if task is not None and task not in CONFIGS:
        raise ValueError(f"--task must be one of {', '.join(CONFIGS)}, not {task!r}")
    variant, _ = take_option(words, "--variant")
    recipe = Recipe.read(name, variant) if name is not None else None
    if recipe is not None and task is not None and task != recipe.config.task:
        raise ValueError(
            f"--task is {task}, but the recipe {name} is for task {recipe.config.task}"
        )
    config = recipe.config if recipe is not None else CONFIGS[task or "segment"]()
    given = _given(words)
    _refuse_options_of_other_tasks(given, config)
    if recipe is not None and "epochs" in given and "max_steps" in recipe.given:
        words = [*words, "--max-steps", "None"] if "max_steps" not in given else words
    options = parse(_command(config, recipe), "train", words)
    if options.resume is not None and (
        name is not None or task is not None or given - {"resume", *EXTENSIONS} or options.dataset
    ):
        raise ValueError(
            "--resume continues with the configuration of the run; the only other options it takes "
            "are --epochs, --max-steps and --max-time, which extend the run"
        )
    if len(given & {"max_steps", "max_time"}) == 2:
        raise ValueError("give only one of --max-steps and --max-time")
    if options.resume is None and options.dataset is None:
        raise ValueError("no data set given; name its folder: segformer train DATASET")

    from segformer.training.processes import end_program
    from segformer.training.run import plan, resume, train
    from segformer.training.stopping import TrainingStopped

    try:
        if options.resume is not None:
            out = options.resume
            longer = {n: getattr(options.optimization, n) for n in given & set(EXTENSIONS)}
            outcome = resume(out, **longer)
        else:
            groups = (getattr(options, _field(title)) for title in config.groups)
            values = {f.name: getattr(group, f.name) for group in groups for f in fields(group)}
            chosen: TrainConfig = type(config)(**values)
            out = options.out
            if options.dry_run:
                show(plan(options.dataset, chosen).table)
                return 0
            outcome = train(options.dataset, out, chosen, overwrite=options.overwrite)
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:  # in a process that does not report, of several
        end_program(end.code)
    if outcome is not None:
        show(outcome.table)
    best = out / "best"
    print(f"best model: {best}" if best.exists() else f"model: {out / 'last'}")
    return 0


def _command(config: Any, recipe: Any) -> type[Any]:
    """The dataclass of the command's options: those of a run, then the groups of the task."""
    from tyro.conf import OmitArgPrefixes, Positional, arg

    def option(kind: Any, metavar: str, default: str, help: str) -> Any:
        return Annotated[kind, arg(metavar=metavar, help_behavior_hint=default, help=help)]

    layout = "dataset.yaml, or images/{train,val} and masks/{train,val}, or a known layout"
    if config.task == "classify":
        layout = "train/CLASS/ and val/CLASS/"
    dataset: Any = option(Path | None, "DATASET", "", f"Folder with {layout}.")
    out = recipe.out if recipe is not None and recipe.out is not None else Path("run")
    entries: list[tuple[str, Any, Any]] = [
        ("dataset", Annotated[dataset, Positional], recipe.dataset if recipe is not None else None),
        ("out", option(Path, "RUN", f"(default: {out})", "Folder for the run."), out),
        (
            "overwrite",
            option(bool, "", "", "Replace the run that is in that folder."),
            False,
        ),
        (
            "dry_run",
            option(
                bool,
                "",
                "",
                "Show model, data, schedule, and the memory and time of the training, estimated "
                "from ten measured steps; write nothing.",
            ),
            False,
        ),
        (
            "resume",
            option(
                Path | None,
                "RUN",
                "",
                "Folder of a run to continue. With --epochs, --max-steps or --max-time the run is "
                "extended: the learning rate follows the schedule of the longer run from there "
                "on. Takes no other option.",
            ),
            None,
        ),
        (
            "recipe",
            option(
                str | None,
                "RECIPE",
                "",
                "YAML file with options, data set and run folder, or the name of a recipe of the "
                "package. Options on the command line override it.",
            ),
            None,
        ),
        (
            "task",
            option(str, "{segment,classify}", f"(default: {config.task})", "What to train."),
            config.task,
        ),
    ]
    for title, group in config.groups.items():
        values = {f.name: getattr(config, f.name) for f in fields(group)}
        kind: Any = Annotated[group, OmitArgPrefixes, arg(name=title)]
        entries.append((_field(title), kind, group(**values)))
    command = make_dataclass("Train", entries, frozen=True)
    command.__doc__ = (CLASSIFY_HELP if config.task == "classify" else SEGMENT_HELP) + COMMON_HELP
    return command


def _field(title: str) -> str:
    return title.replace(" ", "_")


def _given(words: list[str]) -> set[str]:
    """Names of the options among the words, as fields."""
    names = {w.partition("=")[0][2:].replace("-", "_") for w in words if w.startswith("--")}
    names = {name.removeprefix("no_") for name in names}
    return {"max_time" if name == "time" else name for name in names}


def _refuse_options_of_other_tasks(given: set[str], config: Any) -> None:
    from segformer.training.config import CONFIGS

    own = {f.name for f in fields(config)}
    for task, other in CONFIGS.items():
        wrong = given & ({f.name for f in fields(other)} - own)
        if wrong:
            option = "--" + min(wrong).replace("_", "-")
            raise ValueError(f"{option} is an option of task {task}; this is task {config.task}")
