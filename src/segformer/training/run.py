"""A recipe and a data set -> a run folder: the training, from top to bottom.

Lightning's Fabric carries it to the device, the precision and the number of GPUs; the loop is
written out here, because a run must go on from any step to the same result, and that is easiest
to see in a loop whose whole state is a step number and the tensors.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from segformer.checkpoints.layout import CONFIG_FILE
from segformer.config import SegFormerConfig
from segformer.model.products import reuse_memory
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.prediction.runtime import best_device, fast_in_bfloat16
from segformer.progress import ProgressBar, console
from segformer.training.classification import Classification
from segformer.training.config import TrainConfig
from segformer.training.folder import RunFolder
from segformer.training.optimization import lr_factor, moving_average, parameter_groups
from segformer.training.segmentation import Segmentation
from segformer.training.task import Model, Outcome, Task

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


class TrainingStopped(Exception):
    """The training was asked to stop, has saved its state, and can go on."""


TASKS: dict[str, Callable[..., Task]] = {"segment": Segmentation, "classify": Classification}


def train(dataset: str | Path, out: str | Path, config: TrainConfig) -> Outcome | None:
    """Train a model on a data set.

    Args:
        dataset: As `segformer.data.dataset.open_dataset` takes it; to classify, as
            `segformer.data.class_folders.open_class_folders` does.
        out: Folder for the run; see `RunFolder`.
        config: The recipe.

    Returns:
        What validation found of the best model, or None without a validation split.

    Raises:
        ValueError: The data set, the recipe or the folder cannot be used.
        TrainingStopped: Ctrl-C; everything is saved.
    """
    folder, dataset = RunFolder(out), Path(dataset)
    fabric = _launch(config)
    task = TASKS[config.task](dataset, config)
    model = task.build_model()
    if fabric.is_global_zero:
        folder.create(dataset, task.config)
    return _Run(fabric, folder, task, model).fit()


def resume(out: str | Path) -> Outcome | None:
    """Go on with a run that was stopped or killed, to the result it would have had.

    Args:
        out: The run's folder.

    Raises:
        ValueError: There is no run there.
        TrainingStopped: Ctrl-C; everything is saved.
    """
    folder = RunFolder(out)
    dataset, config = folder.read_recipe()
    fabric = _launch(config)
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        logger.info(f"{folder.path}: killed before the first checkpoint; starting at step 0")
        folder.truncate_metrics(-1)
        task = TASKS[config.task](dataset, config)
        model = task.build_model()
    else:
        if not {"task", "architecture", "model", "state"} <= checkpoint.keys():
            raise ValueError(f"{folder.checkpoint}: not the resume checkpoint of a run")
        task = TASKS[config.task](dataset, config, checkpoint["task"])
        model = task.restore_model(SegFormerConfig.from_dict(checkpoint["architecture"]))
    return _Run(fabric, folder, task, model).fit(checkpoint)


def _launch(config: TrainConfig) -> Fabric:
    """Fabric on the devices of the recipe; with several, one process for each from here on."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what it does is in config.yaml
    precision: str = config.precision
    if precision == "auto":
        precision = "bfloat16" if fast_in_bfloat16(best_device()) else "float32"
    fabric = Fabric(devices=config.devices, precision=PRECISIONS[precision])  # type: ignore[arg-type]
    fabric.launch()
    console.quiet = not fabric.is_global_zero
    reuse_memory()
    return fabric


@dataclass
class _State:
    """What, beside tensors, a resumed run needs to know."""

    step: int = 0
    best_score: float = -1.0
    stale_validations: int = 0
    minutes: float = 0.0


class _Run:
    """One training, new or resumed."""

    def __init__(
        self,
        fabric: Fabric,
        folder: RunFolder,
        task: Task,
        model: Model,
    ):
        config = task.config
        assert config.max_steps and config.lr and config.head_lr_factor
        assert config.num_workers is not None and config.warmup_steps is not None
        self.fabric, self.folder, self.task, self.config = fabric, folder, task, config
        self.total_steps, self.num_workers = config.max_steps, config.num_workers
        self.warmup_steps = config.warmup_steps
        self.images_per_step = config.batch_size * config.accumulate_grad_batches * config.devices
        self.steps_per_epoch = task.images / self.images_per_step
        self.model = model
        self.model.encoder.freeze(config.freeze_stages)
        self.model.encoder.set_gradient_checkpointing(config.gradient_checkpointing)
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            self.model = convert(self.model)  # type: ignore[no-untyped-call]
        groups = parameter_groups(self.model, config.lr, config.weight_decay, config.head_lr_factor)
        self.peak_lrs = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        self.wrapped, self.wrapped_optimizer = self.fabric.setup(self.model, self.optimizer)
        self.average = moving_average(self.model, config.ema_decay) if config.ema_decay else None
        if config.tensorboard and self.fabric.is_global_zero:
            folder.open_tensorboard()
        self.state = _State()

    def fit(self, checkpoint: dict[str, Any] | None = None) -> Outcome | None:
        """Train from the checkpoint, or from the start, to the end."""
        if checkpoint is not None:
            self._restore(checkpoint)
        batches = iter(
            self.task.loader(
                self.model,
                self.state.step,
                self.total_steps,
                self.num_workers,
                self.fabric.global_rank,
                self.fabric.world_size,
            )
        )
        validation_steps = self._validation_steps()
        began = time.monotonic() - 60 * self.state.minutes
        with (
            _stop_requests() as stop,
            ProgressBar(
                "training",
                self.total_steps,
                "images",
                start=self.state.step,
                scale=self.images_per_step,
            ) as bar,
        ):
            while self.state.step < self.total_steps and not self._out_of_patience():
                loss = self._step(batches)
                self.state.step += 1
                self.state.minutes = (time.monotonic() - began) / 60
                step = self.state.step
                bar.advance(note=f"epoch {step / self.steps_per_epoch:.1f}  loss {loss:.3f}")
                if step % self.config.log_every == 0 or step == self.total_steps:
                    self._log(loss, bar.rate)
                if step in validation_steps:
                    with bar.paused():
                        self._validate()
                stopping = self._any_rank(stop.requested)
                if stopping or step % self.config.checkpoint_every == 0:
                    self._checkpoint()
                if stopping and step < self.total_steps:
                    raise TrainingStopped(
                        f"stopped after step {step} of {self.total_steps}; everything is saved. "
                        f"Go on with: segformer train --resume {self.folder.path}"
                    )
        return self._finish()

    def _out_of_patience(self) -> bool:
        patience, stale = self.config.patience, self.state.stale_validations
        if patience == 0 or stale < patience:
            return False
        logger.info(f"no better {self.task.score} in {patience} validations: stopping")
        return True

    def _any_rank(self, flag: bool) -> bool:
        """Whether any of the processes flags it: they must stop at the same step."""
        if self.fabric.world_size == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.fabric.device)
        total = self.fabric.all_reduce(flags, reduce_op="sum")
        assert isinstance(total, Tensor)
        return bool(total > 0)

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """One optimizer step; returns its mean loss."""
        config, step = self.config, self.state.step
        # Dropout and stochastic depth are a function of the step, as the data are
        torch.manual_seed((config.seed * 1_000_003 + step) * 64 + self.fabric.global_rank)
        factor = lr_factor(step, self.total_steps, self.warmup_steps, config.schedule, config.power)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.model.train()
        mean_loss = 0.0
        for i in range(config.accumulate_grad_batches):
            pixels, targets = self.task.prepare(*self.fabric.to_device(next(batches)))
            waits = i + 1 < config.accumulate_grad_batches
            with self.fabric.no_backward_sync(self.wrapped, enabled=waits):
                loss = (
                    self.task.loss(self.wrapped(pixels), targets) / config.accumulate_grad_batches
                )
                self.fabric.backward(loss)
            mean_loss += loss.item()
        if not math.isfinite(mean_loss):
            raise ValueError(
                f"the loss is {mean_loss} at step {step}; try a smaller --lr, a --max-grad-norm, "
                "or --precision float32"
            )
        if config.max_grad_norm:
            self.fabric.clip_gradients(
                self.wrapped, self.wrapped_optimizer, max_norm=config.max_grad_norm
            )
        self.wrapped_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return mean_loss

    def _validate(self) -> None:
        """Score the model to be kept, keep it, and keep it as the best if it is."""
        model = self._kept_model()
        if self.fabric.is_global_zero:
            model.save_pretrained(self.folder.last)
            if self.task.validates:
                outcome = self.task.validate(model, str(self.fabric.device))
                if outcome.score > self.state.best_score:
                    self.state.best_score, self.state.stale_validations = outcome.score, 0
                    model.save_pretrained(self.folder.best)
                else:
                    self.state.stale_validations += 1
                self.folder.append_metrics(
                    step=self.state.step,
                    epoch=round(self.state.step / self.steps_per_epoch, 3),
                    **{name: round(value, 5) for name, value in outcome.row.items()},
                    minutes=round(self.state.minutes, 3),
                )
                logger.info(
                    f"step {self.state.step}, epoch {self.state.step / self.steps_per_epoch:.1f}: "
                    f"validation {outcome.words}, best {self.task.score} "
                    f"{self.state.best_score:.2%}"
                )
                self.folder.draw_curves()
        self.state = _State(**self.fabric.broadcast(vars(self.state)))
        self._checkpoint()

    def _finish(self) -> Outcome | None:
        """Write the images and the report of the model that was kept."""
        if not self.fabric.is_global_zero:
            raise SystemExit(0)  # one process of the several reports
        if not (self.folder.last / CONFIG_FILE).exists():
            self._kept_model().save_pretrained(self.folder.last)
        self.folder.draw_curves()
        if not self.task.validates:
            return None
        notes = {
            "model": str(self.folder.best),
            "steps": self.state.step,
            "minutes": round(self.state.minutes, 2),
            "training_images": self.task.images,
        }
        return self.task.report(self.folder.best, self.folder.path, str(self.fabric.device), notes)

    def _kept_model(self) -> Model:
        """The moving average where there is one, as a plain model."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, SegFormer | SegFormerClassifier)
        return self.average.module

    def _log(self, loss: float, images_per_s: float) -> None:
        if self.fabric.is_global_zero:
            self.folder.append_metrics(
                step=self.state.step,
                epoch=round(self.state.step / self.steps_per_epoch, 3),
                loss=round(loss, 5),
                lr=float(f"{self.optimizer.param_groups[0]['lr']:.4g}"),
                images_per_s=round(images_per_s, 2),
                minutes=round(self.state.minutes, 3),
            )

    def _checkpoint(self) -> None:
        if self.fabric.is_global_zero:
            self.folder.save_checkpoint(
                {
                    "state": vars(self.state),
                    "architecture": asdict(self.model.config),
                    "task": self.task.state(),
                    "model": self.model.state_dict(),
                    "average": self.average.state_dict() if self.average else None,
                    "optimizer": self.optimizer.state_dict(),
                    "precision": self.fabric.strategy.precision.state_dict(),  # float16's scale
                }
            )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.state = _State(**checkpoint["state"])
        try:
            self.model.load_state_dict(checkpoint["model"])
        except RuntimeError:
            raise ValueError(
                f"{self.folder.path}: the data set has other classes than when the run began"
            ) from None
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
        self.folder.truncate_metrics(self.state.step)
        logger.info(f"{self.folder.path}: going on after step {self.state.step}")

    def _validation_steps(self) -> set[int]:
        every = self.config.val_every * self.steps_per_epoch
        count = int(self.total_steps / every)
        return {math.ceil(k * every) for k in range(1, count + 1)} | {self.total_steps}


class _StopRequest:
    requested = False


@contextmanager
def _stop_requests() -> Iterator[_StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that a step is never cut in two.

    A second Ctrl-C interrupts at once; the last checkpoint is whole all the same.
    """
    request = _StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True
        logger.info("\nstopping after this step, saving ... (again to stop at once)")

    try:
        previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where signals cannot be handled: a notebook server
        previous = {}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
