from __future__ import annotations

import numpy as np
import pytest

from segformer.data.loader import DrawSampler
from segformer.data.sampling import epoch_order, repeat_factors

FACTORS = np.array([1.0, 1.0, 4.0, 1.5, 1.0, 2.0, 1.0])


def test_repeat_factors_are_those_of_the_paper() -> None:
    presence = np.zeros((100, 4), bool)
    presence[:, 0] = True
    presence[:50, 1] = True
    presence[0, 2] = True  # the fourth class does not occur
    factors = repeat_factors(presence, 0.25)
    assert factors[0] == pytest.approx(np.sqrt(0.25 / 0.01))
    assert (factors[1:] == 1).all()
    assert (repeat_factors(np.zeros((3, 2), bool), 0.5) == 1).all()


def test_every_epoch_draws_samples_in_proportion_to_their_factors() -> None:
    expected = len(FACTORS) * FACTORS / FACTORS.sum()
    total = np.zeros(len(FACTORS))
    for epoch in range(400):
        counts = np.bincount(epoch_order(7, 3, epoch, FACTORS), minlength=7)
        assert counts.sum() == 7
        assert (np.abs(counts - expected) < 1).all()
        total += counts
    np.testing.assert_allclose(total / 400, expected, atol=0.08)


def test_equal_factors_draw_each_sample_once() -> None:
    for epoch in range(20):
        assert sorted(epoch_order(9, 1, epoch, np.full(9, 1.7))) == list(range(9))


def test_orders_of_epochs_and_seeds_differ() -> None:
    orders = [epoch_order(30, seed, epoch, np.ones(30)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("start", [1, 4, 9])
def test_an_oversampled_order_goes_on_from_any_step(start: int) -> None:
    whole = list(DrawSampler(7, 3, 2, 0, 10, seed=5, factors=FACTORS))
    resumed = list(DrawSampler(7, 3, 2, start, 10, seed=5, factors=FACTORS))
    assert resumed == whole[2 * start :]
    assert whole != list(DrawSampler(7, 3, 2, 0, 10, seed=5))


def test_processes_share_an_oversampled_order() -> None:
    alone = list(DrawSampler(7, 4, 2, 0, 6, seed=1, factors=FACTORS))
    ranks = [
        list(DrawSampler(7, 4, 1, 0, 6, seed=1, rank=rank, world=2, factors=FACTORS))
        for rank in (0, 1)
    ]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == alone
