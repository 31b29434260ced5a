"""Compare two ways to compute a full-size label map from logits.

    python benchmarks/labels.py

The reference is the method in the documentation of transformers: bilinear interpolation of the
logits to the image size, then argmax. This package computes the label map from the corners of each
cell (`segformer.prediction.upsample`).

The logits come from the shipped model and a photograph. They contain the eleven classes of the
model and additional classes, which are linear functions of the same features. In the first three
rows the additional classes are below the real classes almost everywhere, as most of 150 classes are
in an image. In the other rows all classes are additional ones and compete with each other, which is
the hardest case. The class ids are compared first. The floor is the time to read the logits once
and write the class ids, at the speed of a copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import harness
import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data
from torch import Tensor
from torch.nn import functional as F

from segformer import SegFormer
from segformer.checkpoints.opening import SHIPPED
from segformer.image import resize
from segformer.prediction.upsample import logits_to_label_map

PEER, OURS = "interpolate, argmax", "segformer"
Run = Callable[[], NDArray[np.integer]]
CASES = [
    (classes, size, contested)
    for contested in (False, True)
    for classes, size in ((150, (512, 512)), (19, (1024, 2048)), (150, (1024, 1024)))
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", type=int, help="internal: run in a subprocess")
    parser.add_argument(harness.PEAK_OF, help="internal: run in a subprocess")
    options = parser.parse_args()
    if options.peak_of:
        harness.print_peak(contenders(*CASES[options.case])[options.peak_of])
        return
    harness.report("labels", map(row, range(len(CASES))))


def row(case: int) -> harness.Row:
    classes, size, contested = CASES[case]
    found = contenders(*CASES[case])
    different = int((found[PEER]() != found[OURS]()).sum())
    assert different <= 1e-5 * size[0] * size[1]
    values = classes * size[0] * size[1] / 16
    kind = "all contested" if contested else "as in images"
    winner = torch.from_numpy(logits(*CASES[case]).argmax(0).numpy())
    mixed = (winner[:-1, :-1] != winner[1:, 1:]) | (winner[:-1, 1:] != winner[1:, :-1])
    return harness.Row(
        f"{classes} classes to {size[0]} x {size[1]}, {kind}",
        harness.in_turns(found, 5),
        OURS,
        (4 * values + size[0] * size[1]) / harness.copy_rate(),
        harness.peaks([PEER, OURS], "--case", str(case)),
        {
            "pixels that differ": different,
            "classes that win": len(set(winner.flatten().tolist())),
            "cells whose corners disagree": f"{mixed.float().mean():.1%}",
        },
    )


def contenders(classes: int, size: tuple[int, int], contested: bool) -> dict[str, Run]:
    low = logits(classes, size, contested)
    planes = low.contiguous()  # the memory layout of transformers; this package uses channels-last

    def interpolate_and_argmax() -> NDArray[np.integer]:
        full = F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)
        return full.argmax(1)[0].numpy()

    return {PEER: interpolate_and_argmax, OURS: lambda: logits_to_label_map([low], size)[0]}


def logits(classes: int, size: tuple[int, int], contested: bool) -> Tensor:
    """Return logits (K, h, w) at a quarter of ``size``."""
    torch.manual_seed(0)
    model = SegFormer.from_pretrained(SHIPPED).eval()
    image = model.preprocessing.normalize(resize(data.astronaut(), size))
    kept: list[Tensor] = []
    hook = model.decoder.classifier.register_forward_pre_hook(lambda _, x: kept.append(x[0]))
    with torch.no_grad():
        real = model(torch.from_numpy(image).permute(2, 0, 1)[None])
        hook.remove()
        weight = model.decoder.classifier.weight.flatten(1)
        more = classes if contested else classes - len(weight)
        drawn = weight[torch.randint(len(weight), (more,))] / 2
        drawn = drawn + 0.7 * weight.std() * torch.randn(more, weight.shape[1])
        others = F.conv2d(torch.cat(kept, 2), drawn[:, :, None, None])
        others -= others.mean((2, 3), keepdim=True)
        if contested:
            return others[0]
        return torch.cat([real, others + real.mean() - 1], 1)[0]


if __name__ == "__main__":
    main()
