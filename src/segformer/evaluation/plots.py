"""Plots and example images of a training run. Requires matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from segformer.data.multilabel import unpack
from segformer.files import whole_file
from segformer.image import read_image, resize
from segformer.prediction.classifier import ClassPredictor
from segformer.prediction.multilabel import MultiLabelPrediction
from segformer.prediction.prediction import Prediction


def curves_plot(
    training: Sequence[tuple[int, float, float]],
    validation: Sequence[tuple[int, float]],
    path: str | Path,
    score: str = "mIoU",
) -> None:
    """Plot the loss, the learning rate and the validation score against the optimizer step.

    Args:
        training: Rows (step, loss, learning rate).
        validation: Rows (step, score); scores from 0 to 1.
        path: Image file to write.
        score: Name of the score, shown in the title.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss_axes, rate_axes, score_axes = figure.subplots(1, 3)
    if training:
        steps, losses, rates = (np.asarray(column) for column in zip(*training, strict=True))
        loss_axes.plot(steps, losses, color="tab:blue", alpha=0.3)
        loss_axes.plot(steps, _smooth(losses), color="tab:blue")
        rate_axes.plot(steps, rates, color="tab:gray")
    if validation:
        steps, scores = (np.asarray(column) for column in zip(*validation, strict=True))
        marker = "." if len(steps) < 40 else ""
        score_axes.plot(steps, 100 * scores, color="tab:green", marker=marker)
    for axes, title in (
        (loss_axes, "training loss"),
        (rate_axes, "learning rate"),
        (score_axes, f"validation {score}, %"),
    ):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    _write(figure, path)


def class_sheet(
    predictor: ClassPredictor, samples: Sequence[tuple[Path, int]], path: str | Path
) -> None:
    """Draw images with their true and predicted classes.

    Args:
        predictor: The classifier.
        samples: Image files and their true class ids; unreadable files are skipped.
        path: Image file to write.
    """
    truths = dict(samples)
    results = list(predictor.stream(truths, on_error=lambda *_: None))
    columns = 6
    figure = Figure(
        figsize=(2.2 * columns, 2.5 * -(-len(results) // columns)), layout="constrained"
    )
    for place, result in enumerate(results, 1):
        assert result.source is not None
        axes = figure.add_subplot(-(-len(results) // columns), columns, place)
        image = read_image(
            result.source,
            predictor.model.config.in_channels,
            as_8_bit=predictor.preprocessing.expects_8_bit,
        )
        shown = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, 0]
        axes.imshow(resize(shown, (160, 160)) if shown.ndim == 3 else shown, cmap="gray")
        axes.set_axis_off()
        ((name, prob),) = result.top(1).items()
        true = result.classes.names[truths[result.source]]
        title = f"{name} {prob:.0%}" + ("" if name == true else f"\ntrue: {true}")
        axes.set_title(title, fontsize=8, color="black" if name == true else "tab:red")
    _write(figure, path)


def examples_sheet(
    pairs: Sequence[tuple[Prediction, NDArray[np.integer]]], path: str | Path, width: int = 320
) -> None:
    """Draw one row per image: the image, its true classes and its predicted classes.

    Args:
        pairs: Predictions and true class ids (or packed classes) (H, W). If empty, no file is
            written.
        path: Image file to write.
        width: Width of each column in pixels.
    """
    rows = []
    for prediction, truth in pairs:
        true = _true(prediction, truth)
        side = max(truth.shape)
        plain = prediction.overlay(opacity=0, legend=False, max_side=side)
        shown = np.array(true.overlay(legend=False, max_side=side))
        shown[truth == prediction.classes.ignore_index] //= 3
        columns = (plain, Image.fromarray(shown), prediction.overlay(legend=False))
        height = max(1, round(width * plain.height / plain.width))
        row = Image.new("RGB", (3 * width + 8, height), "white")
        for i, image in enumerate(columns):
            row.paste(image.resize((width, height)), (i * (width + 4), 0))
        rows.append(row)
    if not rows:
        return
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + 4 for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 4
    with whole_file(path) as partial:
        sheet.save(partial, quality=88)


def _true(prediction: Prediction, truth: NDArray[np.integer]) -> Prediction:
    """What a perfect prediction of the same image would be; ignored pixels have the first class."""
    if isinstance(prediction, MultiLabelPrediction):
        return replace(prediction, masks=unpack(truth, len(prediction.classes)), confidence=None)
    ids = np.where(truth < len(prediction.classes), truth, 0)
    return replace(prediction, label_map=ids, confidence=None)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moving average, with a window of 5 % of the number of values."""
    window = max(1, len(values) // 20)
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")


def _write(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110)
