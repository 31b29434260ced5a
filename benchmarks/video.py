"""Flicker of label maps over a video, without and with smoothing.

The clip is a pan over a photograph, two pixels to the right in each frame, with sensor noise. As
the motion is known, a label map is compared with the one before at the same place of the scene:
where they differ, the label flickers. Run it with

    python benchmarks/video.py --frames 60
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer import Predictor
from segformer.prediction.video.smoothing import LogitSmoothing

SHIFT = 2
"""Pixels that the camera moves in a frame."""


def pan(count: int, noise: float) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) over the photograph inside the package.

    Args:
        count: Number of frames.
        noise: Standard deviation of the noise, in levels.
    """
    with (files("segformer") / "assets/astronaut.jpg").open("rb") as file:
        photograph = np.asarray(Image.open(file).convert("RGB"))
    rng = np.random.default_rng(0)
    width = photograph.shape[1] - SHIFT * (count - 1)
    for i in range(count):
        view = photograph[:, SHIFT * i : SHIFT * i + width]
        yield np.clip(view + rng.normal(0, noise, view.shape), 0, 255).astype(np.uint8)


def flicker(maps: list[NDArray[np.integer]]) -> float:
    """Fraction of the pixels whose class differs from that of the frame before, 0..1."""
    return float(np.mean([before[:, SHIFT:] != now[:, :-SHIFT] for before, now in pairwise(maps)]))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--noise", type=float, default=10)
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 0.3, 0.5, 0.7, 0.9])
    options = parser.parse_args()
    predictor = Predictor(options.model, short_side=320)
    plain: list[NDArray[np.integer]] = []
    print("smoothing  flicker  agreement with the maps without smoothing")
    for weight in options.weights:
        predictor.logits_filter = LogitSmoothing(weight) if weight else None
        frames = pan(options.frames, options.noise)
        maps = [prediction.label_map for prediction in predictor.stream(frames)]
        plain = plain or maps
        agreement = np.mean([a == b for a, b in zip(maps, plain, strict=True)])
        print(f"{weight:9}  {flicker(maps):7.2%}  {agreement:.2%}")


if __name__ == "__main__":
    main()
