import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segformer.prediction import upsample, upsample_numpy
from segformer.prediction.upsample import logits_to_label_map


def torch_argmax(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """As for tensors on a GPU."""
    return upsample.upsampled_argmax(logits, size).numpy()


def numpy_argmax(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    return upsample_numpy.upsampled_argmax(logits.numpy(), size)


ARGMAX = pytest.mark.parametrize("argmax", [torch_argmax, numpy_argmax])


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


@ARGMAX
@settings(deadline=None, max_examples=150)
@given(
    low=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    classes=st.sampled_from([2, 3, 19, 300]),
    kind=st.sampled_from(["noise", "smooth", "ties", "constant", "nan"]),
    seed=st.integers(0, 9),
)
def test_label_map_is_the_argmax_of_the_upsampled_logits(
    argmax: Callable[..., np.ndarray],
    low: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    kind: str,
    seed: int,
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
    assert_best(argmax(logits, size), logits)
    if kind == "ties":  # exact arithmetic without rounding: the lowest class wins
        power = tuple(4 * side for side in low)
        full = F.interpolate(logits[None], size=power, mode="bilinear")[0]
        assert np.array_equal(argmax(logits, power), full.argmax(0).numpy())


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


@ARGMAX
def test_classes_with_logits_of_minus_infinity_do_not_win(
    argmax: Callable[..., np.ndarray],
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 9, 9)
    logits[2, 3:6, 2:7] = -torch.inf
    assert_best(argmax(logits, (36, 36)), logits.clamp(min=-1e30))


@ARGMAX
def test_processing_few_cells_at_a_time_gives_the_same_label_map(
    argmax: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 20, 20)
    whole = argmax(logits, (80, 80))
    for module in (upsample, upsample_numpy):
        monkeypatch.setattr(module, "_CELL_VALUES", 50)
    assert np.array_equal(argmax(logits, (80, 80)), whole)
    assert_best(whole, logits)


def test_memory_is_bounded_for_large_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of two classes differs within almost every cell; a cell has 900 pixels."""
    torch.manual_seed(0)
    logits = torch.randn(2, 40, 40)
    plain = torch_argmax(logits, (1200, 1200))
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
        bounded = torch_argmax(logits, (1200, 1200))
    assert np.array_equal(bounded, plain)
    assert 0 < largest <= 2 * (1 << 14)


def test_memory_of_arrays_is_bounded_for_large_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0))
    numpy_argmax(logits, (1200, 1200))  # fills the cache of cells
    peaks = []
    for values in (1 << 21, 1 << 14):
        monkeypatch.setattr(upsample_numpy, "_CELL_VALUES", values)
        tracemalloc.start()
        numpy_argmax(logits, (1200, 1200))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    image = 1200 * 1200
    assert peaks[1] - image < 64 * (1 << 14) < peaks[0] - image


@pytest.mark.parametrize("size", [(50, 61), (9, 200), (1, 8)])
@pytest.mark.parametrize("classes", [1, 2, 19, 300])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("confidence", [False, True])
def test_arrays_give_what_tensors_give(
    size: tuple[int, int], classes: int, views: int, confidence: bool
) -> None:
    torch.manual_seed(0)
    logits = [torch.randn(classes, 9 + view, 12 - view) for view in range(views)]
    ids, probability = upsample_numpy.logits_to_label_map(
        [view.numpy() for view in logits], size, confidence=confidence
    )
    expected, expected_probability = logits_to_label_map(logits, size, confidence=confidence)
    assert ids.dtype == expected.dtype
    assert (ids != expected).mean() < 1e-3  # equal probabilities up to rounding
    if probability is not None:
        assert probability.dtype == np.float32
        np.testing.assert_allclose(probability, expected_probability, atol=1e-6)
    assert (probability is None) == (not confidence)


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
