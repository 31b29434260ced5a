"""The loss that a segmentation model is trained with: a weighted sum of loss functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from segformer.training.losses.binary_cross_entropy import binary_cross_entropy_at_mask_size
from segformer.training.losses.boundary import boundary_loss
from segformer.training.losses.cross_entropy import OHEM, cross_entropy_at_mask_size
from segformer.training.losses.lovasz import lovasz_loss
from segformer.training.losses.regions import dice_loss, tversky_loss
from segformer.training.options.loss import SegmentationLossOptions


@dataclass(frozen=True)
class Objective:
    """The weighted sum of loss functions that the options describe.

    Attributes:
        options: Weights and parameters of the loss functions.
        ignore_index: Class id of pixels that are ignored.
        class_weights: (K,) weights of the classes in the cross-entropy, or None.
        multilabel: Classes may overlap: masks hold packed classes (`segformer.data.multilabel`),
            and the cross-entropy is binary for each class.
    """

    options: SegmentationLossOptions
    ignore_index: int = 255
    class_weights: Tensor | None = None
    multilabel: bool = False

    def __call__(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, K, h, w) and mask (B, H, W) -> loss, scalar."""
        options = self.options
        terms = []
        if options.cross_entropy_weight:
            terms.append(options.cross_entropy_weight * self._cross_entropy(logits, mask))
        tversky = partial(tversky_loss, alpha=options.tversky_alpha, beta=options.tversky_beta)
        for weight, loss in (
            (options.dice_weight, dice_loss),
            (options.tversky_weight, tversky),
            (options.lovasz_weight, lovasz_loss),
            (options.boundary_weight, boundary_loss),
        ):
            if weight:
                value = loss(
                    logits, mask, ignore_index=self.ignore_index, multilabel=self.multilabel
                )
                terms.append(weight * value)
        return sum(terms[1:], terms[0])

    def _cross_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        options, weights = self.options, self.class_weights
        if weights is not None:
            weights = weights.to(logits.device)
        if self.multilabel:
            return binary_cross_entropy_at_mask_size(
                logits,
                mask,
                class_weights=weights,
                avg_non_ignore=options.avg_non_ignore,
                label_smoothing=options.label_smoothing,
                focal_gamma=options.focal_gamma,
            )
        threshold, min_kept = options.ohem_threshold, options.ohem_min_kept
        return cross_entropy_at_mask_size(
            logits,
            mask,
            class_weights=weights,
            ignore_index=self.ignore_index,
            avg_non_ignore=options.avg_non_ignore,
            label_smoothing=options.label_smoothing,
            focal_gamma=options.focal_gamma,
            ohem=OHEM(threshold, min_kept) if threshold else None,
        )
