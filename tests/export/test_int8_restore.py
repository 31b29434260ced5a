"""Layers of a quantized graph go back to float32, in a small graph of each format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segformer.export import quantize as quantizing
from segformer.export.int8_layers import layers, wrong_in_int8
from segformer.export.int8_restore import groups, restore
from segformer.export.int8_search import fewest, rank

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
openvino = pytest.importorskip("openvino", reason="openvino is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("nncf", reason="nncf is not installed")

FORMATS = ("onnx", "openvino")
NAMES = ("convolution", "left", "right", "joined")
"""The second and the third read the output of the first, the last those of both, concatenated."""


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"convolution": (8, 3, 3, 3)} | dict.fromkeys(NAMES[1:], (4, 8, 1, 1))
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def biases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(len(value), np.float32) for name, value in weights().items()}


def build_openvino() -> Any:
    from openvino import opset13 as ops

    def convolve(given: Any, name: str, pad: int) -> Any:
        found = ops.convolution(
            given, ops.constant(weights()[name]), [1, 1], [pad, pad], [pad, pad], [1, 1]
        )
        found.set_friendly_name(name)
        added = ops.add(found, ops.constant(biases()[name][None, :, None, None]))
        added.set_friendly_name(f"{name}_bias")
        return added

    pixels = ops.parameter([1, 3, -1, -1], np.float32, name="pixel_values")
    pixels.output(0).get_tensor().set_names({"pixel_values"})
    first = ops.relu(convolve(pixels, "convolution", 1))
    both = ops.concat([convolve(first, "left", 0), ops.tanh(convolve(first, "right", 0))], 1)
    return openvino.Model([ops.result(convolve(both, "joined", 0))], [pixels], "small")


def build_onnx() -> Any:
    make = onnx.helper.make_node

    def convolve(given: str, name: str, pad: int) -> Any:
        given = [given, f"{name}.weight", f"{name}.bias"]
        return make("Conv", given, [name], name, pads=[pad] * 4)

    nodes = [
        convolve("pixel_values", "convolution", 1),
        make("Relu", ["convolution"], ["first"], "relu"),
        convolve("first", "left", 0),
        convolve("first", "right", 0),
        make("Tanh", ["right"], ["bounded"], "tanh"),
        make("Concat", ["left", "bounded"], ["both"], "concat", axis=1),
        convolve("both", "joined", 0),
    ]
    tensors = [
        onnx.numpy_helper.from_array(value, f"{name}.{kind}")
        for kind, values in (("weight", weights()), ("bias", biases()))
        for name, value in values.items()
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("pixel_values", [1, 3, 16, 16]), ("joined", [1, 4, 16, 16]))
    ]
    graph = onnx.helper.make_graph(nodes, "small", [ends[0]], [ends[1]], tensors)
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal((1, 3, 16, 16), np.float32) for _ in range(count)]


def run(model: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """With the runtime's own functions alone."""
    if isinstance(model, openvino.Model):
        hints = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", hints)
        return [compiled(pixels)[0].copy() for pixels in inputs]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return [session.run(None, {"pixel_values": pixels})[0] for pixels in inputs]


@pytest.fixture(scope="module", params=FORMATS)
def graphs(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """Format, float32 graph and int8 graph."""
    nncf = quantizing._require_nncf()
    model = build_onnx() if request.param == "onnx" else build_openvino()
    data = nncf.Dataset(images(4), lambda pixels: {"pixel_values": pixels})
    with quantizing._quiet():
        kind = nncf.ModelType.TRANSFORMER
        return request.param, model, nncf.quantize(model, data, subset_size=4, model_type=kind)


def error(found: Any, model: Any) -> float:
    pairs = zip(run(found, images(3)), run(model, images(3)), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def test_layers_that_share_a_quantizer_are_one_group(graphs: tuple[str, Any, Any]) -> None:
    format, model, quantized = graphs
    found = {
        frozenset(name.split("/")[-1] for name in group) for group in groups(quantized, format)
    }
    assert found == {frozenset(names) for names in (["convolution"], ["left", "right"], ["joined"])}
    assert groups(model, format) == []


def test_all_layers_go_back(graphs: tuple[str, Any, Any]) -> None:
    """With weights and corrected biases, so the outputs are those of the float32 graph."""
    format, model, quantized = graphs
    assert error(quantized, model) > 1e-3
    found = restore(quantized, model, NAMES, format)
    assert error(found, model) < 1e-5
    assert not any(layer.int8 for layer in layers(found, format))
    assert all(layer.int8 for layer in layers(quantized, format)), "the given graph was changed"


@pytest.mark.parametrize("names", [("convolution",), ("left", "right"), ("joined",)])
def test_some_layers_go_back(graphs: tuple[str, Any, Any], names: tuple[str, ...]) -> None:
    format, model, quantized = graphs
    found = restore(quantized, model, names, format)
    assert {layer.name for layer in layers(found, format) if not layer.int8} == set(names)
    assert 1e-4 < error(found, model) < error(quantized, model)


def test_no_8_bit_weights_stay(graphs: tuple[str, Any, Any]) -> None:
    """Those of restored layers would make the file larger than float32."""
    format, model, quantized = graphs

    def dtypes(graph: Any) -> set[np.dtype]:
        if format == "onnx":
            tensors = graph.graph.initializer
            return {onnx.numpy_helper.to_array(tensor).dtype for tensor in tensors}
        return {op.data.dtype for op in graph.get_ops() if op.get_type_name() == "Constant"}

    assert np.dtype(np.int8) in dtypes(quantized)
    assert np.dtype(np.int8) not in dtypes(restore(quantized, model, NAMES, format))


def test_the_layers_that_change_the_logits_most_come_first(graphs: tuple[str, Any, Any]) -> None:
    format, model, quantized = graphs
    found = rank(quantized, model, format, images(2))
    assert set(found) == set(groups(quantized, format))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    wanted = run(model, images(2))
    spread = np.mean([y.var() for y in wanted])
    for group, value in found.items():
        alone = run(restore(quantized, model, set(NAMES) - group, format), images(2))
        changes = [np.square(x - y).mean() for x, y in zip(alone, wanted, strict=True)]
        assert value == pytest.approx(np.sqrt(np.mean(changes) / spread))


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "wrong"),
    [(32, 8, 8, True), (64, 8, 8, False), (32, 2, 2, False), (3, 7, 4, False), (32, 4, 4, True)],
)
def test_convolutions_that_openvino_computes_wrongly(
    channels: int, kernel: int, stride: int, wrong: bool
) -> None:
    from openvino import opset13 as ops

    pixels = ops.parameter([1, channels, -1, -1], np.float32)
    weight = ops.constant(np.ones((16, channels, kernel, kernel), np.float32))
    found = ops.convolution(pixels, weight, [stride] * 2, [0, 0], [0, 0], [1, 1])
    found.set_friendly_name("reduction")
    model = openvino.Model([ops.result(found)], [pixels], "small")
    assert wrong_in_int8(model) == (["reduction"] if wrong else [])


@pytest.mark.parametrize("least", [1, 2, 3, 7, 8, 30, 71])
def test_the_fewest_layers_are_found(least: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= least

    assert fewest(71, holds) == least
    assert len(tried) == len(set(tried)) <= 2 * np.ceil(np.log2(least + 1)) + 1
    assert 71 not in tried
