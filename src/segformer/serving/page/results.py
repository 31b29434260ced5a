"""What the viewer of the page shows of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gradio.data_classes import FileData
from numpy.typing import NDArray

from segformer.prediction.prediction import Prediction
from segformer.serving.formats import ANSWERS, RUN_LENGTHS, Format, encode_image

_MOST_SHOWN = 2048
"""Pixels of the image on the page, wide and high. Downloads have the image's own size."""

_DOWNLOADS: dict[str, tuple[Format, str]] = {
    "label_map": ("label_map", ".png"),
    "overlay": ("overlay", "_overlay.jpg"),
    "summary": ("json", ".json"),
}
"""Key of a result -> format and end of the file's name."""


def waiting(name: str) -> dict[str, Any]:
    """The result of an image that is not segmented yet."""
    return {"name": name, "state": "waiting"}


def failed(name: str, problem: str) -> dict[str, Any]:
    """The result of an image that cannot be segmented, for the reason in a sentence."""
    return {"name": name, "state": "failed", "problem": problem}


def done(name: str, prediction: Prediction, model: str, folder: Path) -> dict[str, Any]:
    """The result of an image; its files are written.

    Args:
        name: Name of the image.
        prediction: Its classes.
        model: Name of the model.
        folder: New folder for the files. The names of the downloads in it are those that `segformer
            predict` gives.
    """
    folder.mkdir()
    stem = Path(name).stem or "image"
    shown = prediction.overlay(opacity=0, legend=False, max_side=_MOST_SHOWN)
    result = {
        "name": name,
        "state": "done",
        "height": prediction.label_map.shape[0],
        "width": prediction.label_map.shape[1],
        "classes": _describe_classes(prediction),
        "image": _write(folder / "shown.jpg", encode_image(shown, "JPEG", quality=90)),
        "ids": _write(folder / "ids.png", _encode_ids(prediction.label_map, shown.size)),
    }
    downloads = folder / "downloads"  # where no name can be that of a file above
    downloads.mkdir()
    for key, (kind, suffix) in _DOWNLOADS.items():
        data = ANSWERS[kind].encode(prediction, model, 0)
        result[key] = _write(downloads / f"{stem}{suffix}", data)
    return result


def _describe_classes(prediction: Prediction) -> list[dict[str, Any]]:
    """All classes of the model, those with the largest fraction of the image first."""
    fractions = prediction.class_fractions
    described = [
        {**entry, "fraction": fractions.get(entry["name"], 0.0)}
        for entry in prediction.classes.entries()
    ]
    return sorted(described, key=lambda entry: -entry["fraction"])


def _encode_ids(label_map: NDArray[np.integer], size: tuple[int, int]) -> bytes:
    """A PNG for browsers, which read 8 bits: red has the low byte of a class id, green the high.

    Args:
        label_map: (H, W) class ids.
        size: Width and height of the PNG.
    """
    (height, width), (columns, rows) = label_map.shape, size
    ids = label_map[
        np.ix_(np.arange(rows) * height // rows, np.arange(columns) * width // columns)
    ].astype(np.uint16)
    levels = np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], axis=-1).astype(np.uint8)
    return encode_image(levels, "PNG", compress_type=RUN_LENGTHS)


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file; returns it in the form in which Gradio gives browsers a URL of it."""
    path.write_bytes(data)
    content: dict[str, Any] = FileData(path=str(path)).model_dump()
    return content
