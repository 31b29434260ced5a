"""What is minimized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from segformer.training.options.checked import BELOW_ONE, FRACTION, NOT_NEGATIVE, Options


@dataclass(frozen=True)
class SegmentationLossOptions(Options):
    """What is minimized: cross-entropy at the size of the masks, and terms added to it.

    Attributes:
        class_weight_power: Each class is weighted by its frequency to minus this power: 0 weights
            all classes equally, 1 by the inverse of their frequency.
        dice_weight: Weight of the Dice loss, which is added to the cross-entropy.
        lovasz_weight: Weight of the Lovasz loss, a surrogate of 1 - IoU, added likewise.
        focal_gamma: Focal loss: pixels are weighted by (1 - probability of their class) to this
            power.
        ohem_threshold: Online hard example mining: only pixels whose class has a probability below
            this count; 0 counts all pixels.
        ohem_min_kept: Smallest fraction of the labeled pixels that counts then, the hardest.
        label_smoothing: Fraction of the probability that is spread over all classes.
        avg_non_ignore: Average the loss over the labeled pixels. If false, over all pixels,
            ignored ones included, as in the original training code.
    """

    class_weight_power: Annotated[float, FRACTION] = 0.0
    dice_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    lovasz_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    focal_gamma: Annotated[float, NOT_NEGATIVE] = 0.0
    ohem_threshold: Annotated[float, FRACTION] = 0.0
    ohem_min_kept: Annotated[float, FRACTION] = 0.0625
    label_smoothing: Annotated[float, BELOW_ONE] = 0.0
    avg_non_ignore: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal_gamma and label_smoothing exclude each other; set one to 0")


@dataclass(frozen=True)
class ClassificationLossOptions(Options):
    """What is minimized: cross-entropy.

    Attributes:
        label_smoothing: Fraction of the probability that is spread over all classes.
    """

    label_smoothing: Annotated[float, BELOW_ONE] = 0.1
