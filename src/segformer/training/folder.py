"""The folder of a run: its configuration, metrics, models, resume checkpoint and images."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import torch
import yaml

from segformer.data.division import write_lists
from segformer.evaluation.plots import curves_plot
from segformer.evaluation.report.curves import Curves
from segformer.files import OutputExists, check_writable, whole_file, write_text
from segformer.training.config import Recipe, TrainConfig
from segformer.training.samples import Files

SCORES = {
    "segment": ("val_miou", "val_mean_accuracy", "val_pixel_accuracy"),
    "classify": ("val_top1", "val_top5"),
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
)
"""Files that a run writes."""

FOLDERS = {
    "best": ("*.json", "*.safetensors", "README.md"),
    "last": ("*.json", "*.safetensors", "README.md"),
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
        self.checkpoint = self.path / "resume.ckpt"
        self._tensorboard: Any = None
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

    def create(self, dataset: Path, config: TrainConfig, samples: Files) -> None:
        """Make the folder, remove what `check` allows to be replaced, write the configuration.

        The names of the samples are written to ``train.txt`` and ``val.txt``.
        """
        for file in self._own_files():
            file.unlink()
        for name in FOLDERS:
            folder = self.path / name
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self.write_recipe(dataset, config)
        write_lists(self.path, {split: (name for name, _ in of) for split, of in samples.items()})

    def write_recipe(self, dataset: Path, config: TrainConfig) -> None:
        """Write ``config.yaml``."""
        self.scores = SCORES[config.task]
        entries = {"dataset": str(dataset.resolve()), **config.as_dict()}
        write_text(self.recipe, yaml.safe_dump(entries, sort_keys=False))

    def read_recipe(self) -> tuple[Path, TrainConfig]:
        """The data set and the configuration of the run.

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
        if recipe.dataset is None:
            raise ValueError(f"{self.recipe}: not the configuration of a run: it has no dataset")
        self.scores = SCORES[recipe.config.task]
        return recipe.dataset, recipe.config

    def _own_files(self) -> list[Path]:
        files = [self.path / name for name in FILES]
        for name, patterns in FOLDERS.items():
            for pattern in patterns:
                files += sorted((self.path / name).glob(pattern))
        return [file for file in files if file.is_symlink() or file.exists()]

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
        """Add a row to ``metrics.csv``, and to TensorBoard's logs if they are open."""
        fresh = not self.metrics.exists()
        with self.metrics.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if fresh:
                writer.writeheader()
            writer.writerow(values)
        if self._tensorboard is not None:
            for name in values.keys() - {"step"}:
                self._tensorboard.add_scalar(name, values[name], values["step"])
            self._tensorboard.flush()

    def open_tensorboard(self, step: int) -> None:
        """Also write TensorBoard logs from now on, in ``tensorboard/``."""
        from torch.utils.tensorboard import SummaryWriter

        # Hides what was logged of the steps that a resumed run does again
        purge_step = step + 1 if step else None
        self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step)

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
