"""The folder of a run: its configuration, metrics, models, resume checkpoint and images."""

from __future__ import annotations

import csv
import logging
import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml

from segformer.data.division import write_lists
from segformer.evaluation.plots import curves_plot
from segformer.evaluation.report.curves import Curves
from segformer.files import OutputExists, check_writable, whole_file, write_text
from segformer.training.config import Recipe, TrainConfig
from segformer.training.full_disk import append_line
from segformer.training.keeping import model_folders
from segformer.training.loggers import TRACKING_FILE
from segformer.training.samples import Files

SCORES = {
    "segment": ("val_miou", "val_mean_accuracy", "val_pixel_accuracy", "val_loss"),
    "classify": ("val_top1", "val_top5", "val_loss"),
}
"""Columns of the validation's scores, by task; the first decides which model is the best."""


FILES = (
    "config.yaml",
    "metrics.csv",
    "resume.ckpt",
    "curves.png",
    "confusion.png",
    "val_examples.jpg",
    "report.json",
    "report.html",
    "per_image.csv",
    "train.txt",
    "val.txt",
    TRACKING_FILE,
)
"""Files that a run writes."""

_MODEL = ("*.json", "*.safetensors", "README.md")

FOLDERS = {
    "best": _MODEL,
    "last": _MODEL,
    "checkpoints": tuple(f"step-*/{pattern}" for pattern in _MODEL),
    "tensorboard": ("events.out.tfevents.*",),
}
"""Folders that a run writes, and patterns of the files in them."""

logger = logging.getLogger(__name__)


class RunFolder:
    """Where a training writes everything.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.best, self.last = self.path / "best", self.path / "last"
        self.recipe, self.metrics = self.path / "config.yaml", self.path / "metrics.csv"
        self.checkpoint, self.kept = self.path / "resume.ckpt", self.path / "checkpoints"
        self.scores = SCORES["segment"]

    @property
    def columns(self) -> list[str]:
        """Columns of ``metrics.csv``."""
        return [*"step epoch loss lr images_per_s".split(), *self.scores, "minutes"]

    def check(self, *, overwrite: bool) -> None:
        """Check that a run can be written here, before any work is done.

        A run that ended before its first checkpoint may be replaced.

        Args:
            overwrite: Another run may be replaced too.

        Raises:
            OutputExists: Files of another run, or of something else, would be replaced.
            ValueError: The folder cannot be written to.
        """
        check_writable(self.path)
        existing = self._own_files()
        if not existing:
            return
        if not self._holds_run():
            raise OutputExists(
                f"{existing[0]} already exists and is not part of a training run; choose another "
                "--out"
            )
        begun = self.checkpoint.exists() or any(f.suffix == ".safetensors" for f in existing)
        if begun and not overwrite:
            raise OutputExists(
                f"{self.path}: there is a run in this folder; continue it with --resume "
                f"{self.path}, choose another --out, or replace it with --overwrite"
            )

    def create(self, dataset: Path | None, config: TrainConfig, samples: Files) -> None:
        """Make the folder, remove what `check` allows to be replaced, write the configuration.

        The names of the samples are written to ``train.txt`` and ``val.txt``.
        """
        for file in self._own_files():
            file.unlink()
        folders = [*model_folders(self.kept), *(self.path / name for name in FOLDERS)]
        for folder in folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self.write_recipe(dataset, config)
        write_lists(self.path, {split: (name for name, _ in of) for split, of in samples.items()})

    def write_recipe(self, dataset: Path | None, config: TrainConfig) -> None:
        """Write ``config.yaml``; the data set is None if it is an object of Python's."""
        self.scores = SCORES[config.task]
        source = None if dataset is None else str(dataset.resolve())
        entries = {"dataset": source, **config.as_dict()}
        write_text(self.recipe, yaml.safe_dump(entries, sort_keys=False))

    def record_steps(self, max_steps: int) -> None:
        """Write another number of steps into ``config.yaml``."""
        dataset, config = self.read_recipe()
        self.write_recipe(dataset, replace(config, max_steps=max_steps))

    def read_recipe(self) -> tuple[Path | None, TrainConfig]:
        """The data set, or None if it is an object of Python's, and the configuration of the run.

        Raises:
            ValueError: There is no run here.
        """
        if not self.recipe.is_file():
            raise ValueError(f"{self.path}: there is no run to resume here ({self.recipe.name})")
        try:
            recipe = Recipe.read(self.recipe)
        except ValueError as error:
            reason = str(error).removeprefix(f"{self.recipe}: ")
            raise ValueError(f"{self.recipe}: not the configuration of a run: {reason}") from None
        if not self._holds_run():
            raise ValueError(f"{self.recipe}: not the configuration of a run: it has no dataset")
        self.scores = SCORES[recipe.config.task]
        return recipe.dataset, recipe.config

    def _own_files(self) -> list[Path]:
        files = [self.path / name for name in FILES]
        for name, patterns in FOLDERS.items():
            for pattern in patterns:
                files += sorted((self.path / name).glob(pattern))
        return [file for file in files if file.is_symlink() or file.exists()]

    def remove_partial_files(self) -> None:
        """Delete what a killed process had not finished writing."""
        folders = [self.path, *(self.path / name for name in FOLDERS), *model_folders(self.kept)]
        for folder in folders:
            for path in folder.glob(".*"):
                if re.fullmatch(r"\.(partial|former)-[0-9a-f]{32}(\.\w+)?", path.name):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()

    def _holds_run(self) -> bool:
        """Whether ``config.yaml`` was written by a training."""
        try:
            entries = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return False
        return isinstance(entries, dict) and {"dataset", "max_steps", "ema_decay"} <= entries.keys()

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the resume checkpoint."""
        with whole_file(self.checkpoint) as partial:
            torch.save(state, partial)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The resume checkpoint, or None if the run ended before its first."""
        if not self.checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(
                self.checkpoint, map_location="cpu", weights_only=True
            )
        except Exception as error:  # torch.load has no narrower type for a broken file
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.checkpoint}: cannot be read: {reason}") from None
        return state

    def append_metrics(self, **values: float | int) -> None:
        """Add a row to ``metrics.csv``."""
        text = StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        if not self.metrics.exists():
            writer.writeheader()
        writer.writerow(values)
        append_line(self.metrics, text.getvalue().encode())

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows so far, without a last one that was not written completely."""
        if not self.metrics.is_file():
            return []
        with self.metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if row["minutes"]]

    def truncate_metrics(self, step: int, validated_step: int) -> None:
        """Drop the rows of steps and validations that a resumed run will do again."""
        score = self.scores[0]
        rows = [
            row
            for row in self.read_metrics()
            if int(row["step"]) <= (validated_step if row[score] else step)
        ]
        with whole_file(self.metrics) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def draw_curves(self) -> None:
        """Write ``curves.png`` from the metrics."""
        curves = self.curves(self.scores[0])
        path = self.path / "curves.png"
        curves_plot(curves.training, curves.validation, path, curves.score)

    def curves(self, score: str) -> Curves:
        """Loss, learning rate and a score, which is a column of ``metrics.csv``, by step."""
        rows = self.read_metrics()
        training = [
            (int(row["step"]), float(row["loss"]), float(row["lr"])) for row in rows if row["loss"]
        ]
        validation = [(int(row["step"]), float(row[score])) for row in rows if row[score]]
        name = {"val_miou": "mIoU", "val_top1": "top-1 accuracy"}[score]
        return Curves(training, validation, name)
