"""A predictor follows its model and does not change it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from conftest import TINY, randomize
from segformer import Predictor, SegFormer, SegFormerClassifier
from segformer.prediction.runtimes.base import default_readers, is_out_of_memory
from segformer.prediction.runtimes.pytorch import TorchRuntime

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)

MODES = [{}, {"precision": "bfloat16"}]


def logits(model: SegFormer, options: dict) -> torch.Tensor:
    return Predictor(model, device="cpu", size=64, **options).logits(IMAGE)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def train(model: SegFormer, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_those_of_the_model_as_it_is_now(
    tiny_model: SegFormer, options: dict, training: bool
) -> None:
    tiny_model.train(training)
    predictor = Predictor(tiny_model, device="cpu", size=64, **options)
    previous = predictor.logits(IMAGE)

    def follows() -> bool:
        nonlocal previous
        found = predictor.logits(IMAGE)
        changed = not torch.equal(found, previous)
        previous = found
        # Not equal bit by bit: the number of threads follows what other processes leave idle
        return changed and torch.allclose(
            found, logits(copy.deepcopy(tiny_model), options), atol=1e-5
        )

    train(tiny_model)  # BatchNorm's statistics change as well
    assert follows()
    tiny_model.load_state_dict(randomize(SegFormer(TINY), seed=3).state_dict())
    assert follows()
    tiny_model.reset_head()  # other parameters, in other modules
    randomize(tiny_model)
    assert follows()
    with torch.no_grad():
        tiny_model.decoder.classifier.weight.mul_(2)
    assert follows()


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_changed(tiny_model: SegFormer, options: dict, training: bool) -> None:
    tiny_model.train(training)
    tiny_model.encoder.freeze(1)
    before = modes(tiny_model), copy.deepcopy(tiny_model.state_dict())
    tensors = dict(tiny_model.named_parameters())
    Predictor(tiny_model, device="cpu", **options)(IMAGE)
    assert modes(tiny_model) == before[0]
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, before[1][name]), name
        assert tensor.dtype == before[1][name].dtype
    assert all(tensors[name] is tensor for name, tensor in tiny_model.named_parameters())
    assert all(isinstance(p, nn.Parameter) and p.device.type == "cpu" for p in tensors.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_that_changes_its_dtype(tiny_model: SegFormer, dtype: torch.dtype) -> None:
    predictor = Predictor(tiny_model, device="cpu", size=64)
    expected = predictor.logits(IMAGE)
    tiny_model.to(dtype)
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(predictor.logits(IMAGE), expected, rtol=0, atol=tolerance)
    assert {p.dtype for p in tiny_model.parameters()} == {dtype}
    tiny_model.float()
    torch.testing.assert_close(predictor.logits(IMAGE), expected, rtol=0, atol=tolerance)


def test_parameters_in_float32_are_shared(tiny_model: SegFormer) -> None:
    runtime = TorchRuntime(tiny_model, "cpu")
    shared = dict(runtime._inference.named_parameters())
    assert all(shared[name] is tensor for name, tensor in tiny_model.named_parameters())


def test_an_unchanged_model_is_converted_once(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = []
    fold = SegFormer.fold

    def counted(model: SegFormer) -> SegFormer:
        folds.append(1)
        return fold(model)

    monkeypatch.setattr(SegFormer, "fold", counted)
    predictor = Predictor(tiny_model, device="cpu", precision="bfloat16", size=64)
    tensors = [t.data_ptr() for t in predictor.runtime._inference.parameters()]
    for _ in range(3):
        predictor(IMAGE)
    assert len(folds) == 1
    train(tiny_model, 1)
    predictor(IMAGE)
    assert len(folds) == 2
    assert tensors == [t.data_ptr() for t in predictor.runtime._inference.parameters()]


def test_a_model_made_in_inference_mode(tiny_config: object) -> None:
    """PyTorch does not count the changes of its tensors."""
    with torch.inference_mode():
        model = randomize(SegFormer(TINY)).eval()
        predictor = Predictor(model, device="cpu", precision="bfloat16", size=64)
        before = predictor.logits(IMAGE)
        model.decoder.classifier.weight.mul_(2)
        assert not torch.equal(predictor.logits(IMAGE), before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_classifier(precision: str) -> None:
    model = SegFormerClassifier.from_variant("b0", num_classes=7, drop_path=0.5).train()
    runtime = TorchRuntime(model, "cpu", precision)
    pixels = torch.randn(2, 3, 64, 64)
    before = runtime(pixels)
    assert model.training
    with torch.no_grad():
        model.head.weight.mul_(2)
        model.head.bias.fill_(1)
        expected = copy.deepcopy(model).eval()(pixels)
    atol = 1e-5 if precision == "float32" else 0.05
    torch.testing.assert_close(runtime(pixels), expected, rtol=0, atol=atol)
    assert not torch.allclose(before, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("options", [*MODES, {"compile": True}])
def test_a_model_on_the_cpu_runs_on_a_gpu(tiny_model: SegFormer, options: dict) -> None:
    predictor = Predictor(tiny_model, device="cuda", size=64, **options)
    for _ in range(3):
        expected = logits(tiny_model, {})
        torch.testing.assert_close(predictor.logits(IMAGE).cpu(), expected, rtol=0, atol=0.1)
        assert {p.device.type for p in tiny_model.parameters()} == {"cpu"}
        train(tiny_model, 1)
    tiny_model.cuda()
    found = predictor.logits(IMAGE).cpu()
    torch.testing.assert_close(found, logits(tiny_model, {}), rtol=0, atol=0.1)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "xpu"])
def test_devices_that_are_not_there(tiny_model: SegFormer, device: str) -> None:
    with pytest.raises(ValueError, match=device):
        TorchRuntime(tiny_model, device)


def test_readers_depend_on_the_device() -> None:
    assert default_readers(torch.device("cpu")) == 2
    assert 2 <= default_readers(torch.device("cuda")) <= 8


def test_errors_of_exhausted_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))
