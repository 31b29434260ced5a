"""Training a model on a data set, and continuing a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segformer.classes import ClassSet
from segformer.config import SegFormerConfig
from segformer.machine import limit_threads
from segformer.model.products import reuse_memory
from segformer.model.segformer import SegFormer
from segformer.training.callbacks import Callback
from segformer.training.classification import Classification
from segformer.training.config import SegmentationTrainConfig, TrainConfig
from segformer.training.custom import Loss, OwnParts, OwnSegmentation
from segformer.training.folder import RunFolder
from segformer.training.full_disk import explaining_full_disk
from segformer.training.loop import TrainingLoop
from segformer.training.memory import largest_batch_size
from segformer.training.own_data import MapDataset, Transform
from segformer.training.plan import Measured, Plan, make_plan, measure
from segformer.training.preparation import with_schedule
from segformer.training.processes import Processes
from segformer.training.segmentation import Segmentation
from segformer.training.task import Model, Outcome, Task
from segformer.training.time_limit import steps_within

logger = logging.getLogger(__name__)

TASKS: dict[str, Callable[..., Task]] = {"segment": Segmentation, "classify": Classification}


def train(
    dataset: str | Path | MapDataset,
    out: str | Path = "run",
    config: TrainConfig | None = None,
    *,
    overwrite: bool = False,
    validation: MapDataset | None = None,
    classes: ClassSet | Sequence[str] | None = None,
    model: SegFormer | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
    callbacks: Sequence[Callback] = (),
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
            for a classifier, with ``train/CLASS`` and ``val/CLASS``. Or an object with items by
            index, each ``(image, mask)`` or ``{"image": ..., "mask": ...}``: a PIL image or uint8
            array (H, W, C), and class ids (H, W), as a PIL image or an array.
        out: Folder for the run: ``best`` and ``last`` (each a model), ``config.yaml``,
            ``metrics.csv``, ``resume.ckpt``, ``report.html``, ``report.json``,
            ``per_image.csv``, the names of the samples in ``train.txt`` and ``val.txt``, and
            images.
        config: `SegmentationTrainConfig` or `ClassificationTrainConfig`, which chooses the task;
            default: segmentation with all defaults.
        overwrite: Replace the files of another run in ``out``.
        validation: Validation images and masks, if ``dataset`` is an object.
        classes: Names of the classes of the masks, or a `ClassSet`, if ``dataset`` is an object.
            Default: the classes of ``model``.
        model: Model to start from, instead of ``config.pretrained``. It is copied, and keeps its
            own dropout and stochastic depth. The defaults of the learning rate are those of a
            pretrained model.
        loss: Called with logits (B, K, H, W) at the size of the masks and class ids (B, H, W),
            int64 with ``classes.ignore_index`` where unlabeled; returns a tensor (). Replaces the
            loss of the configuration.
        transform: Called as ``transform(image=image, mask=mask)`` with an image (H, W, C) and class
            ids (H, W) as stored; returns a mapping with both. Replaces the augmentation of the
            configuration. Its result is normalized, cropped at random or padded to
            ``config.crop_size``.
        callbacks: Objects whose methods are called during the training.

    Returns:
        The scores of the best model, or None without a validation split.

    Raises:
        ValueError: The data set, the configuration or the folder cannot be used, or the loss
            became infinite, NaN or very large.
        TrainingStopped: Ctrl-C or SIGTERM; the state is saved.
        MemoryError: The device has too little memory.
        DiskFull: There is no space left; the last checkpoint is kept.
    """
    folder = RunFolder(out)
    source, parts = _parts(dataset, validation, classes, model, loss, transform)
    config = config if config is not None else SegmentationTrainConfig()
    processes = Processes(config)
    config = processes.config
    with processes.ending_together(), explaining_full_disk(folder.path, folder.checkpoint):

        def begin() -> tuple[Task, Model]:
            folder.check(overwrite=overwrite)
            task, started = _new(processes, source, config, parts)
            folder.create(source, task.config, task.files)
            return task, started

        task, started = _begin(processes, source, parts, begin)
        task, _ = _with_time_limit(processes, task, started)
        if processes.first:
            folder.write_recipe(source, task.config)
        return _fit(processes, folder, task, started, callbacks)


def resume(
    out: str | Path,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    max_time: str | None = None,
    dataset: MapDataset | None = None,
    validation: MapDataset | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
    classes: ClassSet | Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Outcome | None:
    """Continue a run that was stopped or killed, to the result that it would have had.

    With ``epochs`` or ``max_steps`` the run, finished or not, is extended to a longer one. The
    learning rate then follows the schedule of the longer run from the current step on, so it
    rises at that point if the schedule decays. With ``max_time`` it goes on until its whole
    duration, without the time between the parts, is that.

    Objects of Python's that the run began with are not recorded; they are given again.

    Example:
        >>> segformer.resume("runs/water", epochs=200)

    Args:
        out: Folder of the run.
        epochs: New total number of epochs.
        max_steps: New total number of optimizer steps; overrides ``epochs``.
        max_time: New total duration, such as "2h".
        dataset: As for `train`.
        validation: As for `train`.
        loss: As for `train`.
        transform: As for `train`.
        classes: As for `train`.
        callbacks: As for `train`; they may be others.

    Returns:
        The scores of the best model, or None without a validation split.

    Raises:
        ValueError: There is no run in the folder, its data set has changed, it is already
            longer than asked for, or it began with objects that are not given.
        TrainingStopped: Ctrl-C or SIGTERM; the state is saved.
        MemoryError: The device has too little memory.
        DiskFull: There is no space left; the last checkpoint is kept.
    """
    folder = RunFolder(out)
    source, config = folder.read_recipe()
    _, parts = _parts(dataset or source, validation, classes, None, loss, transform)
    processes = Processes(config, resuming=True)
    config = processes.config
    with processes.ending_together(), explaining_full_disk(folder.path, folder.checkpoint):
        checkpoint = processes.run_in_each(folder.load_checkpoint)
        if checkpoint is None and source is None and dataset is None:
            raise ValueError(f"{folder.path}: the run began with a data set from Python; give it")
        extends = any(value is not None for value in (epochs, max_steps, max_time))

        def begin() -> tuple[Task, Model]:
            folder.remove_partial_files()
            if checkpoint is None:
                logger.info(f"{folder.path}: there is no checkpoint yet; starting at step 0")
                begun = replace(config, max_steps=None) if config.max_time is not None else config
                if extends:
                    images = _open(source, begun, parts).images
                    begun = _extended(begun, images, 0, epochs, max_steps, max_time)
                folder.truncate_metrics(-1, -1)
                return _new(processes, source, begun, parts)
            if not {"task", "architecture", "model", "state"} <= checkpoint.keys():
                raise ValueError(f"{folder.checkpoint}: not the resume checkpoint of a run")
            state, step = checkpoint["task"], int(checkpoint["state"]["step"])
            parts.check(state.get("own", ()))
            task = _open(source, config, parts, state)
            if extends:
                changed = _extended(config, task.images, step, epochs, max_steps, max_time)
                task = task.with_config(changed)
            architecture = SegFormerConfig.from_dict(checkpoint["architecture"])
            return task, task.restore_model(architecture)

        task, model = _begin(processes, source, parts, begin)
        if checkpoint is None or max_time is not None:
            minutes = checkpoint["state"]["minutes"] if checkpoint is not None else 0.0
            step = int(checkpoint["state"]["step"]) if checkpoint is not None else 0
            task, _ = _with_time_limit(processes, task, model, step, minutes)
        if processes.first and (checkpoint is None or extends):
            folder.write_recipe(source, task.config)
        if checkpoint is not None and extends:
            checkpoint["state"] |= {
                "stale_validations": 0,
                "total_steps": task.config.max_steps,
                "adapted_step": 0,
                "adapted_position": 0.0,
            }
        return _fit(processes, folder, task, model, callbacks, checkpoint)


def plan(
    dataset: str | Path | MapDataset,
    config: TrainConfig | None = None,
    *,
    validation: MapDataset | None = None,
    classes: ClassSet | Sequence[str] | None = None,
    model: SegFormer | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
) -> Plan:
    """What `train` would do with the same arguments, with its time and memory as measured.

    Nothing is written.

    Raises:
        ValueError: The data set or the configuration cannot be used.
        MemoryError: The device has too little memory.
    """
    source, parts = _parts(dataset, validation, classes, model, loss, transform)
    config = config if config is not None else SegmentationTrainConfig()
    processes = Processes(config)
    with processes.ending_together():
        task, started = _begin(
            processes, source, parts, lambda: _new(processes, source, config, parts)
        )
        task, measured = _with_time_limit(processes, task, started)
        return make_plan(processes, task, started, measured or measure(processes, task, started))


def _parts(
    dataset: str | Path | MapDataset | None,
    validation: MapDataset | None,
    classes: ClassSet | Sequence[str] | None,
    model: SegFormer | None,
    loss: Loss | None,
    transform: Transform | None,
) -> tuple[Path | None, OwnParts]:
    """The folder of the data set, or None, and the parts that are given as objects."""
    is_folder = dataset is None or isinstance(dataset, (str, Path))
    source = Path(dataset) if isinstance(dataset, (str, Path)) else None
    own: Any = None if is_folder else dataset
    return source, OwnParts(own, validation, classes, model, loss, transform)


def _open(
    dataset: Path | None,
    config: TrainConfig,
    parts: OwnParts,
    state: dict[str, Any] | None = None,
) -> Task:
    """The task of a new run, or of a run that is resumed with a state."""
    if not parts.names:
        return TASKS[config.task](dataset, config, state)
    if not isinstance(config, SegmentationTrainConfig):
        raise ValueError(f"{', '.join(parts.names)}: not for task {config.task}")
    return OwnSegmentation(dataset or Path(), config, parts, state)


def _new(
    processes: Processes, dataset: Path | None, config: TrainConfig, parts: OwnParts
) -> tuple[Task, Model]:
    """Task and model of a new run, its batch size measured if it is automatic."""
    if config.max_time is not None:
        config = replace(config, max_steps=None)
    task = _open(dataset, config, parts)
    model = task.build_model()
    if task.config.batch_size == "auto":
        size = largest_batch_size(processes.fabric, task, model, processes.count)
        sized = replace(task.config, batch_size=size)
        task = task.with_config(with_schedule(sized, task.images))
    return task, model


def _with_time_limit(
    processes: Processes, task: Task, model: Model, step: int = 0, minutes: float = 0.0
) -> tuple[Task, Measured | None]:
    """The task with the number of steps that its time limit allows, and the measured speed.

    Args:
        processes: The processes of the training.
        task: The task.
        model: Its model.
        step: Steps that are done.
        minutes: The time that they took.
    """
    if task.config.max_time is None:
        return task, None
    measured = measure(processes, task, model)
    steps = processes.run_in_first(
        lambda: steps_within(
            task.config,
            task.images,
            measured.step_seconds / 60,
            measured.validation_seconds / 60,
            step,
            minutes,
        )
    )
    logger.info(
        f"a step takes {measured.step_seconds:.2f} s, a validation about "
        f"{measured.validation_seconds:.1f} s: {steps} steps in {task.config.max_time}"
    )
    config = with_schedule(replace(task.config, max_steps=steps), task.images)
    return task.with_config(config), measured


def _begin(
    processes: Processes,
    dataset: Path | None,
    parts: OwnParts,
    build: Callable[[], tuple[Task, Model]],
) -> tuple[Task, Model]:
    """Build task and model in process 0; the others build theirs from its results."""
    limit_threads()
    reuse_memory()
    built: list[tuple[Task, Model]] = []

    def work() -> tuple[TrainConfig, dict[str, Any], SegFormerConfig]:
        task, model = build()
        built.append((task, model))
        return task.config, task.state(), model.config

    config, state, architecture = processes.run_in_first(work)
    if built:
        return built[0]
    task = _open(dataset, config, parts, state)
    return task, task.restore_model(architecture)


def _fit(
    processes: Processes,
    folder: RunFolder,
    task: Task,
    model: Model,
    callbacks: Sequence[Callback],
    checkpoint: dict[str, Any] | None = None,
) -> Outcome | None:
    loop = TrainingLoop(processes, folder, task, model, callbacks)
    if checkpoint is None and isinstance(task, OwnSegmentation):
        loop.save()  # names the parts that a resumed run has to be given again
    loop.fit(checkpoint)
    return loop.finish()


def _extended(
    config: TrainConfig,
    images: int,
    step: int,
    epochs: int | None,
    max_steps: int | None,
    max_time: str | None,
) -> TrainConfig:
    """The configuration of the longer run."""
    if max_time is not None:
        return replace(config, max_time=max_time, max_steps=None)
    config = replace(config, max_time=None)
    if epochs is not None:
        # max_steps is computed from epochs again
        steps = -(-epochs * images // config.images_per_step)
        config = replace(config, epochs=epochs, max_steps=steps)
    if max_steps is not None:
        config = replace(config, max_steps=max_steps)
    assert config.max_steps is not None
    if config.max_steps <= step:
        raise ValueError(
            f"the run has done {step} steps; {config.max_steps} would not extend it "
            f"(an epoch is {images} images)"
        )
    return config
