"""Logits to class ids at full size: by the corner argument, and as everybody does it.

    python benchmarks/labels.py

The peer is what transformers documents: bilinear interpolation of the logits to the image's
size, then argmax. The logits are the shipped model's on a photograph: its eleven classes, and
beside them linear functions of the features that they come from, so that there are as many as
asked for. In the first three rows these lie below the real classes nearly everywhere, as most of
150 classes do in an image; in the others every class wins somewhere, the hardest case. Ids are
compared first. The floor is reading the logits once, and writing the ids, at the rate of a copy.
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

from segformer import Predictor
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
    parser.add_argument("--case", type=int, help="used inside")
    parser.add_argument(harness.PEAK_OF, help="used inside")
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
    planes = low.contiguous()  # as transformers' model leaves them; ours leaves channels last

    def interpolate_and_argmax() -> NDArray[np.integer]:
        full = F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)
        return full.argmax(1)[0].numpy()

    return {PEER: interpolate_and_argmax, OURS: lambda: logits_to_label_map([low], size)[0]}


def logits(classes: int, size: tuple[int, int], contested: bool) -> Tensor:
    """(K, h, w), a quarter of ``size``."""
    torch.manual_seed(0)
    model = Predictor().model.eval()
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
