"""The exporters of PyTorch, with dynamic sizes."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.export import Dim

from segformer import SegFormer

DYNAMIC = ({0: Dim("batch"), 2: Dim("height", min=64), 3: Dim("width", min=64)},)
SIZES = [(1, 3, 77, 131), (3, 3, 160, 65)]


@pytest.mark.parametrize(("folded", "grad"), [(False, True), (True, False)])
def test_export_with_dynamic_sizes(tiny_model: SegFormer, folded: bool, grad: bool) -> None:
    model = tiny_model.fold() if folded else tiny_model
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=DYNAMIC)
    for shape in SIZES:
        pixels = torch.randn(shape)
        with torch.no_grad():
            expected = tiny_model(pixels)
            torch.testing.assert_close(exported.module()(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
@pytest.mark.filterwarnings("ignore")
def test_onnx_with_dynamic_sizes(tiny_model: SegFormer, tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "model.onnx"
    pixels = torch.randn(2, 3, 64, 96)
    torch.onnx.export(
        tiny_model,
        (pixels,),
        path,
        dynamo=True,
        input_names=["pixel_values"],
        dynamic_shapes=DYNAMIC,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    for shape in SIZES:
        pixels = torch.randn(shape)
        with torch.no_grad():
            expected = tiny_model(pixels)
        (logits,) = session.run(None, {"pixel_values": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)
