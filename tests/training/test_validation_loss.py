"""The loss on validation images against the plain formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import draw_dataset, randomize
from segformer import SegFormer, SegmentationTrainConfig
from segformer.training.processes import Processes
from segformer.training.segmentation import Segmentation


@pytest.mark.parametrize("size", [48, 40])
def test_it_is_the_loss_at_the_size_that_the_model_sees(
    tmp_path: Path, tiny_variant: str, size: int
) -> None:
    dataset = draw_dataset(tmp_path / "shapes", size=(48, 64))
    task = Segmentation(
        dataset, SegmentationTrainConfig(variant="tiny", short_side=size, device="cpu")
    )
    model = task.build_model()
    assert isinstance(model, SegFormer)
    randomize(model).eval()
    processes = Processes(task.config)
    found = task.validate(model, processes).row["val_loss"]
    losses = []
    assert task.validation is not None
    predictor = task._predictor(model, processes)
    for sample in task.validation:
        image, truth = task.validation.read(sample)
        logits = predictor.logits(image).double()[None]
        shape = predictor._view(image, 1.0).shape[:2]
        nearest = F.interpolate(
            torch.from_numpy(truth.astype(np.float64))[None, None], shape, mode="nearest-exact"
        )[0].long()
        full = F.interpolate(logits, shape, mode="bilinear", align_corners=False)
        losses.append(F.cross_entropy(full, nearest, ignore_index=255).item())
    assert found == pytest.approx(np.mean(losses), rel=1e-5)
