"""Classes that may overlap, and thresholds of sigmoids: from the data to saved predictions."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from conftest import draw_dataset
from segformer import Predictor, Preprocessing, SegFormer, SegmentationTrainConfig, resume, train
from segformer.checkpoints.info import describe, tables
from segformer.checkpoints.opening import open_checkpoint
from segformer.checkpoints.tensors import CheckpointError
from segformer.cli import main
from segformer.data.check import check_split
from segformer.data.dataset import DatasetError
from segformer.data.multilabel import IGNORED, pack, unpack
from segformer.data.opening import open_dataset
from segformer.data.transforms import Augmentation
from segformer.evaluation.evaluate import evaluate
from segformer.evaluation.multilabel import evaluate_multilabel
from segformer.evaluation.thresholds import BINS, ProbabilityHistogram
from segformer.prediction.multilabel import NO_CLASS, MultiLabelPrediction, logits_to_masks
from segformer.training.preparation import class_weights
from segformer.training.segmentation import Segmentation
from segformer.training.stopping import TrainingStopped

NAMES = ("box", "disc", "bright")

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 6,
    "num_workers": 0, "log_every": 1, "precision": "float32", "val_every": 1,
}  # fmt: skip


def draw_overlapping(root: Path, *, train: int = 6, val: int = 2, stacked: bool = False) -> Path:
    """Boxes, discs, and a third class that is wherever one of them is; some pixels are ignored.

    Masks are a PNG for each class of 0 and 255, or a TIFF with a channel for each class.
    """
    draw_dataset(root, train=train, val=val)
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    description |= {"multilabel": True, "names": dict(enumerate(NAMES)), "ignore_index": 7}
    for path in sorted((root / "masks").glob("*/*.png")):
        ids = np.array(Image.open(path))
        masks = np.stack([ids == 1, ids == 2, (ids == 1) | (ids == 2)]).astype(np.uint8) * 255
        masks[:, ids == 255] = 7
        path.unlink()
        for name, mask in zip(NAMES, masks, strict=True):
            file = path.parent / name / path.name
            if not stacked and (mask == 255).any():  # a class without a file is absent
                file.parent.mkdir(exist_ok=True)
                Image.fromarray(mask).save(file)
        if stacked:
            tifffile.imwrite(path.with_suffix(".tif"), masks, photometric="minisblack")
    if not stacked:
        del description["masks_dir"]
        description["masks"] = "masks/{split}/{class}/{stem}.png"
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    return root


def test_packed_classes_are_unpacked_again() -> None:
    present = np.random.default_rng(0).random((62, 5, 7)) < 0.5
    packed = pack(present)
    assert packed.min() >= 0
    assert np.array_equal(unpack(packed, 62), present)
    packed[0] = IGNORED
    assert not unpack(packed, 62)[:, 0].any()
    with pytest.raises(ValueError, match="63 classes that may overlap; there can be 62"):
        pack(np.zeros((63, 1, 1), bool))


def test_augmentation_keeps_the_bits_of_all_classes() -> None:
    mask = np.array([[0, 1 << 61], [(1 << 40) + 1, IGNORED]], np.int64).repeat(32, 0).repeat(32, 1)
    image = (mask % 255).astype(np.uint8)[:, :, None].repeat(3, 2)
    augmentation = Augmentation(crop_size=96, short_side=64, photometric=False, ignore_index=-1)
    seen = set[int]()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        _, crop = augmentation(image, mask, rng, Preprocessing())
        assert set(crop.ravel().tolist()) <= set(mask.ravel().tolist())
        seen |= set(crop.ravel().tolist())
    assert seen == set(mask.ravel().tolist())


def test_both_forms_of_masks_are_read_alike(tmp_path: Path) -> None:
    datasets = [
        open_dataset(draw_overlapping(tmp_path / str(stacked), stacked=stacked))
        for stacked in (False, True)
    ]
    ids = [np.array(Image.open(p)) for p in sorted(draw_plain(tmp_path).glob("masks/train/*.png"))]
    for dataset in datasets:
        assert dataset.multilabel
        assert dataset.classes.names == NAMES
        for sample, truth in zip(dataset, ids, strict=True):
            _, packed = dataset.read(sample)
            assert np.array_equal(packed == IGNORED, truth == 255)
            box, disc, bright = unpack(packed, 3)
            assert np.array_equal(box, truth == 1)
            assert np.array_equal(disc, truth == 2)
            assert np.array_equal(bright, (truth == 1) | (truth == 2))
    reports = [check_split(dataset) for dataset in datasets]
    for report in reports:
        assert report.errors == []
        assert report.pixels.tolist() == [
            sum((t == 1).sum() for t in ids),
            sum((t == 2).sum() for t in ids),
            sum(((t == 1) | (t == 2)).sum() for t in ids),
        ]
        assert report.frequencies[2] == pytest.approx(report.frequencies[:2].sum())
        assert report.labeled == sum((t != 255).sum() for t in ids)


def draw_plain(tmp_path: Path) -> Path:
    """The shapes from which `draw_overlapping` makes its masks."""
    return draw_dataset(tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multilabel": False}, "set multilabel: true"),
        ({"names": {0: "box"}}, "multilabel needs 2 to 62 classes, not 1"),
        ({"label_mapping": {1: 0}}, "label_mapping is for one class per pixel"),
        ({"masks": "masks/{class}.png"}, "must hold {stem}"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    root = draw_overlapping(tmp_path / "shapes")
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    (root / "dataset.yaml").write_text(yaml.safe_dump(description | changes))
    with pytest.raises(DatasetError, match=message):
        open_dataset(root)


def test_a_mask_of_another_size_or_number_of_channels(tmp_path: Path) -> None:
    root = draw_overlapping(tmp_path / "shapes", stacked=True)
    file = root / "masks/train/00.tif"
    dataset = open_dataset(root)
    for shape, message in (((3, 9, 8), "the mask is 8 x 9 pixels"), ((2, 48, 64), "this one has")):
        tifffile.imwrite(file, np.zeros(shape, np.uint8), photometric="minisblack")
        with pytest.raises(ValueError, match=message):
            dataset.read(dataset.samples[0])


def test_what_needs_one_class_per_pixel_refuses(tmp_path: Path, tiny_variant: str) -> None:
    root = draw_overlapping(tmp_path / "shapes")
    for command in (
        ["convert", str(root), str(tmp_path / "out")],
        ["show", str(root), "--out", str(tmp_path / "sheet.jpg")],
    ):
        assert main(["data", *command]) == 1
    for option in ({"binary": True}, {"ohem_threshold": 0.5}, {"background_replace_prob": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is for one class per pixel"):
            Segmentation(root, SegmentationTrainConfig(**QUICK, **option))


def test_class_weights_are_those_of_present_pixels(tmp_path: Path) -> None:
    report = check_split(open_dataset(draw_overlapping(tmp_path / "shapes")))
    report.labeled, report.pixels[:] = 1000, (500, 200, 1)
    weights = class_weights(SegmentationTrainConfig(class_weights=("auto",)), report)
    assert weights is not None
    assert weights.tolist() == [1, 4, 10]


def test_training_validates_fits_thresholds_predicts_and_saves(
    tmp_path: Path, tiny_variant: str
) -> None:
    root = draw_overlapping(tmp_path / "shapes", train=12, val=4)
    run = tmp_path / "run"
    outcome = train(
        root,
        run,
        SegmentationTrainConfig(
            **{**QUICK, "max_steps": 120, "batch_size": 4, "val_every": 20}, lr=5e-3,
            dice_weight=0.5, class_weights=("auto",), ema_decay=0.9, photometric=False,
            scale_min=0.8, scale_max=1.2, cat_max_ratio=1.0, drop_path=0.0, dropout=0.0,
        ),
    )  # fmt: skip
    assert outcome is not None
    assert outcome.score > 0.5
    report = json.loads((run / "report.json").read_text())
    assert list(report["classes"]) == list(NAMES)
    assert report["miou"] == pytest.approx(outcome.score, abs=1e-5)
    assert (run / "val_examples.jpg").is_file()

    model = SegFormer.from_pretrained(run / "best")
    assert model.config.multilabel
    assert len(model.config.thresholds) == 3
    stored = [report["classes"][name]["threshold"] for name in NAMES]
    assert list(model.config.thresholds) == stored
    predictor = Predictor(model, confidence=True)
    validation = open_dataset(root, "val")
    scores = evaluate_multilabel(validation, predictor)
    assert scores.miou == pytest.approx(outcome.score)
    half = replace(model.config, thresholds=())
    model.config, fitted = half, model.config
    assert evaluate_multilabel(validation, predictor).miou <= scores.miou
    model.config = fitted

    image = root / "images/val/00.png"
    prediction = predictor(image)
    assert isinstance(prediction, MultiLabelPrediction)
    assert prediction.confidence is not None
    limits = np.array(stored, np.float32)[:, None, None]
    assert np.array_equal(prediction.masks, prediction.confidence > limits)
    out = tmp_path / "out"
    words = ["predict", str(image), "--model", str(run / "best"), "--out", str(out), "--confidence"]
    assert main(words) == 0
    assert {path.name for path in out.iterdir()} == {
        "00.tif", "00_overlay.jpg", "00_confidence.tif", "summary.json",
    }  # fmt: skip
    assert np.array_equal(tifffile.imread(out / "00.tif") == 255, prediction.masks)
    assert tifffile.imread(out / "00_confidence.tif").shape == prediction.masks.shape
    row = json.loads((out / "summary.json").read_text())["images"][0]
    fractions = {name: round(float(prediction.mask(name).mean()), 6) for name in NAMES}
    assert row["class_fractions"] == {k: v for k, v in fractions.items() if v}
    assert main(["evaluate", str(root), "--model", str(run), "--out", str(tmp_path / "e")]) == 0
    evaluated = json.loads((tmp_path / "e/report.json").read_text())
    assert evaluated["classes"] == report["classes"]


def test_saved_masks_are_masks_of_a_data_set(tmp_path: Path) -> None:
    root = draw_overlapping(tmp_path / "shapes", stacked=True)
    masks = np.random.default_rng(0).random((3, 48, 64)) < 0.5
    prediction = MultiLabelPrediction(
        label_map=np.zeros((48, 64), np.uint8),
        classes=open_dataset(root).classes,
        image=np.zeros((48, 64, 3), np.uint8),
        masks=masks,
    )
    (file,) = prediction.save(root / "masks/train", name="00", overlay=False)
    assert file.name == "00.tif"
    dataset = open_dataset(root)
    _, packed = dataset.read(dataset.samples[0])
    assert np.array_equal(unpack(packed, 3), masks)


def test_an_interrupted_run_gives_the_same_models(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_overlapping(tmp_path / "shapes")
    config = SegmentationTrainConfig(**QUICK, oversample_threshold=0.9)
    train(root, tmp_path / "whole", config)

    from segformer.training import loop as module

    step = module.TrainingLoop._step

    def interrupted(self: object, batches: object) -> float:
        loss = step(self, batches)
        if self.state.step == 3:
            signal.raise_signal(signal.SIGINT)
        return loss

    monkeypatch.setattr(module.TrainingLoop, "_step", interrupted)
    with pytest.raises(TrainingStopped):
        train(root, tmp_path / "stopped", config)
    monkeypatch.setattr(module.TrainingLoop, "_step", step)
    resume(tmp_path / "stopped")
    for name in ("best", "last"):
        for file in ("model.safetensors", "config.json"):
            whole, stopped = (tmp_path / run / name / file for run in ("whole", "stopped"))
            assert whole.read_bytes() == stopped.read_bytes(), (name, file)


def test_masks_equal_plain_upsampling() -> None:
    torch.manual_seed(0)
    views = [torch.randn(3, 5, 7), torch.randn(3, 8, 6)]
    thresholds = (0.3, 0.5, 0.8)
    probs = torch.stack([
        torch.nn.functional.interpolate(view[None], (21, 26), mode="bilinear")[0].sigmoid()
        for view in views
    ]).mean(0).numpy()  # fmt: skip
    masks, label_map, confidence = logits_to_masks(views, (21, 26), thresholds, confidence=True)
    np.testing.assert_allclose(confidence, probs, atol=1e-6)
    expected = probs > np.array(thresholds)[:, None, None]
    assert (masks != expected).mean() < 0.002  # differences of rounding
    most = np.where(masks, confidence, -1).argmax(0)
    assert np.array_equal(label_map, np.where(masks.any(0), most, NO_CLASS))
    assert (label_map == NO_CLASS).any()
    assert logits_to_masks(views, (21, 26), thresholds)[2] is None


def test_fitted_thresholds_are_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((3, 40, 50)) < np.array([0.02, 0.3, 0.0])[:, None, None]
    probs = (0.3 * truth + 0.5 * rng.random(truth.shape) ** 2).astype(np.float32)
    labeled = rng.random((40, 50)) < 0.9
    histogram = ProbabilityHistogram(3)
    for half in (np.s_[:20], np.s_[20:]):
        histogram.update(truth[:, half], probs[:, half], labeled[half])
    fitted = histogram.fit()
    assert fitted[2] == 0.5  # this class does not occur
    for class_id in (0, 1):
        t, p = truth[class_id][labeled], probs[class_id][labeled]
        ious = [((p > j / BINS) & t).sum() / ((p > j / BINS) | t).sum() for j in range(1, BINS)]
        found = p > fitted[class_id]
        assert (found & t).sum() / (found | t).sum() == max(ious)
    counts = histogram.at(fitted)
    for class_id, threshold in enumerate(fitted):
        t, p = truth[class_id][labeled], probs[class_id][labeled] > threshold
        assert counts.hits[class_id] == (t & p).sum()
        assert counts.extra[class_id] == (~t & p).sum()
        assert counts.missed[class_id] == (t & ~p).sum()
        assert counts.rest[class_id] == (~t & ~p).sum()


@pytest.mark.parametrize("fit_thresholds", [True, False])
def test_a_binary_model_has_a_fitted_threshold(
    tmp_path: Path, tiny_variant: str, fit_thresholds: bool
) -> None:
    root = draw_dataset(tmp_path / "shapes")
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    description |= {"names": {0: "other", 1: "shape"}, "label_mapping": {2: 1}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    config = SegmentationTrainConfig(**QUICK, binary=True, fit_thresholds=fit_thresholds)
    outcome = train(root, tmp_path / "run", config)
    assert outcome is not None
    model = SegFormer.from_pretrained(tmp_path / "run/best")
    assert len(model.config.thresholds) == fit_thresholds
    scores = evaluate(open_dataset(root, "val"), Predictor(model)).scores()
    assert scores.miou == pytest.approx(outcome.score)
    if fit_thresholds:
        assert model.config.thresholds[0] != 0.5
        foreground = scores.iou[1]
        model.config = replace(model.config, thresholds=())
        plain = evaluate(open_dataset(root, "val"), Predictor(model)).scores()
        assert foreground >= plain.iou[1]
        model.config = replace(model.config, thresholds=(0.25,))
        confident = Predictor(model, confidence=True)(root / "images/val/00.png")
        assert confident.confidence is not None
        found = confident.label_map == 1
        assert (confident.confidence[found] > 0.25).all()
        assert (confident.confidence[~found] >= 0.75).all()


def test_configurations_that_do_not_fit(tmp_path: Path, tiny_model: SegFormer) -> None:
    config = tiny_model.config
    for changes, message in (
        ({"thresholds": (0.5,)}, "1 thresholds, but the model has 0 sigmoids"),
        ({"multilabel": True, "thresholds": (0.5,)}, "the model has 5 sigmoids"),
        ({"multilabel": True, "thresholds": (0.5,) * 4 + (1.0,)}, "between 0 and 1"),
        ({"multilabel": True, "num_classes": 1}, "has at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **changes)
    tiny_model.config = replace(config, multilabel=True, thresholds=(0.1, 0.2, 0.3, 0.4, 0.5))
    tiny_model.save_pretrained(tmp_path / "model")
    assert SegFormer.from_pretrained(tmp_path / "model").config == tiny_model.config
    facts, _ = tables(describe(open_checkpoint(tmp_path / "model")))
    assert "classes may overlap, thresholds 0.1, 0.2, 0.3, 0.4, 0.5" in list(facts.columns[1].cells)
    entries = json.loads((tmp_path / "model/config.json").read_text())
    assert entries["problem_type"] == "multi_label_classification"
    entries["segformer"]["thresholds"] = [2, 2, 2, 2, 2]
    (tmp_path / "model/config.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="thresholds must be between 0 and 1"):
        SegFormer.from_pretrained(tmp_path / "model")
    entries["segformer"]["thresholds"] = [0.1, 0.2, 0.3, 0.4, 0.5]
    (tmp_path / "model/config.json").write_text(json.dumps(entries))
    other = SegFormer.from_pretrained(tmp_path / "model", num_classes=7)
    assert other.config.thresholds == ()


def test_transformers_reads_a_model_of_overlapping_classes(
    tmp_path: Path, tiny_model: SegFormer
) -> None:
    transformers = pytest.importorskip("transformers")
    tiny_model.config = replace(tiny_model.config, multilabel=True)
    tiny_model.save_pretrained(tmp_path / "model")
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "model")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval()(pixels).logits
        torch.testing.assert_close(tiny_model(pixels), expected, rtol=1e-4, atol=1e-4)
