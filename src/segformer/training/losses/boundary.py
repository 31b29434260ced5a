"""The boundary loss.

Legend: B batch, K classes, h w logits, H W mask.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer.training.losses.regions import Regions, in_full_precision


@in_full_precision
def boundary_loss(
    logits: Tensor, mask: Tensor, *, ignore_index: int = 255, multilabel: bool = False
) -> Tensor:
    """Boundary loss: mean of probability times signed distance to the boundary of the class.

    Errors far from the true region of a class cost more than errors at its edge, whatever the
    size of the region: Kervadec et al. 2019, arXiv 1812.07032, equation 5. It is minimal for the
    truth, but nearly flat for regions that are too small, so it is added to another loss. The
    distances are computed on the CPU, at the resolution of the logits.

    Args:
        logits: (B, K, h, w).
        mask: (B, H, W) class ids, or packed classes for ``multilabel``.
        ignore_index: Class id of pixels that are ignored.
        multilabel: Classes may overlap; see `segformer.data.multilabel`.

    Returns:
        Scalar in [-1, 1], float32 (float64 for float64 logits): distances are fractions of the
        diagonal of the image. Of classes that may overlap, the mean is taken; else the
        probabilities sum to one, and so the classes are summed.
    """
    regions = Regions.of(logits, mask, ignore_index, multilabel)
    truth = regions.truth.detach().cpu().numpy().astype(bool)
    distances = np.stack([[signed_distance(region) for region in image] for image in truth])
    costs = (regions.probs * torch.from_numpy(distances).to(regions.probs)).sum(1)
    if multilabel:
        costs = costs / logits.shape[1]
    return costs.sum() / regions.labeled.sum().clamp(min=1)


def signed_distance(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance of each pixel to a region, negative inside, as a fraction of the diagonal.

    Pixels of the region that touch its boundary have 0, as in the code of the paper.

    Args:
        region: (h, w) pixels of the region.

    Returns:
        (h, w); 0 everywhere if the region is empty or the whole image, which has no boundary.
    """
    if not region.any() or region.all():
        return np.zeros(region.shape, np.float32)
    outside, inside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (~region, region)
    )
    signed: NDArray[np.float32] = np.where(region, 1 - inside, outside).astype(np.float32)
    return signed / np.float32(np.hypot(*region.shape))
