from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer import ClassSet
from segformer.evaluation.confusion_plot import confusion_plot
from segformer.evaluation.metrics import ConfusionMatrix


@pytest.mark.parametrize("classes", [1, 2, 26, 150, 1000])
def test_cells_have_the_colors_of_their_percentages(tmp_path: Path, classes: int) -> None:
    """All hits but the last class, which never occurs: a dark diagonal above a gray row."""
    matrix = ConfusionMatrix(ClassSet.numbered(classes) if classes > 1 else ClassSet(("a",)))
    matrix.counts[np.arange(classes - 1), np.arange(classes - 1)] = 7
    confusion_plot(matrix, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        pixels = np.asarray(image).astype(int)
    dark = (pixels == (8, 48, 107)).all(-1).sum()
    gray = (pixels == (235, 235, 235)).all(-1).sum()
    assert max(pixels.shape) < 2600
    assert gray >= classes - 1
    assert dark >= classes - 1


def test_long_names_are_shortened(tmp_path: Path) -> None:
    sizes = []
    for length in (30, 3000):
        matrix = ConfusionMatrix(ClassSet(("x" * length, "y")))
        confusion_plot(matrix, tmp_path / "confusion.png", unit="images")
        with Image.open(tmp_path / "confusion.png") as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1]
