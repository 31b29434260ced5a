"""The training loop, from the first step to the last.

Lightning's Fabric provides devices, precision and processes. The loop is written out here because
a run must continue from any step with the same result, and that is easiest to see in a loop whose
whole state is a step number and tensors.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from segformer.checkpoints.layout import CONFIG_FILE
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.progress import ProgressBar
from segformer.training.config import ClassificationTrainConfig
from segformer.training.distillation import open_teacher
from segformer.training.finetuning import choose_trained, log_trained, plain_model
from segformer.training.folder import RunFolder
from segformer.training.optimization import lr_factor, moving_average, parameter_groups
from segformer.training.processes import Processes
from segformer.training.sharding import full, load_model, load_optimizer
from segformer.training.stopping import TrainingStopped, stop_requests
from segformer.training.task import Model, Outcome, Task

logger = logging.getLogger(__name__)

SMALLEST_SCALE = 2.0**-20
"""Loss scale of float16 below which gradients that are still not finite have another cause."""


@dataclass
class State:
    """What a resumed run needs to know besides tensors.

    Attributes:
        step: Optimizer steps done.
        validated_step: Step of the last validation.
        best_score: Highest score of a validation.
        stale_validations: Validations since then.
        minutes: Duration of the training so far.
    """

    step: int = 0
    validated_step: int = -1
    best_score: float = -1.0
    stale_validations: int = 0
    minutes: float = 0.0


class TrainingLoop:
    """One training, new or resumed.

    Args:
        processes: The processes of the training.
        folder: Where results are written.
        task: Data set and configuration.
        model: The model to train.
    """

    def __init__(self, processes: Processes, folder: RunFolder, task: Task, model: Model):
        config = task.config
        assert config.max_steps and config.lr and config.head_lr_factor
        assert config.num_workers is not None and config.warmup_steps is not None
        self.processes, self.fabric = processes, processes.fabric
        self.folder, self.task, self.config = folder, task, config
        self.total_steps, self.num_workers = config.max_steps, config.num_workers
        self.warmup_steps, self.min_factor = config.warmup_steps, config.min_lr / config.lr
        self.images_per_step = config.images_per_step
        self.steps_per_epoch = task.images / self.images_per_step
        self.model = model
        choose_trained(self.model, config)
        self.model.encoder.set_gradient_checkpointing(config.gradient_checkpointing)
        log_trained(self.model)
        processes.share(self.model)
        self.average = moving_average(self.model, config.ema_decay) if config.ema_decay else None
        self.wrapped = self.fabric.setup_module(self.model)
        if self.average is not None:
            processes.shard(self.average.module)
        groups = parameter_groups(
            self.model,
            config.lr,
            config.weight_decay,
            config.head_lr_factor,
            decay_norm_and_bias=(
                not isinstance(config, ClassificationTrainConfig) or config.decay_norm_and_bias
            ),
            layer_lr_decay=config.layer_lr_decay,
        )
        self.peak_lrs = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        self.wrapped_optimizer: Any = self.fabric.setup_optimizers(self.optimizer)
        self.teacher = open_teacher(config, self.model, self.fabric)
        self.state = State()

    def fit(self, checkpoint: dict[str, Any] | None = None) -> None:
        """Train from the checkpoint, or from the start, to the end.

        Raises:
            TrainingStopped: Ctrl-C or SIGTERM, in process 0; the others exit.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        if self.config.tensorboard and self.processes.first:
            self.folder.open_tensorboard(self.state.step)
        validation_steps = self._validation_steps()
        began = time.monotonic() - 60 * self.state.minutes
        loader = self.task.loader(
            self.model,
            self.state.step,
            self.total_steps,
            self.num_workers,
            self.processes.rank,
            self.processes.count,
        )
        with (
            stop_requests() as stop,
            open_batches(loader) as batches,
            ProgressBar(
                "training",
                self.total_steps,
                "images",
                start=self.state.step,
                scale=self.images_per_step,
            ) as bar,
        ):
            if self.state.step in validation_steps and self.state.validated_step < self.state.step:
                self._validate()  # the run ended between the checkpoint and the validation
            while self.state.step < self.total_steps and not self._out_of_patience():
                loss = self._step(batches)
                self.state.step += 1
                self.state.minutes = (time.monotonic() - began) / 60
                step = self.state.step
                bar.advance(note=f"epoch {step / self.steps_per_epoch:.1f}  loss {loss:.3f}")
                if step % self.config.log_every == 0 or step == self.total_steps:
                    self._log(loss, bar.rate)
                stopping = self.processes.any(stop.requested)
                validating = step in validation_steps
                if stopping or validating or step % self.config.checkpoint_every == 0:
                    self._checkpoint()
                if validating and not stopping:
                    with bar.paused():
                        self._validate()
                if stopping and step < self.total_steps:
                    self._stop()
                if stopping and validating:
                    self._validate()

    def finish(self) -> Outcome | None:
        """Write the images and the report of the best model."""
        saved = self.processes.run_in_first(
            lambda: [f for f in (self.folder.best, self.folder.last) if (f / CONFIG_FILE).exists()]
        )
        if self.folder.last not in saved:
            self._save_last()
        self.processes.run_in_first(self.folder.draw_curves)
        if not self.task.validates:
            return None
        best = saved[0] if saved else self.folder.last  # the last if no validation succeeded
        notes = {
            "model": str(best),
            "steps": self.state.step,
            "minutes": round(self.state.minutes, 2),
            "training_images": self.task.images,
        }
        try:
            return self.task.report(best, self.folder.path, self.processes, notes)
        except (ValueError, OSError) as error:
            if self.processes.first:
                logger.error("no report could be written: %s", error)
            return None

    def _out_of_patience(self) -> bool:
        patience, stale = self.config.patience, self.state.stale_validations
        if patience == 0 or stale < patience:
            return False
        logger.info(f"no better {self.task.score} in {patience} validations: stopping")
        return True

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """One optimizer step; returns its mean loss."""
        config, step = self.config, self.state.step
        # Dropout and stochastic depth depend on the step only, as the data do
        torch.manual_seed((config.seed * 1_000_003 + step) * 64 + self.processes.rank)
        factor = lr_factor(
            step,
            self.total_steps,
            self.warmup_steps,
            config.schedule,
            config.power,
            self.min_factor,
        )
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.model.train()
        mean_loss = 0.0
        for i in range(config.accumulate_grad_batches):
            batch = self.processes.run_in_each(lambda: _next_batch(batches))
            with self._explaining_memory():
                pixels, targets = self.task.prepare(*self.fabric.to_device(batch))
                accumulates = i + 1 < config.accumulate_grad_batches
                with self.fabric.no_backward_sync(self.wrapped, enabled=accumulates):
                    logits = self.wrapped(pixels)
                    loss = self.task.loss(logits, targets)
                    if self.teacher is not None:
                        loss = loss + self.teacher.loss(pixels, logits, targets)
                    loss = loss / config.accumulate_grad_batches
                    self.fabric.backward(loss)
                mean_loss += loss.item()
        mean_loss = self.processes.mean(mean_loss)
        if not math.isfinite(mean_loss):
            self._diverged(f"the loss is {mean_loss} at step {step}")
        # The gradients are the same in all processes, so all of them decide alike. In float16 the
        # scaler skips a step of non-finite gradients and lowers its scale
        norm = self.fabric.clip_gradients(
            self.wrapped,
            self.wrapped_optimizer,
            max_norm=config.max_grad_norm or math.inf,
            error_if_nonfinite=False,
        )
        if not math.isfinite(float(full(norm))) and self._loss_scale() < SMALLEST_SCALE:
            self._diverged(f"the gradients are not finite at step {step}")
        self.wrapped_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return mean_loss

    def _diverged(self, what: str) -> NoReturn:
        """End all processes, which have all come to the same result."""
        advice = "a smaller --lr, more --warmup-steps"
        if not self.config.max_grad_norm:
            advice += ", --max-grad-norm 1"
        if self.config.precision == "float16":
            advice += ", --precision bfloat16 or float32"
        self.processes.end(
            ValueError(f"{what}; use {advice}, or look for wrong values in the data")
        )

    def _loss_scale(self) -> float:
        """Scale of the loss in float16; 0 in other precisions."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return 0.0 if scaler is None else float(scaler.get_scale())

    @contextmanager
    def _explaining_memory(self) -> Iterator[None]:
        """Replace PyTorch's long message for too little memory by advice."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and (
                "DefaultCPUAllocator: can't allocate memory" not in str(error)
            ):
                raise
            raise MemoryError(
                f"out of memory at step {self.state.step}; use a smaller --batch-size (with "
                "--accumulate-grad-batches to keep the effective batch), a smaller --crop-size, or "
                "--gradient-checkpointing"
            ) from None

    def _validate(self) -> None:
        """Score and save the model, also as the best if it is."""
        model = self._save_last()
        self.state.validated_step = self.state.step
        if self.task.validates:
            try:
                outcome = self.task.validate(model, self.processes)
            except (ValueError, OSError) as error:  # the same in all processes
                if self.processes.first:
                    step = self.state.step
                    logger.error("step %d: validation failed, there is no score: %s", step, error)
            else:
                state = self.processes.run_in_first(lambda: self._record(model, outcome))
                self.state = State(**state)
        self._checkpoint()

    def _record(self, model: Model, outcome: Outcome) -> dict[str, Any]:
        """Write what a validation has found; returns the state after it."""
        state = self.state
        if model.config.thresholds:  # fitted by this validation
            model.save_pretrained(self.folder.last)
        if outcome.score > state.best_score:
            state.best_score, state.stale_validations = outcome.score, 0
            model.save_pretrained(self.folder.best)
        else:
            state.stale_validations += 1
        epoch = state.step / self.steps_per_epoch
        self.folder.append_metrics(
            step=state.step,
            epoch=round(epoch, 3),
            **{name: round(value, 5) for name, value in outcome.row.items()},
            minutes=round(state.minutes, 3),
        )
        logger.info(
            f"step {state.step}, epoch {epoch:.1f}: validation {outcome.words}, "
            f"best {self.task.score} {state.best_score:.2%}"
        )
        self.folder.draw_curves()
        return vars(state)

    def _stop(self) -> NoReturn:
        """End all processes after the checkpoint is written."""
        self.processes.barrier()
        self.processes.end(
            TrainingStopped(
                f"stopped after step {self.state.step} of {self.total_steps}; everything is saved. "
                f"Continue with: segformer train --resume {self.folder.path}"
            )
        )

    def _save_last(self) -> Model:
        """Save the moving average if there is one, else the model; returns it as a plain model."""
        trained = self.model if self.average is None else self.average.module
        assert isinstance(trained, SegFormer | SegFormerClassifier)
        model = plain_model(trained, self.task)
        self.processes.run_in_first(lambda: model.save_pretrained(self.folder.last))
        return model

    def _log(self, loss: float, images_per_s: float) -> None:
        if self.processes.first:
            self.folder.append_metrics(
                step=self.state.step,
                epoch=round(self.state.step / self.steps_per_epoch, 3),
                loss=round(loss, 5),
                lr=float(f"{self._encoder_lr():.4g}"),
                images_per_s=round(images_per_s, 2),
                minutes=round(self.state.minutes, 3),
            )

    def _encoder_lr(self) -> float:
        """Learning rate of the encoder, before the decay over its layers."""
        assert self.config.lr
        return self.optimizer.param_groups[0]["lr"] / self.peak_lrs[0] * self.config.lr

    def _checkpoint(self) -> None:
        tensors = full(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
            }
        )
        if self.processes.first:
            self.folder.save_checkpoint(
                {
                    "state": vars(self.state),
                    "architecture": asdict(self.model.config),
                    "task": self.task.state(),
                    **tensors,
                    "precision": self.fabric.strategy.precision.state_dict(),  # scale of float16
                }
            )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.state = State(**checkpoint["state"])
        load_model(self.model, checkpoint["model"])
        if self.average is not None:
            load_model(self.average, checkpoint["average"])
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
        if self.processes.first:
            self.folder.truncate_metrics(self.state.step, self.state.validated_step)
        logger.info(f"{self.folder.path}: continuing after step {self.state.step}")

    def _validation_steps(self) -> set[int]:
        every = self.config.val_every_steps or self.config.val_every * self.steps_per_epoch
        count = int(self.total_steps / every)
        return {math.ceil(k * every) for k in range(1, count + 1)} | {self.total_steps}


@contextmanager
def open_batches(loader: DataLoader[Any]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Iterate over a loader; its worker processes have ended when the context ends.

    After an exception the traceback keeps the iterator alive. Its workers, which ignore SIGTERM,
    would then wait for work while the program, at its exit, waits for them.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        shut_down = getattr(batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


def _next_batch(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The next batch; errors of worker processes without the traceback in their message."""
    try:
        return next(batches)
    except (ValueError, OSError) as error:
        if str(error).startswith("Caught "):
            last = str(error).strip().splitlines()[-1]
            raise ValueError(re.sub(r"^[\w.]+: ", "", last)) from None
        raise
    except RuntimeError as error:
        if re.match(r"DataLoader worker \(pid.*\) (is killed|exited)", str(error)):
            raise MemoryError(
                "a process that loads images was killed, probably for lack of memory; use fewer "
                "--num-workers, or --cache false"
            ) from None
        raise
