"""Learning from a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from segformer.options import depends
from segformer.training.options.checked import NOT_NEGATIVE, POSITIVE, Options


@dataclass(frozen=True)
class DistillationOptions(Options):
    """Learning from a larger trained model, the teacher, in addition to the masks.

    Attributes:
        teacher: Trained segmentation model with the classes and channels of the data set: a
            folder, a file or a Hub id, in any checkpoint format.
        distill_weight: Weight of the divergence from the teacher's class probabilities, which is
            added to the loss.
        temperature: Both models' logits are divided by this before the divergence is computed;
            higher values show more of the classes that the teacher finds unlikely.
    """

    teacher: Annotated[str | None, depends("MODEL", "none")] = None
    distill_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    temperature: Annotated[float, POSITIVE] = 1.0
