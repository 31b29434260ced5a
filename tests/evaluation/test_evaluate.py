import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer import ClassSet, Prediction, Predictor, SegFormer, SegFormerConfig
from segformer.data.dataset import DatasetError, open_dataset
from segformer.evaluation.evaluate import evaluate, score_table, write_report
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.plots import curves_plot, examples_sheet


@pytest.fixture
def predictor(tiny_config: SegFormerConfig) -> Predictor:
    model = SegFormer(
        SegFormerConfig(**{**vars(tiny_config), "num_classes": 3}),
        ClassSet(("noise", "box", "disc")),
    )
    return Predictor(model, short_side=48, device="cpu")


def test_scores_at_the_mask_s_own_size(small_dataset: Path, predictor: Predictor) -> None:
    dataset = open_dataset(small_dataset, "val")
    seen = []
    matrix = evaluate(dataset, predictor, on_image=lambda: seen.append(1))
    assert len(seen) == 2
    expected = ConfusionMatrix(dataset.classes)
    for sample in dataset:
        truth = np.array(Image.open(sample.mask))
        expected.update(truth, predictor(sample.image).label_map)
    assert np.array_equal(matrix.counts, expected.counts)
    assert matrix.counts.sum() == 2 * 45 * 64  # three rows of each mask are ignored


def test_classes_must_agree(small_dataset: Path, tiny_model: SegFormer) -> None:
    with pytest.raises(DatasetError, match="the data set has 3 classes .* the model 5"):
        evaluate(open_dataset(small_dataset), Predictor(tiny_model, device="cpu"))


def test_report_and_images(small_dataset: Path, predictor: Predictor, tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset, "val")
    matrix = evaluate(dataset, predictor)
    write_report(matrix, tmp_path / "deep" / "out", dataset, {"model": "mine"})
    report = json.loads((tmp_path / "deep" / "out" / "report.json").read_text())
    assert report["model"] == "mine"
    assert report["images"] == 2
    assert report["confusion"] == matrix.counts.tolist()
    assert set(report["classes"]) == {"noise", "box", "disc"}
    with Image.open(tmp_path / "deep" / "out" / "confusion.png") as plot:
        assert plot.width > 200
    assert score_table(matrix.scores()).row_count == 5

    pairs = [(predictor(s.image), dataset.read(s)[1]) for s in dataset]
    examples_sheet(pairs, tmp_path / "examples.jpg", width=64)
    with Image.open(tmp_path / "examples.jpg") as sheet:
        assert sheet.size == (3 * 64 + 8, 2 * (48 + 4))


def test_examples_of_images_longer_than_an_overlay(tmp_path: Path) -> None:
    label_map = np.zeros((10, 5000), np.uint8)
    prediction = Prediction(label_map, ClassSet(("a", "b")), np.zeros((10, 5000, 3), np.uint8))
    examples_sheet([(prediction, label_map)], tmp_path / "examples.jpg")
    assert (tmp_path / "examples.jpg").exists()


def test_curves_with_and_without_values(tmp_path: Path) -> None:
    curves_plot([], [], tmp_path / "empty.png")
    rows = [(i, 1 / (i + 1), 1e-3) for i in range(50)]
    curves_plot(rows, [(10, 0.2), (50, 0.4)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > (tmp_path / "empty.png").stat().st_size
