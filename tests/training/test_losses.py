from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segformer.training import upsampling
from segformer.training.losses import (
    OHEM,
    cross_entropy,
    cross_entropy_at_mask_size,
    dice_loss,
    lovasz_loss,
)


def upsampled(logits: Tensor, mask: Tensor) -> Tensor:
    return F.interpolate(logits, size=mask.shape[1:], mode="bilinear", align_corners=False)


def plain(
    logits: Tensor,
    mask: Tensor,
    weights: Tensor | None = None,
    ignored_too: bool = False,
    smoothing: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    full = upsampled(logits, mask)
    settings = {"weight": weights, "ignore_index": 255, "label_smoothing": smoothing}
    loss = F.cross_entropy(full, mask, reduction="none", **settings)
    prob = full.softmax(1).gather(1, mask.where(mask != 255, 0)[:, None])[:, 0]
    loss = (loss * (1 - prob) ** gamma).sum()
    if ignored_too:
        return loss / mask.numel()
    labeled = mask[mask != 255]
    return loss / (weights[labeled].sum() if weights is not None else len(labeled))


SIZES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 8).map(lambda ratio: (7 * ratio, 6 * ratio)),
)


@settings(deadline=None, max_examples=80)
@given(
    size=SIZES,
    weighted=st.booleans(),
    ignored_too=st.booleans(),
    kind=st.sampled_from([{}, {"smoothing": 0.1}, {"gamma": 2.0}, {"gamma": 0.5}]),
    chunk=st.sampled_from([1, 300, 1 << 19]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradient_equal_the_plain_formula(
    size: tuple[int, int],
    weighted: bool,
    ignored_too: bool,
    kind: dict[str, float],
    chunk: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, 7, 6, generator=generator).requires_grad_()
    mask = torch.randint(0, 5, (3, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = 255
    mask[0, 0, 0] = 1
    weights = torch.rand(5, generator=generator) + 0.1 if weighted else None
    expected = plain(logits, mask, weights, ignored_too, **kind)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    with patch.dict(upsampling._CHUNK_VALUES, cpu=chunk):
        actual = cross_entropy_at_mask_size(
            logits,
            mask,
            class_weights=weights,
            avg_non_ignore=not ignored_too,
            label_smoothing=kind.get("smoothing", 0.0),
            focal_gamma=kind.get("gamma", 0.0),
        )
    (gradient,) = torch.autograd.grad(3 * actual, logits)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(12, 16), (15, 20), (11, 9)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"focal_gamma": 2.0}])
def test_gradients_equal_numerical_gradients(
    size: tuple[int, int], options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, 3, (2, *size))
    mask[:, ::3, ::2] = 255
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy_at_mask_size(logits, mask, class_weights=weights, **options)

    assert torch.autograd.gradcheck(loss, logits)


def test_loss_is_finite_for_tiny_probabilities() -> None:
    logits = torch.tensor([0.0, 300.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3).clone()
    logits.requires_grad_()
    mask = torch.zeros(1, 12, 12, dtype=torch.long)
    loss = cross_entropy_at_mask_size(logits, mask)
    assert loss.item() == 300
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient.sum((0, 2, 3)), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 0.01), (0.05, 0.25)])
def test_ohem_uses_only_hard_pixels(threshold: float, min_kept: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, requires_grad=True)
    mask = torch.randint(0, 4, (2, 24, 24))
    mask[:, :5] = 255
    full = upsampled(logits, mask)
    prob = full.softmax(1).gather(1, mask.where(mask != 255, 0)[:, None])[:, 0]
    labeled = prob[mask != 255].sort().values
    highest = max(threshold, labeled[round(min_kept * len(labeled)) - 1].item())
    hard = mask.where(prob <= highest, 255)
    actual = cross_entropy_at_mask_size(logits, mask, ohem=OHEM(threshold, min_kept))
    torch.testing.assert_close(actual, plain(logits, hard))
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits)[0] for loss in (actual, plain(logits, hard)))
    )


def test_error_names_an_invalid_class_id() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    mask[0, 3, 3] = 7
    with pytest.raises(ValueError, match="class id 7; valid ids are 0 to 1, and 255"):
        cross_entropy_at_mask_size(torch.zeros(1, 1, 2, 2), mask)


def test_label_smoothing_with_focal_loss_is_an_error() -> None:
    logits, mask = torch.zeros(1, 2, 2, 2), torch.zeros(1, 8, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="one of them 0; they are 0.1 and 2"):
        cross_entropy_at_mask_size(logits, mask, label_smoothing=0.1, focal_gamma=2)


def test_without_weights_equals_pytorch_mean() -> None:
    logits, mask = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 20, 20))
    full = F.interpolate(logits, size=(20, 20), mode="bilinear")
    torch.testing.assert_close(
        cross_entropy_at_mask_size(logits, mask), F.cross_entropy(full, mask)
    )


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0])])
def test_binary_equals_two_classes(weights: torch.Tensor | None) -> None:
    logits = torch.randn(2, 1, 5, 5, requires_grad=True)
    mask = torch.randint(0, 2, (2, 20, 20))
    mask[:, :3] = 255
    two = torch.cat([torch.zeros_like(logits), logits], 1)  # sigmoid(x) = softmax(0, x)
    expected = plain(two, mask, weights)
    actual = cross_entropy_at_mask_size(logits, mask, class_weights=weights)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits)[0] for loss in (actual, expected)), rtol=1e-4, atol=1e-6
    )


def test_loss_is_zero_without_labeled_pixels() -> None:
    logits = torch.randn(1, 4, 5, 5, requires_grad=True)
    mask = torch.full((1, 9, 9), 255)
    for function in (cross_entropy_at_mask_size, dice_loss, lovasz_loss):
        loss = function(logits, mask)
        (gradient,) = torch.autograd.grad(loss, logits, allow_unused=True)
        assert loss == 0
        assert not gradient.any()


def test_half_precision_logits() -> None:
    logits, mask = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 32, 32))
    half = logits.bfloat16().requires_grad_()
    loss = cross_entropy_at_mask_size(half, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    full = cross_entropy_at_mask_size(half.float(), mask)
    torch.testing.assert_close(loss, full, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy_at_mask_size, lovasz_loss, dice_loss])
def test_autocast_does_not_change_the_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits, mask = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 32, 32))
    expected = loss(logits, mask)
    cast = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            cast.extend(t for t in (result,) if getattr(t, "dtype", None) == torch.bfloat16)
            return result

    with torch.autocast("cpu", torch.bfloat16), Watch():
        (logits @ logits.mT).sum()
        assert len(cast) > 0  # autocast rounds this product
        cast.clear()
        assert torch.equal(loss(logits, mask), expected)
    assert not cast


def test_small_gradients_do_not_underflow_in_float16() -> None:
    """The gradient is multiplied by the loss scale before it is rounded to float16."""
    logits = torch.tensor([14.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 8, 8)
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    half, full = logits.half().requires_grad_(), logits.requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy_at_mask_size(full, mask), full)
    assert not expected.half().any()
    loss = cross_entropy_at_mask_size(half, mask)
    (gradient,) = torch.autograd.grad(loss * 2.0**16, half)
    torch.testing.assert_close(gradient.float() / 2.0**16, expected, rtol=1e-3, atol=0)


def test_second_derivatives_are_an_error() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy_at_mask_size(logits, torch.zeros(1, 8, 8, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss.square(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("size", [(24, 24), (25, 22)])
def test_one_synchronization_with_a_device(
    weighted: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python waits for a GPU to read a value, or a shape that depends on values."""
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 6, 6, requires_grad=True)
    logits.data[0, 0] = -200  # this class has probability 0 in float32
    mask = torch.randint(0, 4, (3, *size))
    mask[:, :3] = 255
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]) if weighted else None
    expected = cross_entropy_at_mask_size(logits, mask, class_weights=weights)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    aten, waits = torch.ops.aten, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            read = (aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default)
            masks = function is aten.index.Tensor and any(
                index is not None and index.dtype == torch.bool for index in args[1]
            )
            if function in read or masks:
                waits.append(function)
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(cross_entropy, "_waiting_costs", lambda tensor: True)
    with Watch():
        loss = cross_entropy_at_mask_size(logits, mask, class_weights=weights)
        (gradient,) = torch.autograd.grad(loss, logits)
    assert len(waits) == 1
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_dice_of_correct_and_wrong_predictions() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, 8:] = 1
    mask[:, :, 12:] = 255
    sharp = 20.0 * F.one_hot(mask.clamp(max=1)[:, ::4, ::4], 3).movedim(-1, 1)
    assert dice_loss(sharp, mask).item() == pytest.approx(0, abs=0.01)
    assert dice_loss(sharp.flip(2), mask).item() > 0.85  # not 1, because of the + 1 in the formula
    binary = sharp[:, 1:2] - sharp[:, :1]
    assert dice_loss(binary, mask).item() == pytest.approx(0, abs=0.01)


def test_lovasz_equals_the_jaccard_loss_for_certain_predictions() -> None:
    torch.manual_seed(0)
    mask = torch.randint(0, 3, (2, 16, 16)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    mask[:, :8] = 255
    chosen = torch.randint(0, 3, (2, 16, 16))
    sharp = 1000.0 * F.one_hot(chosen, 3).movedim(-1, 1)
    small, losses = mask[:, 2::4, 2::4], []
    for class_id in range(3):
        truth, decided = (small == class_id), (chosen == class_id) & (small != 255)
        losses.append(1 - (truth & decided).sum() / (truth | decided).sum())
    torch.testing.assert_close(lovasz_loss(sharp, mask), torch.stack(losses).mean())
    soft = torch.randn(2, 3, 16, 16, dtype=torch.float32, requires_grad=True)
    lovasz_loss(soft, mask).backward()
    assert soft.grad.isfinite().all()
    assert soft.grad[:, :, 2:].any()
