import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer.prediction.windows import window_starts


@given(length=st.integers(1, 5000), window=st.integers(1, 1024), fraction=st.floats(0.01, 1))
def test_windows_cover_every_pixel_and_stay_inside(
    length: int, window: int, fraction: float
) -> None:
    stride = max(1, int(window * fraction))
    first = window_starts(length, window, stride)
    assert first[0] == 0
    if length <= window:
        assert first == [0]
        return
    assert first[-1] + window == length
    steps = [b - a for a, b in itertools.pairwise(first)]
    assert all(0 < step <= stride for step in steps)
    assert all(step == stride for step in steps[:-1])


def test_cityscapes() -> None:
    """Windows of 1024 with stride 768 over 1024 x 2048, as the paper evaluates."""
    assert window_starts(1024, 1024, 768) == [0]
    assert window_starts(2048, 1024, 768) == [0, 768, 1024]


def test_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="a stride of 11 leaves gaps"):
        window_starts(100, 10, 11)
    with pytest.raises(ValueError, match="must be positive"):
        window_starts(100, 10, 0)
