"""The training loop, from the first step to the last.

Lightning's Fabric provides devices, precision and processes. The loop is written out here because
a run must continue from any step with the same result, and that is easiest to see in a loop whose
whole state is a step number and tensors.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader

from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.progress import ProgressBar
from segformer.training import divergence, memory
from segformer.training.batches import Batches, batch_names, next_batch, open_batches
from segformer.training.callbacks import Callback, Callbacks, Progress
from segformer.training.config import ClassificationTrainConfig
from segformer.training.distillation import open_teacher
from segformer.training.finetuning import choose_trained, log_trained, plain_model
from segformer.training.folder import RunFolder
from segformer.training.metrics import Metrics
from segformer.training.optimization import lr_factor, moving_average, parameter_groups
from segformer.training.processes import Processes
from segformer.training.sharding import full, load_model, load_optimizer
from segformer.training.state import State
from segformer.training.stopping import TrainingStopped, stop_requests
from segformer.training.task import Model, Outcome, Task
from segformer.training.time_limit import TimeLimit, time_limit
from segformer.training.validation import Validation

logger = logging.getLogger(__name__)

_ENDLESS = 1 << 40
"""Last step for the order of the images where a time limit may change the number of steps."""


class TrainingLoop:
    """One training, new or resumed.

    Args:
        processes: The processes of the training.
        folder: Where results are written.
        task: Data set and configuration.
        model: The model to train.
        callbacks: The user's own.
    """

    def __init__(
        self,
        processes: Processes,
        folder: RunFolder,
        task: Task,
        model: Model,
        callbacks: Sequence[Callback] = (),
    ):
        config = task.config
        assert config.max_steps and config.lr and config.head_lr_factor
        assert config.num_workers is not None and config.warmup_steps is not None
        assert isinstance(config.batch_size, int)
        self.processes, self.fabric = processes, processes.fabric
        self.folder, self.task, self.config = folder, task, config
        self.num_workers = config.num_workers
        self.warmup_steps, self.min_factor = config.warmup_steps, config.min_lr / config.lr
        self.images_per_step = config.images_per_step
        self.steps_per_epoch = task.images / self.images_per_step
        self.model = model
        choose_trained(self.model, config)
        self.model.encoder.set_gradient_checkpointing(config.gradient_checkpointing)
        log_trained(self.model)
        processes.replicate(self.model)
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
        self.state = State(total_steps=config.max_steps)
        self.metrics = Metrics(folder)
        self.validation = Validation(folder, task, processes)
        progress = Progress(folder.path, self.model, config.max_steps)
        self.callbacks = Callbacks(callbacks if processes.first else (), progress)

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole training."""
        return self.state.total_steps

    def fit(self, checkpoint: dict[str, Any] | None = None) -> None:
        """Train from the checkpoint, or from the start, to the end.

        Raises:
            TrainingStopped: Ctrl-C or SIGTERM, in process 0; the others exit.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        state, config = self.state, self.config
        validation_steps = self._validation_steps()
        limit = time_limit(config, self.task.images)
        began = time.monotonic() - 60 * state.minutes
        last = _ENDLESS if limit is not None else self.total_steps
        with (
            self.metrics.open(config, state.step, enabled=self.processes.first),
            stop_requests() as stop,
            open_batches(self._loader(state.step, last, self.num_workers)) as batches,
            ProgressBar(
                "training",
                self.total_steps,
                "images",
                start=state.step,
                scale=self.images_per_step,
            ) as bar,
        ):
            self.callbacks.start()
            if state.step in validation_steps and state.validated_step < state.step:
                self._validate()  # the run ended between the checkpoint and the validation
            ending = False
            while self.state.step < self.total_steps and not ending and not self._out_of_patience():
                loss = self._step(batches)
                state = self.state
                state.step += 1
                state.add_loss(loss)
                state.minutes = (time.monotonic() - began) / 60
                step, validating = state.step, state.step in validation_steps
                bar.advance(note=f"epoch {self._epoch:.1f}  loss {loss:.3f}")
                self.callbacks.step(step, self._epoch, loss, self._encoder_lr)
                ending = self.processes.any(self.callbacks.progress.stopping)
                stopping = self.processes.any(stop.requested)
                validating |= ending
                measured = step % config.log_every == 0 or step == self.total_steps or ending
                if measured:
                    self._log(bar.rate)
                if stopping or validating or step % config.checkpoint_every == 0:
                    self.save()
                if validating and not stopping:
                    with bar.paused():
                        self._validate()
                if limit is not None and measured and step < self.total_steps:
                    self._keep_to(limit, bar)
                    validation_steps = self._validation_steps()
                if stopping and step < self.total_steps and not ending:
                    self._stop()
                if stopping and validating:
                    self._validate()
            self.callbacks.end()

    def timed_steps(self, count: int) -> list[float]:
        """Do the first steps of the training without writing anything; returns their seconds."""
        seconds = []
        with open_batches(self._loader(0, count, self.num_workers)) as batches:
            for _ in range(count):
                began = time.perf_counter()
                self._step(batches)
                self.state.step += 1
                seconds.append(time.perf_counter() - began)
        return seconds

    def finish(self) -> Outcome | None:
        """Write the images and the report of the best model."""
        notes = {
            "steps": self.state.step,
            "minutes": round(self.state.minutes, 2),
            "training_images": self.task.images,
        }
        return self.validation.report(self.plain_model, notes)

    def plain_model(self) -> Model:
        """The moving average of the weights if there is one, else the model, as a plain model.

        All processes must call this together.
        """
        trained = self.model if self.average is None else self.average.module
        assert isinstance(trained, SegFormer | SegFormerClassifier)
        return plain_model(trained, self.task)

    @property
    def _epoch(self) -> float:
        """Passes over the training images done."""
        return self.state.step / self.steps_per_epoch

    @property
    def _encoder_lr(self) -> float:
        """Learning rate of the encoder, before the decay over its layers."""
        assert self.config.lr
        return float(self.optimizer.param_groups[0]["lr"] / self.peak_lrs[0] * self.config.lr)

    def _loader(
        self, start: int, end: int, num_workers: int, rank: int | None = None
    ) -> DataLoader[Any]:
        """Batches of the steps from start to end, by default those of this process."""
        rank = self.processes.rank if rank is None else rank
        return self.task.loader(self.model, start, end, num_workers, rank, self.processes.count)

    def _out_of_patience(self) -> bool:
        patience, stale = self.config.patience, self.state.stale_validations
        if patience == 0 or stale < patience:
            return False
        logger.info(f"no better {self.task.score} in {patience} validations: stopping")
        return True

    def _step(self, batches: Batches) -> float:
        """One optimizer step; returns its mean loss."""
        config, step = self.config, self.state.step
        # Dropout and stochastic depth depend on the step only, as the data do
        torch.manual_seed((config.seed * 1_000_003 + step) * 64 + self.processes.rank)
        factor = lr_factor(
            self.state.position,
            self.total_steps,
            self.warmup_steps if step < self.warmup_steps else 0,
            config.schedule,
            config.power,
            self.min_factor,
        )
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.model.train()
        losses = []
        for i in range(config.accumulate_grad_batches):
            batch = self.processes.run_in_each(lambda: next_batch(batches))
            with memory.explained(
                self.fabric, self.task, self.model, self.optimizer, self.average, step
            ):
                pixels, targets = self.task.prepare(*self.fabric.to_device(batch))
                accumulates = i + 1 < config.accumulate_grad_batches
                with self.fabric.no_backward_sync(self.wrapped, enabled=accumulates):
                    logits = self.wrapped(pixels)
                    loss = self.task.loss(logits, targets)
                    if self.teacher is not None:
                        loss = loss + self.teacher.loss(pixels, logits, targets)
                    loss = loss / config.accumulate_grad_batches
                    self.fabric.backward(loss)
                losses.append(loss.item())
        mean_loss = self.processes.mean(sum(losses))
        if divergence.is_diverging(mean_loss, self.state.lowest_loss):
            self._diverged(f"the loss is {mean_loss:.6g} at step {step}", losses)
        # The gradients are the same in all processes, so all of them decide alike. In float16 the
        # scaler skips a step of non-finite gradients and lowers its scale
        norm = self.fabric.clip_gradients(
            self.wrapped,
            self.wrapped_optimizer,
            max_norm=config.max_grad_norm or math.inf,
            error_if_nonfinite=False,
        )
        if not math.isfinite(float(full(norm))) and not divergence.can_rescale(self.fabric):
            self._diverged(f"the gradients are not finite at step {step}", losses)
        self.wrapped_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return mean_loss

    def _diverged(self, what: str, losses: Sequence[float]) -> NoReturn:
        """End all processes, which have all come to the same result."""
        step, ranks = self.state.step, range(self.processes.count)
        names = [batch_names(self._loader(step, step + 1, 0, rank)) for rank in ranks]
        images = divergence.blamed_images(self.processes, names, losses)
        kept = self._return_to_checkpoint()
        self.processes.end(ValueError(f"{what}; {divergence.advice(self.config, images)}. {kept}"))

    def _return_to_checkpoint(self) -> str:
        """Save the weights of the last checkpoint as ``last/``; returns what is kept, in words."""
        checkpoint = None
        if self.state.step:
            checkpoint = self.processes.run_in_each(self.folder.load_checkpoint)
        if checkpoint is None:
            return "There is no checkpoint before this step"
        self._load(checkpoint)
        model = self.plain_model()
        self.processes.run_in_first(lambda: model.save_pretrained(self.folder.last))
        return f"{self.folder.last} is the model after step {checkpoint['state']['step']}"

    def _keep_to(self, limit: TimeLimit, bar: ProgressBar) -> None:
        """Change the number of steps if the time limit would be missed."""
        done = self.state.step - bar.start
        limit.measure_until(done, done * self.images_per_step / max(bar.rate, 1e-9) / 60)
        total = self.processes.run_in_first(lambda: limit.better_total(self.state))
        if total == self.total_steps:
            return
        logger.info(
            f"a step takes {60 * limit.step_minutes:.2f} s: {total} steps instead of "
            f"{self.total_steps} end after {self.config.max_time}"
        )
        self.state.adapt(total)
        bar.total = self.callbacks.progress.total_steps = total
        if self.processes.first:
            self.folder.record_steps(total)
        self.save()

    def _validate(self) -> None:
        """Score and save the model, also as the best if it is."""
        began = time.monotonic()
        outcome = self.validation.run(self.plain_model(), self.state)
        self.state = State(**self.processes.run_in_first(lambda: self._record(outcome)))
        self.save()
        self.state.validation_minutes = (time.monotonic() - began) / 60
        self.state.minutes += self.state.validation_minutes

    def _record(self, outcome: Outcome | None) -> dict[str, Any]:
        """Write what a validation has found; returns the state after it."""
        state = self.state
        if outcome is not None:
            self._write(**{name: round(value, 5) for name, value in outcome.row.items()})
            logger.info(
                f"step {state.step}, epoch {self._epoch:.1f}: validation {outcome.words}, "
                f"best {self.task.score} {state.best_score:.2%}"
            )
            self.folder.draw_curves()
            self.callbacks.validation(outcome.row)
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

    def _log(self, images_per_s: float) -> None:
        """Write the mean loss since the last row."""
        self._write(
            loss=round(self.state.take_mean_loss(), 5),
            lr=float(f"{self._encoder_lr:.4g}"),
            images_per_s=round(images_per_s, 2),
        )

    def _write(self, **values: float) -> None:
        """Write a row of metrics, in process 0."""
        if self.processes.first:
            minutes = round(self.state.minutes, 3)
            self.metrics.write(
                self.state.step, epoch=round(self._epoch, 3), **values, minutes=minutes
            )

    def save(self) -> None:
        """Write the resume checkpoint, which holds whole tensors."""
        tensors = full(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
            }
        )
        if not divergence.are_finite(tensors["model"].values()):  # the same in all processes
            advice, kept = divergence.advice(self.config, ()), self._return_to_checkpoint()
            step = self.state.step
            self.processes.end(
                ValueError(f"the weights are not finite after step {step}; {advice}. {kept}")
            )
        checkpoint = {
            "state": vars(self.state),
            "architecture": asdict(self.model.config),
            "task": self.task.state(),
            **tensors,
            "precision": self.fabric.strategy.precision.state_dict(),  # scale of float16
        }
        self.processes.run_in_first(lambda: self.folder.save_checkpoint(checkpoint))

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.state = State(**checkpoint["state"])
        self.callbacks.progress.total_steps = self.total_steps
        self._load(checkpoint)
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
        if self.processes.first:
            self.folder.truncate_metrics(self.state.step, self.state.validated_step)
        logger.info(f"{self.folder.path}: continuing after step {self.state.step}")

    def _load(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights of a checkpoint."""
        load_model(self.model, checkpoint["model"])
        if self.average is not None:
            load_model(self.average, checkpoint["average"])

    def _validation_steps(self) -> set[int]:
        every = self.config.steps_per_validation(self.task.images)
        count = int(self.total_steps / every)
        return {math.ceil(k * every) for k in range(1, count + 1)} | {self.total_steps}
