import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segformer.prediction import upsample
from segformer.prediction.upsample import decide, interpolate_rows


@settings(deadline=None, max_examples=60)
@given(
    low=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_rows_are_those_of_interpolate(
    low: tuple[int, int], size: tuple[int, int], cut: tuple[float, float]
) -> None:
    logits = torch.randn(3, *low, dtype=torch.float64)
    top, bottom = sorted(round(c * size[0]) for c in cut)
    bottom = max(bottom, top + 1) if top < size[0] else bottom
    if top == bottom:
        top -= 1
    whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    rows = interpolate_rows(logits, size, top, bottom)
    torch.testing.assert_close(rows, whole[:, top:bottom], rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 19, 300])
def test_strips_change_nothing(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(classes, 13, 17)
    monkeypatch.setattr(upsample, "_STRIP_VALUES", 61 * classes * 3)
    ids, confidence = decide([logits], (50, 61), confidence=True)
    whole = F.interpolate(logits[None], size=(50, 61), mode="bilinear")[0]
    assert (ids == whole.argmax(0).numpy()).mean() > 0.999  # ties of rounding
    np.testing.assert_allclose(confidence, whole.softmax(0).amax(0), atol=1e-5)
    assert ids.dtype == (np.uint8 if classes <= 256 else np.uint16)


def test_views_are_averaged_as_probabilities() -> None:
    torch.manual_seed(0)
    views = [3 * torch.randn(4, 8, 9), torch.randn(4, 16, 18), torch.randn(4, 6, 7)]
    ids, confidence = decide(views, (32, 36), confidence=True)
    full = [F.interpolate(v[None], size=(32, 36), mode="bilinear")[0].softmax(0) for v in views]
    mean = sum(full) / 3
    assert (ids == mean.argmax(0).numpy()).mean() > 0.999
    np.testing.assert_allclose(confidence, mean.amax(0), atol=1e-5)


def test_binary_is_a_threshold_of_one_half() -> None:
    logits = torch.tensor([[[-1.0, 1.0]]])
    ids, confidence = decide([logits], (1, 8), confidence=True)
    assert ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert confidence.min() >= 0.5
    plain, nothing = decide([logits], (1, 8))
    assert np.array_equal(plain, ids)
    assert nothing is None
