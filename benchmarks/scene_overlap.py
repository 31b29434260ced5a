"""What the overlap of windows does to the quality of scenes.

    python benchmarks/scene_overlap.py DATASET

The first validation images of a data set are enlarged (bicubic) and predicted as scenes, in windows
with several overlaps, by the model that ships with the package. Reported are the mean IoU of the
classes and the pixel accuracy on enlarged masks, and the fraction of pixels whose class differs
from the result with the largest overlap.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from segformer import Predictor
from segformer.data.opening import open_dataset
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.image.scene import open_scene
from segformer.prediction.windows import window_starts
from segformer.raster.predicting import predict_scene


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="with the classes of the model that ships")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--factor", type=int, default=2, help="by which images are enlarged")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 32, 64, 128, 256])
    options = parser.parse_args()
    dataset = open_dataset(options.dataset, "val")
    samples = list(dataset)[: options.images]
    predictor = Predictor()
    if predictor.model.classes.names != dataset.classes.names:
        raise ValueError(f"{options.dataset}: its classes are not those of the model")
    reference: list[NDArray[np.integer]] = []
    for overlap in sorted(options.overlaps, reverse=True):
        matrix, windows, different, total = ConfusionMatrix(dataset.classes), 0, 0, 0
        for i, sample in enumerate(samples):
            image, mask = dataset.read(sample)
            large = enlarged(image, options.factor, cv2.INTER_CUBIC)
            found, count = predicted(predictor, large, options.window, overlap)
            windows += count
            matrix.update(enlarged(mask, options.factor, cv2.INTER_NEAREST), found)
            if len(reference) < len(samples):
                reference.append(found)
            different += int((found != reference[i]).sum())
            total += found.size
        scores = matrix.scores()
        print(
            f"overlap {overlap:4}: {windows} windows, mIoU {scores.miou:.1%}, "
            f"pixel accuracy {scores.pixel_accuracy:.1%}, {different / total:.1%} of the pixels "
            f"differ from an overlap of {max(options.overlaps)}"
        )


def enlarged(pixels: NDArray[np.integer], factor: int, how: int) -> NDArray[np.integer]:
    """(H, W) or (H, W, C), by a whole factor."""
    values = pixels.astype(np.uint8)
    return np.asarray(cv2.resize(values, None, fx=factor, fy=factor, interpolation=how))


def predicted(
    predictor: Predictor, image: NDArray[np.integer], window: int, overlap: int
) -> tuple[NDArray[np.integer], int]:
    """Class ids (H, W) of an image that is predicted as a scene, and the number of windows."""
    height, width, _ = image.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        with rasterio.open(path, "w", **profile, photometric="RGB") as file:
            file.write(image.transpose(2, 0, 1))
        with open_scene(path) as scene:
            result = predict_scene(
                predictor, scene, Path(folder) / "out", window=window, overlap=overlap
            )
        with rasterio.open(result.label_map) as file:
            found = file.read(1)
    sides = (len(window_starts(side, window, window - overlap)) for side in (height, width))
    return found, int(np.prod(list(sides)))


if __name__ == "__main__":
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    main()
