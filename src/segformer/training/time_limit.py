"""A training that is to take a given time: how many steps it has.

The number of steps is chosen before the first from measured steps, and recorded. After every row
of metrics.csv the end is estimated again. If it is off by more than 3 % of the limit, the number
of remaining steps is changed, recorded in the checkpoint that is written at once, and the learning
rate goes evenly from where it is to its end. Between two such changes a run repeats exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from segformer.training.config import TrainConfig
from segformer.training.options.duration import minutes_in
from segformer.training.state import State

TOLERANCE = 0.03
"""Fraction of the limit by which the estimated end may be off before the steps are changed."""

_WEIGHT = 0.3
"""Weight of the newest interval in the average duration of a step."""


@dataclass
class TimeLimit:
    """The limit of a training, and how fast it is.

    Attributes:
        minutes: The limit.
        steps_per_validation: Steps from one validation to the next.
        step_minutes: Average duration of a step; 0 before it is measured.
    """

    minutes: float
    steps_per_validation: float
    step_minutes: float = 0.0
    _last: tuple[int, float] = (0, 0.0)

    def measure(self, step_minutes: float) -> None:
        """Take the mean duration of the steps of an interval into the average."""
        weight = _WEIGHT if self.step_minutes else 1.0
        self.step_minutes += weight * (step_minutes - self.step_minutes)

    def measure_until(self, step: int, minutes: float) -> None:
        """Measure the interval since the last call.

        Args:
            step: Steps since the training began or was resumed, at least one more than before.
            minutes: The time that they took, without validations.
        """
        last_step, last_minutes = self._last
        self._last = (step, minutes)
        self.measure((minutes - last_minutes) / (step - last_step))

    def fitting_steps(self, step: int, minutes: float, validation_minutes: float) -> int:
        """The number of steps, those done included, that end at the limit.

        Args:
            step: Steps done.
            minutes: Duration of the training so far.
            validation_minutes: Duration of a validation.
        """
        per_step = self.step_minutes + validation_minutes / self.steps_per_validation
        remaining = self.minutes - minutes - validation_minutes  # the last step is validated too
        return step + max(1, int(remaining / per_step))

    def better_total(self, state: State) -> int:
        """The number of steps to change to; that of the state if it ends near the limit."""
        spent, validation = state.minutes, state.validation_minutes
        per_step = self.step_minutes + validation / self.steps_per_validation
        end = spent + (state.total_steps - state.step) * per_step + validation
        if abs(end - self.minutes) <= TOLERANCE * self.minutes:
            return state.total_steps
        return self.fitting_steps(state.step, spent, validation)


def time_limit(config: TrainConfig, images: int) -> TimeLimit | None:
    """The limit that a configuration sets for a number of training images, or None."""
    if config.max_time is None:
        return None
    return TimeLimit(minutes_in(config.max_time), config.steps_per_validation(images))


def steps_within(
    config: TrainConfig,
    images: int,
    step_minutes: float,
    validation_minutes: float,
    step: int = 0,
    minutes: float = 0.0,
) -> int:
    """Number of steps of a training that is to end at its limit.

    Args:
        config: The configuration, with a limit.
        images: Number of training images.
        step_minutes: Duration of a step.
        validation_minutes: Duration of a validation.
        step: Steps that are done.
        minutes: The time that they took.

    Raises:
        ValueError: The limit is over.
    """
    limit = time_limit(config, images)
    assert limit is not None
    if minutes >= limit.minutes:
        raise ValueError(
            f"the run has taken {minutes:.1f} minutes; max_time {config.max_time} would not "
            "extend it"
        )
    limit.measure(step_minutes)
    return limit.fitting_steps(step, minutes, validation_minutes)
