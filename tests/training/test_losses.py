import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segformer.training.losses import cross_entropy_at_mask_size, dice_loss


def plain(logits, mask, weights, ignored_too):
    full = F.interpolate(logits, size=mask.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(full, mask, weight=weights, ignore_index=255, reduction="sum")
    if ignored_too:
        return loss / mask.numel()
    labelled = mask[mask != 255]
    return loss / (weights[labelled].sum() if weights is not None else len(labelled))


@settings(deadline=None, max_examples=30)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    weighted=st.booleans(),
    ignored_too=st.booleans(),
    seed=st.integers(0, 99),
)
def test_loss_and_gradient_equal_the_plain_formula(
    size: tuple[int, int], weighted: bool, ignored_too: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, 7, 6, generator=generator).requires_grad_()
    mask = torch.randint(0, 5, (3, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = 255
    mask[0, 0, 0] = 1
    weights = torch.rand(5, generator=generator) + 0.1 if weighted else None
    expected = plain(logits, mask, weights, ignored_too)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    actual = cross_entropy_at_mask_size(
        logits, mask, class_weights=weights, average_over_ignored=ignored_too
    )
    (gradient,) = torch.autograd.grad(3 * actual, logits)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_without_weights_it_is_pytorch_s_mean() -> None:
    logits, mask = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 20, 20))
    full = F.interpolate(logits, size=(20, 20), mode="bilinear")
    torch.testing.assert_close(
        cross_entropy_at_mask_size(logits, mask), F.cross_entropy(full, mask)
    )


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0])])
def test_binary(weights: torch.Tensor | None) -> None:
    logits = torch.randn(2, 1, 5, 5, requires_grad=True)
    mask = torch.randint(0, 2, (2, 20, 20))
    mask[:, :3] = 255
    two = torch.cat([torch.zeros_like(logits), logits], 1)  # sigmoid(x) = softmax(0, x)
    expected = plain(two, mask, weights, False)
    actual = cross_entropy_at_mask_size(logits, mask, class_weights=weights)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits)[0] for loss in (actual, expected)), rtol=1e-4, atol=1e-6
    )


def test_nothing_labelled_is_zero_not_nan() -> None:
    logits = torch.randn(1, 4, 5, 5, requires_grad=True)
    mask = torch.full((1, 9, 9), 255)
    for loss in (cross_entropy_at_mask_size(logits, mask), dice_loss(logits, mask)):
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
    torch.testing.assert_close(
        loss, cross_entropy_at_mask_size(half.float(), mask), rtol=1e-6, atol=1e-6
    )


def test_dice_of_right_and_wrong() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, 8:] = 1
    mask[:, :, 12:] = 255
    sharp = 20.0 * F.one_hot(mask.clamp(max=1)[:, ::4, ::4], 3).movedim(-1, 1)
    assert dice_loss(sharp, mask).item() == pytest.approx(0, abs=0.01)
    assert dice_loss(sharp.flip(2), mask).item() > 0.85  # the + 1 of the smoothing remains
    binary = sharp[:, 1:2] - sharp[:, :1]
    assert dice_loss(binary, mask).item() == pytest.approx(0, abs=0.01)
