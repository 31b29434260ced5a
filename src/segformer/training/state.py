"""What a resumed run needs to know besides tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class State:
    """The position of a training.

    Attributes:
        step: Optimizer steps done.
        total_steps: Number of steps of the whole training; 0 before it is known.
        adapted_step: Step at which ``total_steps`` was last changed to keep to a time limit.
        adapted_position: Position in the schedule of the learning rate at that step, in steps of
            a training of ``total_steps``.
        validated_step: Step of the last validation.
        best_score: Highest score of a validation.
        stale_validations: Validations since then.
        scores: Scores of the models in ``checkpoints/``, by step; -1 without a score.
        loss_sum: Sum of the losses since the last row of metrics.csv.
        loss_count: Number of these losses.
        lowest_loss: Lowest mean of such an interval.
        minutes: Duration of the training so far.
        validation_minutes: Duration of the last validation.
    """

    step: int = 0
    total_steps: int = 0
    adapted_step: int = 0
    adapted_position: float = 0.0
    validated_step: int = -1
    best_score: float = -1.0
    stale_validations: int = 0
    scores: dict[int, float] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_count: int = 0
    lowest_loss: float = math.inf
    minutes: float = 0.0
    validation_minutes: float = 0.0

    @property
    def position(self) -> float:
        """Position in the schedule of the learning rate, from 0 to ``total_steps``.

        It is the step, unless the number of steps was adapted. From the step of the adaptation on
        it rises evenly to the new end, so that the learning rate does not jump.
        """
        remaining = (self.total_steps - self.adapted_position) / (
            self.total_steps - self.adapted_step
        )
        return self.adapted_position + (self.step - self.adapted_step) * remaining

    def adapt(self, total_steps: int) -> None:
        """Change the number of steps from the current step on.

        Args:
            total_steps: The new number, more than the steps done.
        """
        fraction = self.position / self.total_steps
        self.adapted_step, self.adapted_position = self.step, fraction * total_steps
        self.total_steps = total_steps

    def add_loss(self, loss: float) -> None:
        """Count the loss of a step."""
        self.loss_sum += loss
        self.loss_count += 1

    def take_mean_loss(self) -> float:
        """The mean loss since the last call."""
        mean = self.loss_sum / max(self.loss_count, 1)
        self.loss_sum, self.loss_count = 0.0, 0
        self.lowest_loss = min(self.lowest_loss, mean)
        return mean
