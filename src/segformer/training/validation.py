"""What happens at a validation: the model is saved and scored, and the best ones are kept."""

from __future__ import annotations

import logging
from typing import Any

from segformer.checkpoints.layout import CONFIG_FILE
from segformer.training.folder import RunFolder
from segformer.training.full_disk import is_full_disk
from segformer.training.keeping import NO_SCORE, keep_model
from segformer.training.state import State
from segformer.training.task import Model, Outcome, Task

logger = logging.getLogger(__name__)


class Validation:
    """Scores and saves models; in process 0.

    Args:
        folder: Where models and reports are written.
        task: Validation images and configuration.
        device: Where the model runs.
    """

    def __init__(self, folder: RunFolder, task: Task, device: str):
        self.folder, self.task, self.config, self.device = folder, task, task.config, device

    def run(self, model: Model, state: State) -> Outcome | None:
        """Save a model as ``last/``, score it, and save it as ``best/`` if it is.

        Args:
            model: The model.
            state: The position of the training, which is updated.

        Returns:
            Scores, or None where there are no images for it or they failed.
        """
        model.save_pretrained(self.folder.last)
        state.validated_step = state.step
        outcome = self._score(model, state)
        last, best = self.config.keep_last, self.config.keep_best
        if last or best:
            state.scores[state.step] = NO_SCORE if outcome is None else outcome.score
            keep_model(self.folder.kept, model, state.step, state.scores, last, best)
        if outcome is None:
            return None
        if outcome.score > state.best_score:
            state.best_score, state.stale_validations = outcome.score, 0
            model.save_pretrained(self.folder.best)
        else:
            state.stale_validations += 1
        return outcome

    def report(self, model: Model, notes: dict[str, Any]) -> Outcome | None:
        """Write the images and the report of the best model.

        Args:
            model: The model at the end of the training.
            notes: Further entries for the report.
        """
        if not (self.folder.last / CONFIG_FILE).exists():
            model.save_pretrained(self.folder.last)
        self.folder.draw_curves()
        if not self.task.validates:
            return None
        best = self.folder.best
        if not (best / CONFIG_FILE).exists():
            best = self.folder.last  # no validation succeeded
        try:
            return self.task.report(
                best, self.folder.path, self.device, {"model": str(best), **notes}
            )
        except (ValueError, OSError) as error:
            if is_full_disk(error):
                raise
            logger.error("no report could be written: %s", error)
            return None

    def _score(self, model: Model, state: State) -> Outcome | None:
        if not self.task.validates:
            return None
        try:
            return self.task.validate(model, self.device)
        except (ValueError, OSError) as error:
            logger.error("step %d: validation failed, there is no score: %s", state.step, error)
            return None
