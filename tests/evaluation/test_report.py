"""report.html: complete in itself, and nothing of the user's is taken for markup."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from segformer import ClassSet
from segformer.evaluation.calibration import Calibration
from segformer.evaluation.classify import ClassScores
from segformer.evaluation.details import Details
from segformer.evaluation.evaluate import Failure
from segformer.evaluation.examples import Example, Examples, make_example
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.evaluation.report.charts import (
    confusion_chart,
    interval_chart,
    line_chart,
    reliability_chart,
    shorten,
    ticks,
)
from segformer.evaluation.report.classification import classification_page
from segformer.evaluation.report.confusions import show_confusions
from segformer.evaluation.report.curves import Curves
from segformer.evaluation.report.page import memory_size, percent, points
from segformer.evaluation.report.segmentation import segmentation_page
from segformer.evaluation.speed import Speed

EVIL = "</script><script>alert('1')</script>\"><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects them."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def filled(classes: ClassSet, images: int = 20) -> tuple[ConfusionMatrix, Details]:
    """An evaluation of images of noise."""
    rng = np.random.default_rng(0)
    matrix, details = ConfusionMatrix(classes), Details(Speed("cpu"))
    k = len(classes)
    for i in range(images):
        truth = rng.integers(0, k, (30, 40))
        predicted = np.where(rng.random((30, 40)) < 0.8, truth, rng.integers(0, k, (30, 40)))
        truth[:3] = classes.ignore_index
        one = ConfusionMatrix(classes)
        one.update(truth, predicted)
        matrix.counts += one.counts
        name = f"{EVIL}/{i}.png"
        scores = details.images.add(name, one)
        image = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        example = make_example(name, scores.miou, image, truth, predicted)
        details.examples.add(scores.miou, lambda example=example: example)
        details.calibration.update(rng.random(50), rng.random(50) < 0.5)
        details.speed.image_done()
    return matrix, details


def check_self_contained(text: str) -> Page:
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]", re.sub(r"http://www\.w3\.org/\S+", "", text))
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    assert all(heading.get("scope") for heading in page.all("th"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    (script,) = page.scripts
    (policy,) = (
        meta["content"] for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'")
    return page


@pytest.mark.parametrize("classes", [2, 30, 150, 300])
def test_names_are_escaped_and_nothing_is_loaded(classes: int) -> None:
    names = (EVIL, *(f"class {i}" for i in range(1, classes)))
    matrix, details = filled(ClassSet(names, ignore_index=-1))
    failed = [Failure(EVIL, f"{EVIL}: broken")]
    curves = Curves([(i, 1 / i, 1e-3) for i in range(1, 900)], [(450, 0.1), (899, 0.3)], "mIoU")
    text = segmentation_page(matrix, details, {"model": EVIL, "p": {"x": EVIL}}, failed, curves)
    page = check_self_contained(text)
    assert "alert(" not in "".join(page.scripts)
    assert "49" not in EVIL
    assert "{{ 7 * 7 }}" in text
    assert len(page.all("img")) == 12 * 4
    assert len(text) < 4e6


def test_an_evaluation_without_labels_has_a_report() -> None:
    classes = ClassSet(("a", "b"))
    matrix, details = ConfusionMatrix(classes), Details(Speed("cpu"))
    text = segmentation_page(matrix, details, {}, (), Curves([], [], "mIoU"))
    check_self_contained(text)
    assert "there is nothing to score" in text
    assert "nan" not in text.partition("<body>")[2].partition("<script>")[0].lower()
    assert "Calibration" not in text


def test_a_classifier_without_errors_has_a_report() -> None:
    scores = ClassScores(ConfusionMatrix(ClassSet((EVIL, "b"))))
    scores.matrix.counts[0, 0] = 3
    scores.calibration.update(np.array([0.9, 0.8, 0.7]), np.ones(3, bool))
    text = classification_page(scores, {"model": "m"})
    check_self_contained(text)
    assert "Worst images" not in text


def test_the_most_frequent_confusions() -> None:
    matrix = ConfusionMatrix(ClassSet(("a", "b", "c")))
    matrix.counts[:] = [[90, 10, 0], [0, 5, 5], [0, 0, 0]]
    shown = show_confusions(matrix, "pixels")
    assert [(c.true, c.predicted) for c in shown.frequent] == [("a", "b"), ("b", "c")]
    assert (shown.frequent[0].of_true, shown.frequent[1].of_true) == (0.1, 0.5)
    assert shown.frequent[0].of_errors == pytest.approx(10 / 15)
    assert shown.chart.count('class="miss"') == 2
    assert shown.chart.count('class="void"') == 1  # class c never occurs
    assert "b predicted as c: 50.0 %" in shown.chart


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    matrix = ConfusionMatrix(ClassSet.numbered(1000))
    matrix.counts[np.arange(1000), np.arange(1000)] = 10
    matrix.counts[700, 3] = 5
    shown = show_confusions(matrix, "images")
    assert (shown.classes, shown.total) == (60, 1000)
    assert "class 700 predicted as class 3" in shown.chart


def test_cells_of_a_chart_are_bounded() -> None:
    percents = np.random.default_rng(0).dirichlet(np.ones(190), 190) * 100
    chart = confusion_chart(percents, [f"c{i}" for i in range(190)], "pixels")
    assert chart.count('class="miss"') + chart.count('class="hit"') <= 6000


def test_charts_of_extreme_values() -> None:
    assert "no values" in line_chart([], [], "step", "loss")
    assert "no values" in line_chart([1], [float("nan")], "step", "loss")
    assert "polyline" in line_chart([1, 2], [3, 3], "step", "loss")
    assert len(line_chart(range(100_000), range(100_000), "step", "loss")) < 20_000
    assert "6e\u22125" in line_chart([0, 1], [0, 6e-5], "step", "rate")
    reliability_chart(Calibration())
    nothing = np.full(2, np.nan)
    assert "circle" not in interval_chart(["a", "b"], nothing, nothing, nothing, "x")
    one = interval_chart(["a"], np.array([0.1]), np.array([0.05]), np.array([0.2]), "x")
    assert "mark up" in one


def test_ticks_are_round_numbers_inside() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-0.013, 0.017, 5) == pytest.approx([-0.01, 0, 0.01])
    assert ticks(0, 160_000, 5) == [0, 50_000, 100_000, 150_000]


def test_numbers_in_words() -> None:
    assert percent(0.12345) == "12.3 %"
    assert percent(float("nan")) == "\u2013"
    assert (points(-0.0123), points(-0.00001), points(None)) == ("\u22121.23", "+0.00", "\u2013")
    assert (memory_size(None), memory_size(3 << 20)) == ("\u2013", "3.0 MiB")
    assert shorten("日本語" * 9).endswith("\u2026")
    assert shorten("x" * 26) == "x" * 26


def example(score: float) -> Example:
    ids = np.zeros((1, 1), np.uint8)
    return Example(str(score), score, np.zeros((1, 1, 3), np.uint8), ids, (ids,))


def test_the_worst_and_the_best_images_are_kept() -> None:
    scores = np.random.default_rng(0).permutation(50) / 50
    whole, one, other = Examples(3), Examples(3), Examples(3)
    made: list[float] = []
    for i, score in enumerate(scores):
        for examples in (whole, one if i < 20 else other):
            examples.add(float(score), lambda score=score: made.append(1) or example(float(score)))
    one.merge(other)
    for examples in (whole, one):
        worst, best = examples.divided()
        assert [e.score for e in worst] == [0, 0.02, 0.04]
        assert [e.score for e in best] == [0.98, 0.96, 0.94]
    assert len(made) < 100  # images in the middle are never drawn
    whole.add(float("nan"), lambda: example(0))


@pytest.mark.parametrize(("count", "worst", "best"), [(1, 1, 0), (5, 3, 2), (6, 6, 0), (9, 6, 3)])
def test_of_few_images_none_is_shown_twice(count: int, worst: int, best: int) -> None:
    examples = Examples(6)
    for i in range(count):
        examples.add(i / 10, lambda i=i: example(i / 10))
    low, high = examples.divided()
    assert (len(low), len(high)) == (worst, best)
    assert not {id(e) for e in low} & {id(e) for e in high}


def test_examples_are_small_and_have_the_colors_of_their_channels() -> None:
    image = np.zeros((600, 900, 13), np.float32)
    image[:, :, 7] = 1000
    image[:300, :, 7] = 0
    truth = np.repeat(np.arange(600), 900).reshape(600, 900)
    made = make_example("x", 0.5, image, truth, truth, rgb_channels=(7, 0, 1))
    assert made.image.shape == (267, 400, 3)
    assert made.image[-1, 0].tolist() == [255, 0, 0]
    assert np.abs(made.truth[:, 0] - np.linspace(1, 599, 267)).max() < 2


def test_details_of_processes_are_merged() -> None:
    classes = ClassSet(("a", "b"))
    (_, whole), (_, one), (_, other) = (filled(classes, n) for n in (5, 3, 2))
    one.merge(other)
    assert len(one.images) == len(whole.images)
    assert one.calibration.counts.sum() == whole.calibration.counts.sum()
    assert one.speed.images == 5
    assert len(one.examples.worst) == 5
