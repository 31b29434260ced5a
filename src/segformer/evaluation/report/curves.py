"""Curves of a training, as charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from segformer.evaluation.report.charts import line_chart


@dataclass(frozen=True)
class Curves:
    """What a training has logged.

    Attributes:
        training: Rows (step, loss, learning rate).
        validation: Rows (step, score); scores from 0 to 1.
        score: Name of the score.
    """

    training: Sequence[tuple[int, float, float]]
    validation: Sequence[tuple[int, float]]
    score: str

    def charts(self) -> list[Markup]:
        """The loss, the validation score and the learning rate by step."""
        steps, losses, rates = zip(*self.training, strict=True) if self.training else ((), (), ())
        at, scores = zip(*self.validation, strict=True) if self.validation else ((), ())
        return [
            line_chart(steps, losses, "step", "training loss"),
            line_chart(at, scores, "step", f"validation {self.score}, %", in_percent=True),
            line_chart(steps, rates, "step", "learning rate"),
        ]
