"""The folder of a run: its recipe, metrics, models, resume checkpoint and pictures."""

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

COLUMNS = (
    "step epoch loss lr images_per_s val_miou val_mean_accuracy val_pixel_accuracy minutes".split()
)


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

    def create(self, dataset: Path, config: TrainConfig) -> None:
        """Make the folder and write the recipe into it.

        Raises:
            ValueError: A run is there already.
        """
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
            return dataset, TrainConfig.from_dict(entries)
        except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.recipe}: not the recipe of a run: {error}") from None

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
            writer = csv.DictWriter(file, COLUMNS)
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

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will do again."""
        rows = [row for row in self.read_metrics() if int(row["step"]) <= step]
        with whole_file(self.metrics) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def draw_curves(self) -> None:
        """Write ``curves.png`` from the metrics."""
        rows = self.read_metrics()
        training = [
            (int(row["step"]), float(row["loss"]), float(row["lr"])) for row in rows if row["loss"]
        ]
        validation = [(int(row["step"]), float(row["val_miou"])) for row in rows if row["val_miou"]]
        curves_plot(training, validation, self.path / "curves.png")
