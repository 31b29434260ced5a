import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

import segformer
from conftest import draw_dataset, randomize
from segformer import ClassSet, Prediction, Predictor, SegFormer, SegFormerConfig
from segformer.data import dataset as data_set_module
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset
from segformer.evaluation.calibration import Calibration
from segformer.evaluation.details import Details
from segformer.evaluation.evaluate import (
    REPORT_FILES,
    Failure,
    evaluate,
    score_table,
    write_report,
)
from segformer.evaluation.matching import ClassesDiffer
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.plots import curves_plot, examples_sheet
from segformer.image import reading
from segformer.prediction import predictor as predictor_module


def segmenter(tiny_config: SegFormerConfig, names: tuple[str, ...]) -> SegFormer:
    """A model whose predictions depend on the image, the same for each call."""
    torch.manual_seed(0)
    model = SegFormer(replace(tiny_config, num_classes=len(names)), ClassSet(names))
    randomize(model)
    return model.eval()


@pytest.fixture
def predictor(tiny_config: SegFormerConfig) -> Predictor:
    model = segmenter(tiny_config, ("noise", "box", "disc"))
    return Predictor(model, short_side=48, device="cpu")


def test_scores_are_at_the_size_of_the_mask(small_dataset: Path, predictor: Predictor) -> None:
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
    with pytest.raises(ClassesDiffer, match="the data set has 3 classes .* the model has 5"):
        evaluate(open_dataset(small_dataset), Predictor(tiny_model, device="cpu"))


def test_as_many_classes_of_other_names_are_no_match(
    small_dataset: Path, tiny_config: SegFormerConfig
) -> None:
    model = segmenter(tiny_config, ("hair", "skin", "hat"))
    dataset = open_dataset(small_dataset, "val")
    with pytest.raises(ClassesDiffer, match=r"\(noise, box, disc\).*\(hair, skin, hat\)"):
        evaluate(dataset, Predictor(model, device="cpu"))
    matrix = evaluate(dataset, Predictor(model, device="cpu"), match_classes="position")
    assert matrix.classes.names == ("noise", "box", "disc")


def test_permuted_classes_score_the_same(
    small_dataset: Path, predictor: Predictor, tiny_config: SegFormerConfig
) -> None:
    dataset = open_dataset(small_dataset, "val")
    expected = evaluate(dataset, predictor)
    assert (expected.counts.sum(0) > 0).sum() > 1  # a constant prediction would prove little
    order = [2, 0, 1]
    permuted = segmenter(tiny_config, ("Disc", "noise", " box"))
    state = predictor.model.state_dict()
    for name in ("decoder.classifier.weight", "decoder.classifier.bias"):
        state[name] = state[name][order]
    permuted.load_state_dict(state)
    matrix = evaluate(dataset, Predictor(permuted, short_side=48, device="cpu"))
    assert np.array_equal(matrix.counts, expected.counts)


def test_reduced_labels(tmp_path: Path, tiny_config: SegFormerConfig) -> None:
    """Masks of 0 (unlabeled), 1, 2, 3 against a model of the classes 1, 2, 3."""
    raw = draw_dataset(tmp_path / "raw")
    for mask in (raw / "masks").rglob("*.png"):
        values = np.array(Image.open(mask))
        shifted = np.where(values == 255, 255, values + 1).astype(np.uint8)
        shifted[:4] = 0
        Image.fromarray(shifted).save(mask)
    (raw / "dataset.yaml").unlink()  # classes are the values of the masks: 0..3
    model = segmenter(tiny_config, ("noise", "box", "disc"))
    with pytest.raises(ClassesDiffer):
        evaluate(open_dataset(raw, "val"), Predictor(model, device="cpu"))
    model.preprocessing = replace(model.preprocessing, size=48, reduce_labels=True)
    predictor = Predictor(model, device="cpu")
    matrix = evaluate(open_dataset(raw, "val"), predictor)
    expected = ConfusionMatrix(model.classes)
    for sample in open_dataset(raw, "val"):
        values = np.array(Image.open(sample.mask)).astype(int)
        truth = np.where((values == 0) | (values == 255), 255, values - 1)
        expected.update(truth, predictor(sample.image).label_map)
    assert np.array_equal(matrix.counts, expected.counts)
    assert matrix.counts.sum() == 2 * 41 * 64  # four rows are 0, three are 255
    assert matrix.classes.names == ("noise", "box", "disc")


def test_unreadable_files_are_skipped(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the broken pairs are missing, and the others are still paired with their masks."""
    root = draw_dataset(tmp_path / "shapes", val=7)
    whole = open_dataset(root, "val")
    (root / "images/val/01.png").write_bytes(b"broken")
    (root / "masks/val/03.png").write_bytes(b"broken")
    Image.new("L", (5, 5)).save(root / "masks/val/04.png")
    (root / "masks/val/05.png").unlink()
    failed, seen = {}, []
    matrix = evaluate(
        open_dataset(root, "val"),
        predictor,
        on_image=lambda: seen.append(1),
        on_error=lambda source, error: failed.update({Path(str(source)).name: str(error)}),
    )
    assert len(seen) == 7
    assert set(failed) == {"01.png", "03.png", "04.png", "05.png"}
    assert "no mask" in failed["05.png"]
    good = replace(whole, samples=tuple(s for s in whole if s.image.name not in failed))
    assert np.array_equal(matrix.counts, evaluate(good, predictor).counts)
    with pytest.raises(ValueError, match=r"0[135]\.png"):
        evaluate(open_dataset(root, "val"), predictor)


def test_nothing_readable_is_an_error(tmp_path: Path, predictor: Predictor) -> None:
    root = draw_dataset(tmp_path / "shapes")
    for mask in (root / "masks/val").iterdir():
        mask.unlink()
    with pytest.raises(DatasetError, match="none of the 2 images .* there is no mask"):
        evaluate(open_dataset(root, "val"), predictor, on_error=lambda *_: None)


def test_report_and_images(small_dataset: Path, predictor: Predictor, tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset, "val")
    matrix = ConfusionMatrix(dataset.classes)
    matrix.update(np.array([0, 0, 0, 1, 255]), np.array([0, 0, 1, 1, 2]))
    out = tmp_path / "deep" / "out"
    failed = [Failure("a.jpg", "a.jpg: no such file")]
    details = Details.of(predictor)
    evaluate(dataset, predictor, collector=details)
    written = write_report(matrix, out, dataset, {"model": "mine"}, details, failed)
    assert written == [out / name for name in REPORT_FILES]
    assert all(path.stat().st_size for path in written)
    report = json.loads(written[0].read_text())
    assert report["model"] == "mine"
    assert (report["dataset"], report["split"], report["images"]) == (str(small_dataset), "val", 1)
    assert report["failed"] == [{"image": "a.jpg", "error": "a.jpg: no such file"}]
    assert report["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert report["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-6)
    assert report["classes"]["box"] == {
        "iou": 0.5, "accuracy": 1.0, "dice": 0.666667, "fraction": 0.25,
    }  # fmt: skip
    assert report["classes"]["disc"]["iou"] is None
    assert (report["absent_classes"], report["warnings"]) == (["disc"], [])

    table = score_table(matrix.scores())
    assert list(table.columns[0].cells) == ["noise", "box", "disc", "mean", "all pixels"]
    assert list(table.columns[1].cells) == ["66.67%", "50.00%", "-", "58.33%", ""]
    assert table.caption == "never in this split: disc"

    pairs = [(predictor(s.image), dataset.read(s)[1]) for s in dataset]
    examples_sheet(pairs, tmp_path / "examples.jpg", width=64)
    with Image.open(tmp_path / "examples.jpg") as sheet:
        assert sheet.size == (3 * 64 + 8, 2 * (48 + 4))


def test_details_are_those_of_the_images(small_dataset: Path, predictor: Predictor) -> None:
    dataset, details = open_dataset(small_dataset, "val"), Details.of(predictor)
    matrix = evaluate(dataset, predictor, collector=details)
    assert np.array_equal(matrix.counts, evaluate(dataset, predictor).counts)
    assert details.images.names == [sample.name for sample in dataset]
    hits = np.diag(matrix.counts)
    unions = matrix.counts.sum(0) + matrix.counts.sum(1) - hits
    assert np.array_equal(details.images.totals(3), [hits, unions])
    # Of small images all pixels enter the calibration, as the full confidence map has them
    full, confident = Calibration(), replace(predictor.config, confidence=True)
    for sample in dataset:
        prediction = Predictor(predictor.model, confident)(sample.image)
        truth = dataset.read(sample)[1]
        labeled = truth != 255
        assert prediction.confidence is not None
        right = prediction.label_map == truth
        full.update(prediction.confidence[labeled], right[labeled])
    assert details.calibration.counts.sum() == matrix.counts.sum()
    assert details.calibration.correct.sum() == hits.sum()
    assert details.calibration.ece == pytest.approx(full.ece, abs=1e-4)
    assert details.speed.images == 2
    assert details.speed.images_per_second > 0
    assert {example.name for example in details.examples.worst} == set(details.images.names)


def test_each_image_is_read_once(
    small_dataset: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = [], reading.read_image

    def record(source: Path, *arguments: object, **options: object) -> np.ndarray:
        read.append(Path(source))
        return original(source, *arguments, **options)

    for module in (data_set_module, predictor_module):
        monkeypatch.setattr(module, "read_image", record)
    dataset = open_dataset(small_dataset, "val")
    evaluate(dataset, predictor)
    assert sorted(read) == sorted(sample.image for sample in dataset)


@pytest.mark.parametrize("marked", ["tag", "key"])
def test_pixels_without_data_are_not_scored(
    tmp_path: Path, predictor: Predictor, marked: str
) -> None:
    """Also where the model sees 16 bits as 8, in which they can no longer be distinguished."""
    for kind, split in (
        ("images", "train"),
        ("masks", "train"),
        ("images", "val"),
        ("masks", "val"),
    ):
        values = np.full((48, 64, 3) if kind == "images" else (48, 64), 1, np.uint16)
        if kind == "images":
            values[10:20] = 7777
        (tmp_path / kind / split).mkdir(parents=True)
        tags = [(42113, "s", 0, "7777", True)] if marked == "tag" and kind == "images" else []
        file = tmp_path / kind / split / "0.tif"
        tifffile.imwrite(file, values, extratags=tags, photometric=None)
    entries = {"train": "images/train", "val": "images/val", "names": ["noise", "box", "disc"]}
    if marked == "key":
        entries["nodata"] = 7777
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(entries))
    matrix = evaluate(open_dataset(tmp_path, "val"), predictor)
    assert matrix.counts.sum() == 38 * 64


def test_the_table_warns_of_a_single_class() -> None:
    matrix = ConfusionMatrix(ClassSet(("background", "polyp")))
    matrix.update(np.zeros(9, int), np.zeros(9, int))
    assert "warning: only one class occurs" in str(score_table(matrix.scores()).caption)


def test_public_evaluate(
    small_dataset: Path, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate(open_dataset(small_dataset, "val"), predictor).scores()
    config = segformer.PredictConfig(short_side=48, device="cpu")
    scores = segformer.evaluate(small_dataset, predictor.model, config=config)
    assert isinstance(scores, segformer.Scores)
    assert np.array_equal(scores.confusion, expected.confusion)
    assert segformer.evaluate(small_dataset, predictor).miou == expected.miou
    with pytest.raises(ValueError, match="a Predictor has its own config"):
        segformer.evaluate(small_dataset, predictor, config=config)
    assert not caplog.records
    for mask in (small_dataset / "masks/val").iterdir():
        Image.new("L", (64, 48), 1).save(mask)
    segformer.evaluate(small_dataset, predictor)
    assert "only one class occurs in this split, 'box'" in caplog.text


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
