"""Losses of regions and of classes that may overlap, and weighted sums of losses.

Each is compared with its plain formula in float64, with another implementation where one is
installed, and shown to do what it is for on pixels of which 1 % are of one class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from segformer.data.multilabel import IGNORED, pack
from segformer.training.losses import (
    Objective,
    binary_cross_entropy_at_mask_size,
    boundary_loss,
    cross_entropy_at_mask_size,
    dice_loss,
    lovasz_loss,
    tversky_loss,
)
from segformer.training.losses.boundary import signed_distance
from segformer.training.losses.regions import Regions
from segformer.training.options.loss import SegmentationLossOptions

REGIONS = [dice_loss, tversky_loss, lovasz_loss, boundary_loss]


def example(multilabel: bool, size: tuple[int, int] = (24, 28)) -> tuple[Tensor, Tensor]:
    """Random logits (2, 3, 6, 7) in float64, and a mask in which a third is ignored."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=generator)
    mask = torch.randint(0, 8 if multilabel else 3, (2, *size), generator=generator)
    mask[:, ::3] = IGNORED if multilabel else 255
    return logits.requires_grad_(), mask


def plain_regions(logits: Tensor, mask: Tensor, multilabel: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and truth (n, K) of the labeled pixels, written out."""
    small = F.interpolate(mask[:, None].double(), logits.shape[2:], mode="nearest-exact")
    ids, classes = small[:, 0].long(), range(logits.shape[1])
    labeled = ids != (IGNORED if multilabel else 255)
    probs = logits.sigmoid() if multilabel else logits.softmax(1)
    present = [(ids >> k) % 2 == 1 if multilabel else ids == k for k in classes]
    truth = torch.stack(present, -1)[labeled].double()
    return probs.movedim(1, -1)[labeled], truth


def plain_tversky(probs: Tensor, truth: Tensor, alpha: float, beta: float) -> Tensor:
    losses = []
    for p, t in zip(probs.T, truth.T, strict=True):
        hits, extra, missed = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
        losses.append(1 - (hits + 0.5) / (hits + alpha * extra + beta * missed + 0.5))
    return torch.stack(losses).mean()


def plain_lovasz(probs: Tensor, truth: Tensor) -> Tensor:
    """The sum over sorted errors times the increase of the Jaccard loss, set by set."""
    losses = []
    for p, t in zip(probs.T, truth.T, strict=True):
        errors, order = (t - p).abs().sort(descending=True)
        total, before = torch.zeros(()).double(), 0.0
        for i in range(len(order)):
            wrong = torch.zeros_like(t)
            wrong[order[: i + 1]] = 1
            kept, union = t * (1 - wrong), torch.maximum(t, wrong)
            jaccard = 1 - float(kept.sum() / union.sum())
            total = total + errors[i] * (jaccard - before)
            before = jaccard
        losses.append(total)
    return torch.stack(losses).mean()


def assert_equal_with_gradients(actual: Tensor, expected: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (actual, expected)),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("size", [(24, 28), (25, 16), (5, 6)])
def test_losses_of_regions_equal_plain_formulas(multilabel: bool, size: tuple[int, int]) -> None:
    logits, mask = example(multilabel, size)
    probs, truth = plain_regions(logits, mask, multilabel)
    assert truth.any(0).all()
    for actual, expected in (
        (dice_loss(logits, mask, multilabel=multilabel), plain_tversky(probs, truth, 0.5, 0.5)),
        (tversky_loss(logits, mask, multilabel=multilabel), plain_tversky(probs, truth, 0.3, 0.7)),
        (lovasz_loss(logits, mask, multilabel=multilabel), plain_lovasz(probs, truth)),
    ):
        assert_equal_with_gradients(actual, expected, logits)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_boundary_loss_equals_the_plain_formula(multilabel: bool) -> None:
    logits, mask = example(multilabel)
    regions = Regions.of(logits, mask, 255, multilabel)
    total = torch.zeros(()).double()
    for image in range(2):
        for k in range(3):
            region = regions.truth[image, k].numpy().astype(bool)
            outside, inside = distance_transform_edt(~region), distance_transform_edt(region)
            signed = torch.from_numpy(outside - (inside - 1) * region) / np.hypot(6, 7)
            total = total + (regions.probs[image, k] * signed).sum()
    expected = total / regions.labeled.sum() / (3 if multilabel else 1)
    actual = boundary_loss(logits, mask, multilabel=multilabel)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)  # OpenCV has float32
    assert torch.autograd.gradcheck(lambda x: boundary_loss(x, mask, multilabel=multilabel), logits)


def test_a_region_without_a_boundary_has_no_distances() -> None:
    for region in (np.zeros((4, 5), bool), np.ones((4, 5), bool)):
        assert not signed_distance(region).any()


@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.2}, {"focal_gamma": 2.0}, {"avg_non_ignore": False}],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(24, 28), (25, 16)])
def test_binary_cross_entropy_equals_the_plain_formula(
    options: dict[str, float], weighted: bool, size: tuple[int, int]
) -> None:
    logits, mask = example(True, size)
    weights = torch.tensor([0.5, 1.0, 4.0]).double() if weighted else None
    actual = binary_cross_entropy_at_mask_size(logits, mask, class_weights=weights, **options)
    full = F.interpolate(logits, size=size, mode="bilinear").movedim(1, -1)
    truth = torch.stack([(mask >> k) % 2 for k in range(3)], -1).double()
    smoothing = options.get("label_smoothing", 0.0)
    losses = F.binary_cross_entropy_with_logits(
        full, truth * (1 - smoothing) + smoothing / 2, pos_weight=weights, reduction="none"
    )
    right = torch.where(truth == 1, full.sigmoid(), 1 - full.sigmoid())
    losses = losses * (1 - right) ** options.get("focal_gamma", 0.0)
    labeled = mask != IGNORED
    counted = labeled.sum() if options.get("avg_non_ignore", True) else mask.numel()
    assert_equal_with_gradients(actual, losses[labeled].sum() / (3 * counted), logits)


def test_binary_cross_entropy_is_finite_for_certain_predictions() -> None:
    logits = torch.tensor([-300.0, 300.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3).clone()
    mask = torch.ones(1, 12, 12, dtype=torch.long)  # the first class; both outputs are wrong
    for gamma in (0.0, 2.0):
        x = logits.clone().requires_grad_()
        loss = binary_cross_entropy_at_mask_size(x, mask, focal_gamma=gamma)
        assert loss.item() == 300
        (gradient,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(gradient.sum((0, 2, 3)), torch.tensor([-0.5, 0.5]))


def test_losses_equal_those_of_transformers() -> None:
    detection = pytest.importorskip("transformers.loss.loss_for_object_detection")
    torch.manual_seed(0)
    logits, truth = torch.randn(1, 1, 16, 16).double(), torch.rand(1, 1, 16, 16) < 0.3
    mask = torch.from_numpy(pack(truth[0].numpy()))[None]
    flat, target = logits.view(1, -1), truth.double().view(1, -1)
    torch.testing.assert_close(
        dice_loss(logits, mask, multilabel=True), detection.dice_loss(flat, target, 1)
    )
    torch.testing.assert_close(
        binary_cross_entropy_at_mask_size(logits, mask, focal_gamma=2),
        detection.sigmoid_focal_loss(flat, target, 1, alpha=-1, gamma=2),
    )


def test_cross_entropy_equals_that_of_the_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=16, num_labels=5,
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    mask = torch.randint(0, 5, (2, 64, 64))
    mask[:, :9] = 255
    with torch.no_grad():
        theirs = model(torch.randn(2, 3, 64, 64), labels=mask)
    torch.testing.assert_close(cross_entropy_at_mask_size(theirs.logits, mask), theirs.loss)


@pytest.mark.parametrize("loss", REGIONS)
def test_losses_of_regions_are_0_without_labeled_pixels(loss: Callable[..., Tensor]) -> None:
    logits = torch.randn(1, 4, 5, 5, requires_grad=True)
    for value, multilabel in ((255, False), (IGNORED, True)):
        nothing = loss(logits, torch.full((1, 9, 9), value), multilabel=multilabel)
        (gradient,) = torch.autograd.grad(nothing, logits)
        assert nothing == 0
        assert not gradient.any()


@pytest.mark.parametrize("loss", REGIONS)
def test_autocast_does_not_change_losses_of_regions(loss: Callable[..., Tensor]) -> None:
    logits, mask = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 32, 32))
    expected = loss(logits, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(logits, mask), expected)


@pytest.mark.parametrize("multilabel", [False, True])
def test_an_objective_is_the_weighted_sum_of_its_losses(multilabel: bool) -> None:
    logits, mask = example(multilabel)
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    options = SegmentationLossOptions(
        cross_entropy_weight=0.5, dice_weight=2, tversky_weight=3, tversky_alpha=0.1,
        tversky_beta=0.9, lovasz_weight=4, boundary_weight=5, focal_gamma=1.5,
    )  # fmt: skip
    pixels = binary_cross_entropy_at_mask_size if multilabel else cross_entropy_at_mask_size
    expected = (
        0.5 * pixels(logits, mask, class_weights=weights, focal_gamma=1.5)
        + 2 * dice_loss(logits, mask, multilabel=multilabel)
        + 3 * tversky_loss(logits, mask, alpha=0.1, beta=0.9, multilabel=multilabel)
        + 4 * lovasz_loss(logits, mask, multilabel=multilabel)
        + 5 * boundary_loss(logits, mask, multilabel=multilabel)
    )
    actual = Objective(options, 255, weights, multilabel)(logits, mask)
    assert_equal_with_gradients(actual, expected, logits)
    alone = Objective(SegmentationLossOptions(cross_entropy_weight=0, dice_weight=1), 255)
    assert torch.equal(alone(*example(False)), dice_loss(*example(False)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_entropy_weight": 0}, "the weights of all losses are 0"),
        ({"class_weights": ("box",)}, "auto, or NAME=WEIGHT for each class, not 'box'"),
        ({"class_weights": ("box=-1",)}, "not 'box=-1'"),
        ({"class_weights": ("box=1", "box=2")}, "the class 'box' has two weights"),
        ({"class_weight_power": 0.5}, "class_weight_power needs class_weights auto"),
        ({"tversky_alpha": 0, "tversky_beta": 0}, "are both 0"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationLossOptions(**options)  # type: ignore[arg-type]


def skewed_pixels(images: int = 4) -> tuple[Tensor, Tensor]:
    """Features (B, 2, 64, 64) and masks of which 1 % are class 1, with overlapping features."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(images, 64, 64, generator=generator) < 0.01).long()
    features = torch.randn(images, 2, 64, 64, generator=generator)
    features[:, 0] += 2.5 * mask
    return features, mask


def trained_counts(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Recall and IoU of class 1 of a linear classifier that is trained with a loss."""
    features, mask = skewed_pixels()
    torch.manual_seed(0)
    classifier = torch.nn.Conv2d(2, 2, 1)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss(classifier(features), mask).backward()
        optimizer.step()
    found = classifier(features).argmax(1) == 1
    hits = (found & (mask == 1)).sum()
    return float(hits / mask.sum()), float(hits / (found | (mask == 1)).sum())


@pytest.fixture(scope="module")
def plain_counts() -> tuple[float, float]:
    """Recall and IoU after training with cross-entropy alone."""
    return trained_counts(Objective(SegmentationLossOptions()))


@pytest.mark.parametrize(
    "options",
    [
        {"focal_gamma": 2.0},
        {"dice_weight": 1.0, "cross_entropy_weight": 0.0},
        {"dice_weight": 1.0},
        {"tversky_weight": 1.0},
        {"lovasz_weight": 1.0, "cross_entropy_weight": 0.0},
    ],
    ids=str,
)
def test_a_rare_class_is_found_better_than_with_cross_entropy(
    options: dict[str, float], plain_counts: tuple[float, float]
) -> None:
    recall, iou = trained_counts(Objective(SegmentationLossOptions(**options)))
    assert recall > plain_counts[0] + 0.05
    assert iou > plain_counts[1]


def test_class_weights_raise_the_recall_of_a_rare_class(plain_counts: tuple[float, float]) -> None:
    weights = torch.tensor([0.505, 10.0])  # what "auto" gives for 99 and 1 %
    recall, _ = trained_counts(Objective(SegmentationLossOptions(), class_weights=weights))
    assert recall > plain_counts[0] + 0.3


def test_hard_example_mining_learns_rare_pixels_in_fewer_steps() -> None:
    """The rare class is separable, but most of the gradient of cross-entropy is of easy pixels."""
    features, mask = skewed_pixels()
    features = torch.stack([0.5 * mask, 0.05 * features[:, 1]], 1)
    ious = {}
    for threshold in (0.0, 0.7):
        objective = Objective(SegmentationLossOptions(ohem_threshold=threshold))
        torch.manual_seed(0)
        classifier = torch.nn.Conv2d(2, 2, 1)
        optimizer = torch.optim.SGD(classifier.parameters(), lr=1.0)
        for _ in range(150):
            optimizer.zero_grad()
            objective(classifier(features), mask).backward()
            optimizer.step()
        found = classifier(features).argmax(1) == 1
        ious[threshold] = float((found & (mask == 1)).sum() / (found | (mask == 1)).sum())
    assert ious[0.0] < 0.1
    assert ious[0.7] > 0.9


def test_tversky_trades_precision_for_recall() -> None:
    recalls = [
        trained_counts(partial(tversky_loss, alpha=1 - beta, beta=beta))[0]
        for beta in (0.3, 0.5, 0.7, 0.9)
    ]
    assert recalls == sorted(recalls)
    assert recalls[-1] > recalls[0] + 0.2


def test_label_smoothing_limits_the_confidence() -> None:
    """Of separable pixels, cross-entropy alone makes the logits grow without end."""
    features = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    mask = torch.tensor([[[0, 1]]])
    probs = {}
    for smoothing in (0.0, 0.2):
        scale = torch.tensor(0.0, requires_grad=True)
        optimizer = torch.optim.Adam([scale], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            logits = torch.cat([-scale * features, scale * features], 1)
            cross_entropy_at_mask_size(logits, mask, label_smoothing=smoothing).backward()
            optimizer.step()
        probs[smoothing] = torch.sigmoid(2 * scale).item()
    assert probs[0.0] > 0.99
    assert probs[0.2] == pytest.approx(0.9, abs=1e-3)  # 1 - 0.2 + 0.2 / 2


def test_the_boundary_loss_penalizes_far_errors_more() -> None:
    """Two predictions with the same overlap: the extra region touches the truth, or is far."""
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    mask[:, 4:8, 4:8] = 1
    near, far = mask.clone(), mask.clone()
    near[:, 8:12, 4:8] = 1
    far[:, 24:28, 24:28] = 1
    logits = [20.0 * F.one_hot(ids, 2).movedim(-1, 1).float() for ids in (mask, near, far)]
    dice = [dice_loss(x, mask).item() for x in logits]
    boundary = [boundary_loss(x, mask).item() for x in logits]
    assert dice[1] == pytest.approx(dice[2])
    assert boundary[0] < boundary[1] < boundary[2]
    assert boundary[2] - boundary[0] > 5 * (boundary[1] - boundary[0])
