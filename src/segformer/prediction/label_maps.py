"""From logits to class ids, in PyTorch where the logits are tensors, else in NumPy.

Legend: K classes, h w tokens (pixels of logits), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.config import SegFormerConfig
from segformer.prediction import upsample_numpy


def logits_to_label_map(
    tta_logits: Sequence[Any],
    size: tuple[int, int],
    config: SegFormerConfig,
    *,
    confidence: bool = False,
) -> tuple[NDArray[np.integer], NDArray[np.float32] | None]:
    """Class ids at full resolution; with several views, the class of the largest mean probability.

    Args:
        tta_logits: Logits (K, h, w) of each view, tensors or arrays; sizes may differ.
        size: H and W.
        config: Of the model; a binary model has a threshold.
        confidence: Give the probability of the class of each pixel too.

    Returns:
        Class ids (H, W), and their probabilities (H, W), 0..1, or None.
    """
    to_label_map: Callable[..., tuple[NDArray[np.integer], NDArray[np.float32] | None]]
    if isinstance(tta_logits[0], np.ndarray):
        to_label_map = upsample_numpy.logits_to_label_map
    else:
        from segformer.prediction import upsample

        to_label_map = upsample.logits_to_label_map
    threshold = config.decision_thresholds[0] if config.decision_thresholds else 0.5
    return to_label_map(tta_logits, size, confidence=confidence, threshold=threshold)
