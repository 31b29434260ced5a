"""Two models on the same images."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import draw_dataset, randomize
from evaluation.test_evaluate import segmenter
from evaluation.test_report import check_self_contained
from segformer import ClassSet, Predictor, SegFormer, SegFormerConfig
from segformer.data.dataset import Dataset, DatasetError
from segformer.data.opening import open_dataset
from segformer.evaluation.compare import Agreement, Comparison, compare
from segformer.evaluation.comparison_report import (
    COMPARISON_FILES,
    comparison_table,
    write_comparison,
)
from segformer.evaluation.evaluate import evaluate
from segformer.evaluation.matching import ClassesDiffer

NAMES = ("noise", "box", "disc")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(draw_dataset(tmp_path / "shapes", val=12), "val")


def other(config: SegFormerConfig, seed: int = 3) -> SegFormer:
    """A model of other weights."""
    model = segmenter(config, NAMES)
    return randomize(model, seed).eval()  # type: ignore[return-value]


def permuted(model: SegFormer, config: SegFormerConfig, order: list[int]) -> SegFormer:
    """The same model, its classes in another order."""
    made = segmenter(config, tuple(NAMES[i] for i in order))
    state = dict(model.state_dict())
    for name in ("decoder.classifier.weight", "decoder.classifier.bias"):
        state[name] = state[name][order]
    made.load_state_dict(state)
    return made.eval()


def run(dataset: Dataset, first: SegFormer, second: SegFormer, **options: object) -> Comparison:
    predictors = (Predictor(model, short_side=48, device="cpu") for model in (first, second))
    return compare(dataset, *predictors, ("one", "two"), resamples=200, **options)  # type: ignore[arg-type]


def test_a_model_equals_itself_with_its_classes_in_another_order(
    dataset: Dataset, tiny_config: SegFormerConfig
) -> None:
    model = segmenter(tiny_config, NAMES)
    comparison = run(dataset, model, permuted(model, tiny_config, [2, 0, 1]))
    assert np.nanmax(np.abs(comparison.difference)) == 0
    assert comparison.total_agreement.disagreement == 0
    assert (comparison.miou_interval.low, comparison.miou_interval.high) == (0, 0)
    assert comparison.examples == ()


def test_scores_and_agreement(dataset: Dataset, tiny_config: SegFormerConfig) -> None:
    first, second = segmenter(tiny_config, NAMES), other(tiny_config)
    seen: list[int] = []
    comparison = run(
        dataset,
        first,
        permuted(second, tiny_config, [1, 2, 0]),
        on_image=lambda: seen.append(1),
    )
    predictors = [Predictor(model, short_side=48, device="cpu") for model in (first, second)]
    scores = [evaluate(dataset, predictor).scores() for predictor in predictors]
    np.testing.assert_allclose(comparison.iou, [s.iou for s in scores], rtol=1e-12)
    np.testing.assert_allclose(comparison.miou, [s.miou for s in scores])
    assert comparison.miou_difference == pytest.approx(scores[1].miou - scores[0].miou)
    low, high = comparison.miou_interval.low, comparison.miou_interval.high
    assert low <= comparison.miou_difference <= high
    expected = [0, 0, 0, 0, 0]  # images have fewer rows and columns than the grid
    for sample in dataset:
        truth = dataset.read(sample)[1]
        one, two = (predictor(sample.image).label_map for predictor in predictors)
        for t, a, b in zip(truth.ravel(), one.ravel(), two.ravel(), strict=True):
            if t != 255:
                kind = 0 if a == t == b else 1 if a == t else 2 if b == t else 3 if a == b else 4
                expected[kind] += 1
    assert comparison.total_agreement.counts == tuple(expected)
    shown = [example.score for example in comparison.examples]
    every = sorted((a.disagreement for a in comparison.agreement), reverse=True)
    assert shown == every[: len(shown)]
    assert len(shown) == 8
    assert len(seen) == 2 * len(dataset)


def test_images_that_cannot_be_read_are_skipped(
    dataset: Dataset, tiny_config: SegFormerConfig
) -> None:
    models = segmenter(tiny_config, NAMES), other(tiny_config)
    dataset.samples[2].image_files[0].write_bytes(b"broken")
    mask = dataset.samples[5].mask_file
    assert mask is not None
    mask.unlink()
    fresh = open_dataset(dataset.root, "val")
    comparison = run(fresh, *models)
    assert len(comparison.images[0]) == len(comparison.images[1]) == 10
    assert comparison.images[0].names == comparison.images[1].names
    assert len(comparison.failed) == 2
    for sample in fresh:
        sample.image_files[0].write_bytes(b"broken")
    with pytest.raises(DatasetError, match="none of the 12 images"):
        run(fresh, *models)


def test_only_images_that_both_models_can_segment_count(
    dataset: Dataset, tiny_config: SegFormerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = segmenter(tiny_config, NAMES), other(tiny_config)
    original = Predictor._prepare

    def refuse(self: Predictor, source: object) -> object:
        number = int(Path(str(source)).stem)
        if number == (3 if self.model is first else 7):
            raise MemoryError(f"{source}: too large")
        return original(self, source)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "_prepare", refuse)
    comparison = run(dataset, first, second)
    assert len(comparison.images[0]) == len(comparison.images[1]) == 10
    assert comparison.images[0].names == comparison.images[1].names
    assert [Path(f.image).stem for f in comparison.failed] == ["03", "07"]


def test_models_of_other_classes_are_refused(
    dataset: Dataset, tiny_config: SegFormerConfig
) -> None:
    model = segmenter(tiny_config, NAMES)
    with pytest.raises(ClassesDiffer, match=r"hair, skin, hat"):
        run(dataset, model, segmenter(tiny_config, ("hair", "skin", "hat")))
    unnamed = SegFormer(replace(tiny_config, num_classes=3), ClassSet.numbered(3)).eval()
    assert run(dataset, unnamed, model).classes.names == NAMES


def test_table_and_files(dataset: Dataset, tiny_config: SegFormerConfig, tmp_path: Path) -> None:
    evil = "<b>one</b>"
    comparison = replace(
        run(dataset, segmenter(tiny_config, NAMES), other(tiny_config)), names=(evil, "two")
    )
    table = comparison_table(comparison)
    assert list(table.columns[0].cells) == list(NAMES)
    assert evil in str(table.caption)
    written = write_comparison(comparison, tmp_path / "out", dataset, {"match_classes": "name"})
    assert [path.name for path in written] == list(COMPARISON_FILES)
    entries = json.loads(written[0].read_text())
    assert entries["miou_difference"] == pytest.approx(comparison.miou_difference, abs=1e-6)
    assert entries["classes"]["disc"]["difference"] == pytest.approx(
        comparison.difference[2], abs=1e-6
    )
    assert entries["images"] == 12
    text = written[1].read_text(encoding="utf-8")
    page = check_self_contained(text)
    assert "<b>" not in text
    assert len(page.all("img")) == 5 * len(comparison.examples)
    with written[2].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert float(rows[0]["disagreement"]) == pytest.approx(
        comparison.agreement[0].disagreement, abs=1e-6
    )


def test_agreement_without_labeled_pixels() -> None:
    assert np.isnan(Agreement().disagreement)
    assert (Agreement(1, 2, 3, 4, 5) + Agreement(1)).counts == (2, 2, 3, 4, 5)


def test_images_without_labels_are_compared(dataset: Dataset, tiny_config: SegFormerConfig) -> None:
    from PIL import Image

    for sample in dataset:
        assert sample.mask_file is not None
        Image.new("L", (64, 48), 255).save(sample.mask_file)
    comparison = run(dataset, segmenter(tiny_config, NAMES), other(tiny_config))
    assert np.isnan(comparison.miou_difference)
    assert "-" in str(comparison_table(comparison).title)
    write_comparison(comparison, dataset.root / "out", dataset, {})
