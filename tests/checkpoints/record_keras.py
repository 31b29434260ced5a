"""Record tiny models of KerasHub and of transformers 4 on TensorFlow, for `test_keras.py`.

In an environment of its own, since both need TensorFlow:

    python -m venv tf && tf/bin/pip install tensorflow-cpu tf_keras "transformers<5" h5py \\
        kagglehub regex rich sentencepiece absl-py
    tf/bin/pip install --no-deps keras-hub
    tf/bin/python tests/checkpoints/record_keras.py

This writes `keras_models.zip` beside it: the files as those programs write them, every weight
random, and `outputs.json` with what the models compute for an input drawn by name. Weights are
multiples of 1/64, so that the archive stays small. With ``--size b0 --out FOLDER`` it writes models
of the size of B0 into a folder, with weights that are not rounded; SEGFORMER_KERAS_MODELS=FOLDER
makes the tests use them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import transformers

RECORDED = Path(__file__).with_name("keras_models.zip")
CLASSES = 5
SKIPPED = 13
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": (4, 8, 12, 16), "depths": (1, 2, 1, 1), "heads": (1, 2, 3, 4), "width": 8},
    "b0": {
        "hidden": (32, 64, 160, 256),
        "depths": (2, 2, 2, 2),
        "heads": (1, 2, 5, 8),
        "width": 256,
    },
}
SIDE = {"tiny": 64, "b0": 128}
STRIDES, PATCHES, REDUCTIONS = (4, 2, 2, 2), (7, 3, 3, 3), (8, 4, 2, 1)


def draw(name: str, shape: tuple[int, ...], kind: str, rounded: bool) -> np.ndarray:
    """Random values for a variable, from its name and kind alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape)
    if kind == "moving_variance":
        values = 0.5 + rng.random(shape)
    elif kind in ("bias", "beta", "moving_mean"):
        values = 0.1 * values
    elif kind == "gamma":
        values = 1 + 0.1 * values
    else:
        depthwise = len(shape) == 4 and shape[-1] == 1
        fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
        # So large that the two forms of GELU differ by more than the tests allow
        values = 2 * values / np.sqrt(fan_in)
    return np.round(values * 64) / 64 if rounded else values


def randomize(model: Any, rounded: bool) -> None:
    """Assign random values to all weights, by their order and kind."""
    for number, variable in enumerate(model.weights):
        kind = variable.name.split("/")[-1].split(":")[0]
        if kind == "seed_generator_state":
            continue
        shape = tuple(variable.shape)
        variable.assign(draw(f"{number} {kind}", shape, kind, rounded).astype("float32"))


def pixels(side: int) -> np.ndarray:
    """(1, side, side, 3) float64."""
    return np.random.default_rng(7).standard_normal((1, side, side, 3))


def kerashub(size: str, folder: Path, dtype: str, rounded: bool) -> dict[str, Any]:
    """Build KerasHub's models; save them if they are float32. Returns what they compute."""
    keras.config.set_dtype_policy(dtype)
    row, side = SIZES[size], SIDE[size]
    models = keras_hub.models

    def backbone() -> Any:
        return models.MiTBackbone(
            image_shape=(side, side, 3),
            num_layers=4,
            hidden_dims=list(row["hidden"]),
            layerwise_depths=list(row["depths"]),
            layerwise_num_heads=list(row["heads"]),
            layerwise_sr_ratios=list(REDUCTIONS),
            layerwise_patch_sizes=list(PATCHES),
            layerwise_strides=list(STRIDES),
            max_drop_path_rate=0.1,
        )

    encoder = backbone()
    segmenter = models.SegFormerImageSegmenter(
        backbone=models.SegFormerBackbone(image_encoder=encoder, projection_filters=row["width"]),
        num_classes=CLASSES,
        preprocessor=models.SegFormerImageSegmenterPreprocessor(
            image_converter=keras_hub.layers.SegFormerImageConverter(
                image_size=(side, side), scale=[0.017, 0.0175, 0.0174], offset=[-2.1, -2.0, -1.8]
            )
        ),
    )
    classifier = models.MiTImageClassifier(backbone=backbone(), num_classes=CLASSES)
    image = pixels(side).astype(dtype)
    outputs = {}
    for name, model in {"segmenter": segmenter, "classifier": classifier}.items():
        randomize(model, rounded)
        outputs[f"kerashub_{name}"] = values(model(image, training=False))
    # Of the logits at the size of the image, some rows are enough
    outputs["kerashub_segmenter_rows"] = [
        maps[::SKIPPED] for maps in outputs.pop("kerashub_segmenter")[0]
    ]
    quarter = segmenter.output_segmentation_head(segmenter.backbone(image, training=False))
    outputs["kerashub_segmenter"] = values(quarter)
    features = keras.Model(encoder.inputs, encoder.pyramid_outputs)(image, training=False)
    outputs["kerashub_features"] = [values(features[f"P{n}"]) for n in (1, 2, 3, 4)]
    if dtype == "float32":
        segmenter.save_to_preset(str(folder / "kerashub_segmenter"))
        classifier.save_to_preset(str(folder / "kerashub_classifier"))
        encoder.save_to_preset(str(folder / "kerashub_encoder"))
        segmenter.save(folder / "kerashub_segmenter.keras")
    return outputs


def on_tensorflow(size: str, folder: Path, rounded: bool) -> dict[str, Any]:
    """Build and save transformers' models. Returns what they compute."""
    row, side = SIZES[size], SIDE[size]
    config = transformers.SegformerConfig(
        hidden_sizes=list(row["hidden"]),
        depths=list(row["depths"]),
        num_attention_heads=list(row["heads"]),
        decoder_hidden_size=row["width"],
        num_labels=CLASSES,
    )
    image = tf.constant(pixels(side).transpose(0, 3, 1, 2).astype("float32"))
    outputs = {}
    for name, kind in {
        "segmenter": transformers.TFSegformerForSemanticSegmentation,
        "classifier": transformers.TFSegformerForImageClassification,
    }.items():
        model = kind(config)
        model(image)
        randomize(model, rounded)
        logits = model(image, training=False).logits
        outputs[f"tensorflow_{name}"] = np.asarray(logits, np.float64).round(9).tolist()
        model.save_pretrained(folder / f"tensorflow_{name}")
    return outputs


def values(tensor: Any) -> list[Any]:
    """(1, ...) channels last -> nested lists, channels first."""
    array = keras.ops.convert_to_numpy(tensor).astype(np.float64)
    return np.moveaxis(array, -1, 1).round(9).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounded = options.size == "tiny"
    folder = options.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    kerashub(options.size, folder, "float32", rounded)
    outputs = kerashub(options.size, folder, "float64", rounded)
    keras.config.set_dtype_policy("float32")
    outputs |= on_tensorflow(options.size, folder, rounded)
    outputs["versions"] = {
        module.__name__: module.__version__ for module in (keras, keras_hub, transformers, tf)
    }
    (folder / "outputs.json").write_text(json.dumps(outputs))
    if options.out is None:
        with zipfile.ZipFile(RECORDED, "w", zipfile.ZIP_LZMA) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
