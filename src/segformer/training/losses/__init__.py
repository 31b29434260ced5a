"""Loss functions for low-resolution logits and full-resolution masks, one file per family."""

from segformer.training.losses.binary_cross_entropy import binary_cross_entropy_at_mask_size
from segformer.training.losses.boundary import boundary_loss
from segformer.training.losses.cross_entropy import OHEM, cross_entropy_at_mask_size
from segformer.training.losses.lovasz import lovasz_loss
from segformer.training.losses.objective import Objective
from segformer.training.losses.regions import dice_loss, tversky_loss

__all__ = [
    "OHEM",
    "Objective",
    "binary_cross_entropy_at_mask_size",
    "boundary_loss",
    "cross_entropy_at_mask_size",
    "dice_loss",
    "lovasz_loss",
    "tversky_loss",
]
