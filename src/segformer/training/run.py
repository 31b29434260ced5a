"""Training a model on a data set, and continuing a training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from segformer.config import SegFormerConfig
from segformer.machine import limit_threads
from segformer.model.products import reuse_memory
from segformer.training.classification import Classification
from segformer.training.config import SegmentationTrainConfig, TrainConfig
from segformer.training.folder import RunFolder
from segformer.training.loop import TrainingLoop
from segformer.training.processes import Processes
from segformer.training.segmentation import Segmentation
from segformer.training.task import Model, Outcome, Task

logger = logging.getLogger(__name__)

TASKS: dict[str, Callable[..., Task]] = {"segment": Segmentation, "classify": Classification}


def train(
    dataset: str | Path,
    out: str | Path = "run",
    config: TrainConfig | None = None,
    *,
    overwrite: bool = False,
) -> Outcome | None:
    """Train a model on a data set.

    Example:
        >>> config = segformer.SegmentationTrainConfig(variant="b0", epochs=100)
        >>> outcome = segformer.train("water", out="runs/water", config=config)
        >>> outcome.row["val_miou"], outcome.words
        >>> predictor = segformer.Predictor("runs/water/best")

    Args:
        dataset: Folder with ``dataset.yaml``, or with ``images/{train,val}`` and
            ``masks/{train,val}``, or any layout that `segformer.data.opening.open_dataset` reads;
            for a classifier, with ``train/CLASS`` and ``val/CLASS``.
        out: Folder for the run: ``best`` and ``last`` (each a model), ``config.yaml``,
            ``metrics.csv``, ``resume.ckpt``, ``report.html``, ``report.json``,
            ``per_image.csv``, the names of the samples in ``train.txt`` and ``val.txt``, and
            images.
        config: `SegmentationTrainConfig` or `ClassificationTrainConfig`, which chooses the task;
            default: segmentation with all defaults.
        overwrite: Replace the files of another run in ``out``.

    Returns:
        The scores of the best model, or None without a validation split.

    Raises:
        ValueError: The data set, the configuration or the folder cannot be used, or the loss
            became infinite or NaN.
        TrainingStopped: Ctrl-C or SIGTERM; the state is saved.
        MemoryError: The device has too little memory.
    """
    folder, dataset = RunFolder(out), Path(dataset)
    config = config if config is not None else SegmentationTrainConfig()
    processes = Processes(config)
    config = processes.config
    with processes.ending_together():

        def begin() -> tuple[Task, Model]:
            folder.check(overwrite=overwrite)
            task = TASKS[config.task](dataset, config)
            model = task.build_model()
            folder.create(dataset, task.config, task.files)
            return task, model

        task, model = _begin(processes, dataset, begin)
        return _fit(processes, folder, task, model)


def resume(
    out: str | Path, *, epochs: int | None = None, max_steps: int | None = None
) -> Outcome | None:
    """Continue a run that was stopped or killed, to the result that it would have had.

    With ``epochs`` or ``max_steps`` the run, finished or not, is extended to a longer one. The
    learning rate then follows the schedule of the longer run from the current step on, so it
    rises at that point if the schedule decays.

    Example:
        >>> segformer.resume("runs/water", epochs=200)

    Args:
        out: Folder of the run.
        epochs: New total number of epochs.
        max_steps: New total number of optimizer steps; overrides ``epochs``.

    Returns:
        The scores of the best model, or None without a validation split.

    Raises:
        ValueError: There is no run in the folder, its data set has changed, or it is already
            longer than asked for.
        TrainingStopped: Ctrl-C or SIGTERM; the state is saved.
        MemoryError: The device has too little memory.
    """
    folder = RunFolder(out)
    dataset, config = folder.read_recipe()
    processes = Processes(config, resuming=True)
    config = processes.config
    with processes.ending_together():
        checkpoint = processes.run_in_each(folder.load_checkpoint)
        extends = epochs is not None or max_steps is not None

        def begin() -> tuple[Task, Model]:
            if checkpoint is None:
                logger.info(f"{folder.path}: there is no checkpoint yet; starting at step 0")
                task = TASKS[config.task](dataset, config)
                changed = _extended(config, task.images, 0, epochs, max_steps)
                if extends:
                    task = TASKS[config.task](dataset, changed)
                folder.write_recipe(dataset, task.config)
                folder.truncate_metrics(-1, -1)
                return task, task.build_model()
            if not {"task", "architecture", "model", "state"} <= checkpoint.keys():
                raise ValueError(f"{folder.checkpoint}: not the resume checkpoint of a run")
            state, step = checkpoint["task"], int(checkpoint["state"]["step"])
            task = TASKS[config.task](dataset, config, state)
            if extends:
                changed = _extended(config, task.images, step, epochs, max_steps)
                task = TASKS[config.task](dataset, changed, state)
                folder.write_recipe(dataset, changed)
            architecture = SegFormerConfig.from_dict(checkpoint["architecture"])
            return task, task.restore_model(architecture)

        task, model = _begin(processes, dataset, begin)
        if checkpoint is not None and extends:
            checkpoint["state"]["stale_validations"] = 0
        return _fit(processes, folder, task, model, checkpoint)


def _begin(
    processes: Processes, dataset: Path, build: Callable[[], tuple[Task, Model]]
) -> tuple[Task, Model]:
    """Build task and model in process 0; the others build theirs from its results."""
    built: list[tuple[Task, Model]] = []

    def work() -> tuple[TrainConfig, dict[str, Any], SegFormerConfig]:
        task, model = build()
        built.append((task, model))
        return task.config, task.state(), model.config

    config, state, architecture = processes.run_in_first(work)
    if built:
        return built[0]
    task = TASKS[config.task](dataset, config, state)
    return task, task.restore_model(architecture)


def _fit(
    processes: Processes,
    folder: RunFolder,
    task: Task,
    model: Model,
    checkpoint: dict[str, Any] | None = None,
) -> Outcome | None:
    limit_threads()
    reuse_memory()
    loop = TrainingLoop(processes, folder, task, model)
    loop.fit(checkpoint)
    return loop.finish()


def _extended(
    config: TrainConfig, images: int, step: int, epochs: int | None, max_steps: int | None
) -> TrainConfig:
    """The configuration of the longer run."""
    if epochs is not None:
        # max_steps is computed from epochs again
        steps = -(-epochs * images // config.images_per_step)
        config = replace(config, epochs=epochs, max_steps=steps)
    if max_steps is not None:
        config = replace(config, max_steps=max_steps)
    assert config.max_steps is not None
    if (epochs is not None or max_steps is not None) and config.max_steps <= step:
        raise ValueError(
            f"the run has done {step} steps; {config.max_steps} would not extend it "
            f"(an epoch is {images} images)"
        )
    return config
