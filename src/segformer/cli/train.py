"""`segformer train`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from segformer.cli.terminal import INTERRUPTED, parse, show, take_option


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.training.config import TrainConfig

    recipe, words = take_option(words, "--recipe")
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

    options = parse(Train, "train", words)
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
        show(outcome.table)
        print(f"best model: {out / 'best'}")
    else:
        print(f"model: {out / 'last'}")
    return 0
