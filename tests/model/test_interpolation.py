import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segformer.model import interpolation
from segformer.model.interpolation import interpolate_rows, upsampling_matrix


@settings(deadline=None, max_examples=60)
@given(
    low=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_rows_equal_interpolate(
    low: tuple[int, int], size: tuple[int, int], cut: tuple[float, float]
) -> None:
    logits = torch.randn(3, *low, dtype=torch.float64)
    top, bottom = sorted(round(c * size[0]) for c in cut)
    bottom = max(bottom, top + 1) if top < size[0] else bottom
    if top == bottom:
        top -= 1
    whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    rows = interpolate_rows(logits.permute(1, 2, 0)[None], size, top, bottom)
    torch.testing.assert_close(rows[0].permute(2, 0, 1), whole[:, top:bottom], rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(low=st.integers(1, 40), high=st.integers(1, 200))
def test_matrix_equals_interpolate(low: int, high: int) -> None:
    values = torch.randn(low)
    expected = F.interpolate(values[None, None], size=high, mode="linear")[0, 0]
    # Coordinates up to 40 are rounded in float32, to 4e-6 of a pixel
    torch.testing.assert_close(upsampling_matrix(low, high) @ values, expected, rtol=0, atol=5e-5)


def test_bfloat16_uses_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 8, 3).bfloat16()
    whole = F.interpolate(tokens.float().permute(0, 3, 1, 2), size=(20, 32), mode="bilinear")
    widths = []

    def matrix(low: int, high: int) -> torch.Tensor:
        widths.append((low, high))
        return upsampling_matrix(low, high)

    monkeypatch.setattr(interpolation, "upsampling_matrix", matrix)
    rows = interpolate_rows(tokens, (20, 32), 3, 11)
    assert widths == [(8, 32)]
    torch.testing.assert_close(
        rows.float().permute(0, 3, 1, 2), whole[:, :, 3:11], rtol=0, atol=2e-2
    )
    interpolate_rows(tokens.float(), (20, 32), 3, 11)
    interpolate_rows(tokens, (20, interpolation._DENSE + 1), 3, 11)
    assert len(widths) == 1
