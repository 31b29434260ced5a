import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segformer.prediction import upsample
from segformer.prediction.upsample import logits_to_label_map


def assert_best(ids: np.ndarray, logits: torch.Tensor) -> None:
    """Check that each class has the largest upsampled logit, up to rounding errors."""

    def upsampled(values: torch.Tensor) -> torch.Tensor:
        return F.interpolate(values[None].double(), size=ids.shape, mode="bilinear")[0]

    full = upsampled(logits.nan_to_num())
    full[upsampled(logits.isnan()) > 1e-9] = torch.inf
    chosen = full.gather(0, torch.from_numpy(ids.astype(np.int64))[None])[0]
    # A NaN with weight zero may still give NaN, as in most kernels of PyTorch
    near = F.max_pool2d(logits.isnan().any(0, keepdim=True).double(), 3, 1, 1)
    leaked = upsampled(near)[0] > 0
    assert ((chosen >= full.amax(0) - 1e-5) | leaked).all()


@settings(deadline=None, max_examples=150)
@given(
    low=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    classes=st.sampled_from([2, 3, 19, 300]),
    kind=st.sampled_from(["noise", "smooth", "ties", "constant", "nan"]),
    seed=st.integers(0, 9),
)
def test_label_map_is_the_argmax_of_the_upsampled_logits(
    low: tuple[int, int], size: tuple[int, int], classes: int, kind: str, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(classes, *low)
    if kind == "smooth":
        logits = F.interpolate(torch.randn(1, classes, 3, 3), size=low, mode="bilinear")[0]
    elif kind == "ties":
        logits = logits.round()
    elif kind == "constant":
        logits = logits[:, :1, :1].expand(classes, *low)
    elif kind == "nan":
        logits[torch.rand(logits.shape) < 0.05] = torch.nan
    ids, _ = logits_to_label_map([logits], size)
    assert_best(ids, logits)
    if kind == "ties":  # exact arithmetic without rounding: the lowest class wins
        power = tuple(4 * side for side in low)
        full = F.interpolate(logits[None], size=power, mode="bilinear")[0]
        assert np.array_equal(logits_to_label_map([logits], power)[0], full.argmax(0).numpy())


@settings(deadline=None, max_examples=40)
@given(
    low=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 9),
)
def test_binary_foreground_is_above_zero(
    low: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(1, *low)
    ids, _ = logits_to_label_map([logits], size)
    full = F.interpolate(logits[None].double(), size=size, mode="bilinear")[0, 0].numpy()
    assert ((ids == (full > 0)) | (np.abs(full) < 1e-5)).all()


def test_classes_with_logits_of_minus_infinity_do_not_win() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 9, 9)
    logits[2, 3:6, 2:7] = -torch.inf
    assert_best(logits_to_label_map([logits], (36, 36))[0], logits.clamp(min=-1e30))


def test_processing_few_cells_at_a_time_gives_the_same_label_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 20, 20)
    whole, _ = logits_to_label_map([logits], (80, 80))
    monkeypatch.setattr(upsample, "_CELL_VALUES", 50)
    assert np.array_equal(logits_to_label_map([logits], (80, 80))[0], whole)
    assert_best(whole, logits)


def test_memory_is_bounded_for_large_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of two classes differs within almost every cell; a cell has 900 pixels."""
    torch.manual_seed(0)
    logits = torch.randn(2, 40, 40)
    plain, _ = logits_to_label_map([logits], (1200, 1200))
    assert_best(plain, logits)
    monkeypatch.setattr(upsample, "_CELL_VALUES", 1 << 12)
    monkeypatch.setattr(upsample, "_CHUNK_VALUES", 1 << 14)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.lerp.Tensor:
                largest = max(largest, result.numel())
            return result

    with Watch():
        bounded, _ = logits_to_label_map([logits], (1200, 1200))
    assert np.array_equal(bounded, plain)
    assert 0 < largest <= 2 * (1 << 14)


@pytest.mark.parametrize("classes", [2, 19, 300])
def test_chunks_do_not_change_the_output(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(classes, 13, 17)
    monkeypatch.setattr(upsample, "_CHUNK_VALUES", 61 * classes * 3)
    ids, confidence = logits_to_label_map([logits], (50, 61), confidence=True)
    whole = F.interpolate(logits[None], size=(50, 61), mode="bilinear")[0]
    assert (ids == whole.argmax(0).numpy()).mean() > 0.999  # up to rounding errors
    np.testing.assert_allclose(confidence, whole.softmax(0).amax(0), atol=1e-5)
    assert ids.dtype == (np.uint8 if classes <= 256 else np.uint16)


def test_probabilities_of_views_are_averaged() -> None:
    torch.manual_seed(0)
    tta_logits = [3 * torch.randn(4, 8, 9), torch.randn(4, 16, 18), torch.randn(4, 6, 7)]
    ids, confidence = logits_to_label_map(tta_logits, (32, 36), confidence=True)
    full = [
        F.interpolate(v[None], size=(32, 36), mode="bilinear")[0].softmax(0) for v in tta_logits
    ]
    mean = sum(full) / 3
    assert (ids == mean.argmax(0).numpy()).mean() > 0.999
    np.testing.assert_allclose(confidence, mean.amax(0), atol=1e-5)


def test_binary_threshold_is_one_half() -> None:
    logits = torch.tensor([[[-1.0, 1.0]]])
    ids, confidence = logits_to_label_map([logits], (1, 8), confidence=True)
    assert ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert confidence.min() >= 0.5
    plain, nothing = logits_to_label_map([logits], (1, 8))
    assert np.array_equal(plain, ids)
    assert nothing is None
