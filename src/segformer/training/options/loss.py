"""What is minimized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from segformer.options import depends
from segformer.training.options.checked import (
    BELOW_ONE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Options,
)


@dataclass(frozen=True)
class SegmentationLossOptions(Options):
    """What is minimized: a weighted sum of loss functions, by default cross-entropy alone.

    Attributes:
        cross_entropy_weight: Weight of the cross-entropy, at the size of the masks. For classes
            that may overlap, it is the binary cross-entropy of each class.
        class_weights: Weights of classes in the cross-entropy: "auto" for inverse frequency, or
            NAME=WEIGHT for some classes; the others have weight 1.
        class_weight_power: Power of the frequency in "auto": 1 weights a class by its inverse
            frequency, 0.5 by the inverse square root, which is milder.
        dice_weight: Weight of the Dice loss, which improves classes with few pixels.
        tversky_weight: Weight of the Tversky loss: Dice with separate weights of both errors.
        tversky_alpha: Weight of false positives in the Tversky loss.
        tversky_beta: Weight of false negatives in it; higher than tversky_alpha for more recall.
        lovasz_weight: Weight of the Lovasz loss, a surrogate of 1 - IoU.
        boundary_weight: Weight of the boundary loss, which penalizes errors far from the true
            region.
        focal_gamma: Focal loss: pixels are weighted by (1 - probability of their class) to this
            power in the cross-entropy.
        ohem_threshold: Online hard example mining: only pixels whose class has a probability below
            this count in the cross-entropy; 0 counts all pixels.
        ohem_min_kept: Smallest fraction of the labeled pixels that counts then, the hardest.
        label_smoothing: Fraction of the probability that is spread over all classes in the
            cross-entropy.
        avg_non_ignore: Average the cross-entropy over the labeled pixels. If false, over all
            pixels, ignored ones included, as in the original training code.
    """

    cross_entropy_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    class_weights: Annotated[tuple[str, ...], depends("auto|NAME=WEIGHT ...", "all equal")] = ()
    class_weight_power: Annotated[float, POSITIVE] = 1.0
    dice_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    tversky_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    tversky_alpha: Annotated[float, NOT_NEGATIVE] = 0.3
    tversky_beta: Annotated[float, NOT_NEGATIVE] = 0.7
    lovasz_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    boundary_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    focal_gamma: Annotated[float, NOT_NEGATIVE] = 0.0
    ohem_threshold: Annotated[float, FRACTION] = 0.0
    ohem_min_kept: Annotated[float, FRACTION] = 0.0625
    label_smoothing: Annotated[float, BELOW_ONE] = 0.0
    avg_non_ignore: bool = True

    def __post_init__(self) -> None:
        given: object = self.class_weights
        if isinstance(given, str):  # as recipes may have it
            object.__setattr__(self, "class_weights", (given,))
        elif isinstance(given, dict):
            pairs = tuple(f"{name}={weight}" for name, weight in given.items())
            object.__setattr__(self, "class_weights", pairs)
        super().__post_init__()
        if self.class_weights != ("auto",):
            self.explicit_class_weights()  # raises what is wrong with them
            if self.class_weight_power != 1:
                raise ValueError("class_weight_power needs class_weights auto")
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal_gamma and label_smoothing exclude each other; set one to 0")
        weights = (
            *(self.cross_entropy_weight, self.dice_weight, self.tversky_weight),
            *(self.lovasz_weight, self.boundary_weight),
        )
        if not any(weights):
            raise ValueError("the weights of all losses are 0; set cross_entropy_weight to 1")
        if not self.tversky_alpha + self.tversky_beta:
            raise ValueError("tversky_alpha and tversky_beta are both 0; set one of them")

    def explicit_class_weights(self) -> dict[str, float]:
        """Weights by name of the class; empty for "auto" and for equal weights.

        Raises:
            ValueError: An entry is not NAME=WEIGHT, or a class has two weights.
        """
        weights = dict[str, float]()
        for entry in self.class_weights if self.class_weights != ("auto",) else ():
            name, _, number = entry.rpartition("=")
            try:
                weight = float(number)
            except ValueError:
                weight = math.nan
            if not name or not 0 <= weight < math.inf:
                raise ValueError(
                    f"class_weights must be auto, or NAME=WEIGHT for each class, not {entry!r}"
                )
            if name in weights:
                raise ValueError(f"class_weights: the class {name!r} has two weights")
            weights[name] = weight
        return weights


@dataclass(frozen=True)
class ClassificationLossOptions(Options):
    """What is minimized: cross-entropy.

    Attributes:
        label_smoothing: Fraction of the probability that is spread over all classes.
    """

    label_smoothing: Annotated[float, BELOW_ONE] = 0.1
