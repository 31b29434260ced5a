"""Measure how much pre-training as a classifier improves the mIoU of segmentation.

    python benchmarks/pretraining.py parsing --recipe src/segformer/recipes/camvid-b0.yaml

Like the paper, trains a classifier first and uses its encoder for segmentation. The classifier is
trained on square patches of the training images of a segmentation data set; the class of a patch is
the class of its central pixel. Then trains two segmentation models with the same recipe, steps and
seed: one from random weights, one from the encoder of the classifier. Prints the top-1 accuracy of
the classifier and the validation mIoU of both models, and writes ``gain.json``. All patches come
from the training split, so no validation image is used.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from segformer.data.class_folders import open_class_folders
from segformer.data.dataset import Dataset
from segformer.data.opening import open_dataset
from segformer.files import write_json
from segformer.training.config import ClassificationTrainConfig, TrainConfig
from segformer.training.run import train

PATCH, HELD_OUT = 96, 10
"""Side of a patch in pixels; the patches of every tenth image validate the classifier."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--recipe", type=Path, required=True, help="recipe for segmentation")
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--patches", type=int, default=8, help="patches per class and image")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of the classifier")
    options = parser.parse_args()
    training = open_dataset(options.dataset, "train")
    patches = options.out / "patches"
    if not patches.exists():
        counts = cut_patches(training, patches, options.patches)
        print("patches: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    classifier = ClassificationTrainConfig(
        epochs=options.epochs,
        batch_size=64,
        crop_size=PATCH,
        eval_size=PATCH,
        min_area=0.4,
        rand_augment=1,
        random_erasing_prob=0.1,
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        val_every=4,
    )
    top1 = train(patches, options.out / "classifier", classifier)
    assert top1 is not None
    images = len(open_class_folders(patches))
    fresh = TrainConfig.from_yaml(options.recipe)
    started = replace(
        fresh, pretrained=str(options.out / "classifier" / "best"), head_lr_factor=1.0
    )
    scores = {}
    for name, config in (("fresh", fresh), ("pretrained", started)):
        outcome = train(options.dataset, options.out / name, config)
        assert outcome is not None
        scores[name] = outcome.score
    gain = scores["pretrained"] - scores["fresh"]
    print(f"classifier: {top1.words} on patches, {images} training patches")
    print(f"mIoU fresh {scores['fresh']:.2%}, pretrained {scores['pretrained']:.2%}: {gain:+.2%}")
    result = {"top1": top1.score, "patches": images, **scores, "gain": gain}
    write_json(options.out / "gain.json", result)


def cut_patches(dataset: Dataset, folder: Path, per_class: int) -> Counter[str]:
    """Write patches around random pixels of each class of an image, one folder per class."""
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for number, sample in enumerate(dataset):
        image, mask = dataset.read(sample)
        border = PATCH // 2
        padded = cv2.copyMakeBorder(image, *(border,) * 4, cv2.BORDER_REFLECT)
        split = "val" if number % HELD_OUT == 0 else "train"
        for class_id in np.unique(mask):
            if class_id == dataset.classes.ignore_index:
                continue
            rows, columns = np.nonzero(mask == class_id)
            name = dataset.classes.names[class_id]
            for i in rng.choice(len(rows), min(per_class, len(rows)), replace=False):
                patch = padded[rows[i] : rows[i] + PATCH, columns[i] : columns[i] + PATCH]
                path = folder / split / name / f"{number:05}_{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), patch[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                counts[name] += 1
    return counts


if __name__ == "__main__":
    main()
