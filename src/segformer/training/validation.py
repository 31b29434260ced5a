"""What happens at a validation: the model is saved and scored, and the best ones are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from segformer.checkpoints.layout import CONFIG_FILE
from segformer.training.folder import RunFolder
from segformer.training.full_disk import is_full_disk
from segformer.training.keeping import NO_SCORE, keep_model
from segformer.training.processes import Processes
from segformer.training.state import State
from segformer.training.task import Model, Outcome, Task

logger = logging.getLogger(__name__)


class Validation:
    """Scores and saves models. All processes score; process 0 saves.

    Args:
        folder: Where models and reports are written.
        task: Validation images and configuration.
        processes: The processes, which must call each method together.
    """

    def __init__(self, folder: RunFolder, task: Task, processes: Processes):
        self.folder, self.task, self.config = folder, task, task.config
        self.processes = processes

    def run(self, model: Model, state: State) -> Outcome | None:
        """Save a model as ``last/``, score it, and save it as ``best/`` if it is.

        Args:
            model: The model, whole in each process.
            state: The position of the training, which is updated in process 0.

        Returns:
            Scores, or None where there are no images for it or they failed.
        """
        self.processes.run_in_first(lambda: model.save_pretrained(self.folder.last))
        outcome = self._score(model, state)
        self.processes.run_in_first(lambda: self._keep(model, state, outcome))
        return outcome

    def report(self, whole_model: Callable[[], Model], notes: dict[str, Any]) -> Outcome | None:
        """Write the images and the report of the best model.

        Args:
            whole_model: Returns the model at the end of the training.
            notes: Further entries for the report.
        """
        saved = self.processes.run_in_first(
            lambda: [f for f in (self.folder.best, self.folder.last) if (f / CONFIG_FILE).exists()]
        )
        if self.folder.last not in saved:
            model = whole_model()
            self.processes.run_in_first(lambda: model.save_pretrained(self.folder.last))
        self.processes.run_in_first(self.folder.draw_curves)
        if not self.task.validates:
            return None
        best = saved[0] if saved else self.folder.last  # the last if no validation succeeded
        notes = {"model": str(best), **notes}
        try:
            return self.task.report(best, self.folder.path, self.processes, notes)
        except (ValueError, OSError) as error:
            if is_full_disk(error):
                raise
            if self.processes.first:
                logger.error("no report could be written: %s", error)
            return None

    def _score(self, model: Model, state: State) -> Outcome | None:
        if not self.task.validates:
            return None
        try:
            return self.task.validate(model, self.processes)
        except (ValueError, OSError) as error:  # the same in all processes
            if self.processes.first:
                step = state.step
                logger.error("step %d: validation failed, there is no score: %s", step, error)
            return None

    def _keep(self, model: Model, state: State, outcome: Outcome | None) -> None:
        """Save the model where its score says, in process 0."""
        state.validated_step = state.step
        if model.config.thresholds:  # fitted by this validation
            model.save_pretrained(self.folder.last)
        last, best = self.config.keep_last, self.config.keep_best
        if last or best:
            state.scores[state.step] = NO_SCORE if outcome is None else outcome.score
            keep_model(self.folder.kept, model, state.step, state.scores, last, best)
        if outcome is None:
            return
        if outcome.score > state.best_score:
            state.best_score, state.stale_validations = outcome.score, 0
            model.save_pretrained(self.folder.best)
        else:
            state.stale_validations += 1
