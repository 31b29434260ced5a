"""The folder of a run: its recipe, metrics, models, resume checkpoint and images."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from segformer.evaluation.plots import curves_plot
from segformer.files import whole_file, write_text
from segformer.training.config import TrainConfig

SCORES = {
    "segment": ("val_miou", "val_mean_accuracy", "val_pixel_accuracy"),
    "classify": ("val_top1", "val_top5"),
}
"""Columns of the validation's scores, by task; the first decides which model is the best."""


class RunFolder:
    """Where a training leaves everything.

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
        """Of ``metrics.csv``."""
        return [*"step epoch loss lr images_per_s".split(), *self.scores, "minutes"]

    def create(self, dataset: Path, config: TrainConfig) -> None:
        """Make the folder and write the recipe into it.

        Raises:
            ValueError: A run is there already.
        """
        self.scores = SCORES[config.task]
        if self.recipe.exists():
            raise ValueError(
                f"{self.path}: there is a run in this folder; go on with --resume {self.path}, "
                "or choose another --out"
            )
        entries = {"dataset": str(dataset.resolve()), **asdict(config)}
        entries = {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items()}
        write_text(self.recipe, yaml.safe_dump(entries, sort_keys=False))

    def read_recipe(self) -> tuple[Path, TrainConfig]:
        """The data set and the recipe of a run that was begun here.

        Raises:
            ValueError: There is none.
        """
        if not self.recipe.is_file():
            raise ValueError(f"{self.path}: there is no run to resume here ({self.recipe.name})")
        try:
            entries = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
            dataset = Path(entries.pop("dataset"))
            config = TrainConfig.from_dict(entries)
        except (
            yaml.YAMLError,
            ValueError,
            AttributeError,
            LookupError,
            TypeError,
            RecursionError,
        ) as error:
            raise ValueError(f"{self.recipe}: not the recipe of a run: {error}") from None
        self.scores = SCORES[config.task]
        return dataset, config

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the resume checkpoint, whole."""
        with whole_file(self.checkpoint) as partial:
            torch.save(state, partial)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The resume checkpoint, or None where the run was killed before its first."""
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

    def open_tensorboard(self) -> None:
        """From now on also write TensorBoard logs, in ``tensorboard/``."""
        from torch.utils.tensorboard import SummaryWriter

        self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows so far; a last one cut off by a kill is left out."""
        if not self.metrics.is_file():
            return []
        with self.metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if row["minutes"]]

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will do again."""
        rows = [row for row in self.read_metrics() if int(row["step"]) <= step]
        with whole_file(self.metrics) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def draw_curves(self) -> None:
        """Write ``curves.png`` from the metrics."""
        rows = self.read_metrics()
        training = [
            (int(row["step"]), float(row["loss"]), float(row["lr"])) for row in rows if row["loss"]
        ]
        score = self.scores[0]
        validation = [(int(row["step"]), float(row[score])) for row in rows if row[score]]
        name = {"val_miou": "mIoU", "val_top1": "top-1 accuracy"}[score]
        curves_plot(training, validation, self.path / "curves.png", name)
