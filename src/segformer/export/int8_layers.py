"""Which layers of a graph compute in 8-bit integers, in the two formats."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from segformer.prediction.runtimes.graphs import GraphFormat

_LAYERS = {
    "Convolution", "GroupConvolution", "MatMul", "ScaledDotProductAttention",  # OpenVINO
    "Conv", "Gemm", "Attention",  # ONNX; MatMul is in both
}  # fmt: skip
"""Operations that multiply; all others take little arithmetic."""

PASSES_ON = {
    "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity",
    "Convert", "Subtract", "Multiply",  # from 8-bit weights to their float values
}  # fmt: skip
"""Operations between a quantizer and its layer; so is the concatenation of several."""

_QUANTIZERS = {"FakeQuantize", "DequantizeLinear"}


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies.

    Attributes:
        name: Name of its operation in the graph.
        weights: A hash of its weights; None if it multiplies activations with each other, or if
            its weights are quantized.
        int8: Whether it computes in 8-bit integers.
        quantizers: Names of the quantizers that it reads.
    """

    name: str
    weights: str | None
    int8: bool
    quantizers: tuple[str, ...]


@dataclass(frozen=True)
class _Node:
    """A node of either format: what it is, where its inputs come from, its constant value."""

    name: str
    kind: str
    inputs: Callable[[], list[_Node]]
    value: Callable[[], NDArray[Any]] | None = None


def layers(model: Any, format: GraphFormat) -> list[Layer]:
    """The layers of a graph of OpenVINO (`openvino.Model`) or ONNX (`onnx.ModelProto`)."""
    nodes = _openvino_nodes(model) if format == "openvino" else _onnx_nodes(model)
    return [_layer(node) for node in nodes if node.kind in _LAYERS]


def parameter_names(network: nn.Module) -> dict[str, str]:
    """Names of the modules of a network, by the hash of their weights in a graph."""
    names = {}
    for name, parameter in network.named_parameters():
        values = parameter.detach().float().numpy()
        for stored in (values, values.T):  # some graphs store the matrices transposed
            names[_hash(stored)] = name.removesuffix(".weight")
    return names


def wrong_in_int8(model: Any) -> list[str]:
    """Names of the layers of an `openvino.Model` that OpenVINO computes wrongly in int8.

    On processors with AMX, OpenVINO 2026.4 returns other values for convolutions with a kernel as
    large as the stride, of 4 or more, and few input channels; of 16 such shapes, 9 were wrong. Of
    B0 to B5, only the convolutions of B0 that reduce keys and values in stage 1 are like that.

    Args:
        model: The float32 graph.
    """
    names = []
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Convolution":
            _, channels, *kernel = op.input_value(1).get_shape()
            if kernel == list(op.get_strides()) and min(kernel) >= 4 and channels < 64:
                names.append(op.get_friendly_name())
    return names


def _layer(node: _Node) -> Layer:
    inputs = [_sources(given) for given in node.inputs()]
    stored = [found for found in inputs if all(map(_is_stored, found))]
    constants = [one for found in inputs for one in found if one.value is not None]
    hashed = _hash(constants[0].value()) if constants and constants[0].value is not None else None
    quantized = len(stored) >= 2 and all(
        _is_quantized(one) for found in stored[:2] for one in found
    )
    quantizers = tuple(one.name for found in inputs for one in found if one.kind in _QUANTIZERS)
    return Layer(node.name, hashed, quantized, quantizers)


def _sources(node: _Node) -> list[_Node]:
    """The quantizers, constants or operations that a value comes from."""
    while node.kind in PASSES_ON and node.inputs():
        node = node.inputs()[0]
    if node.kind == "Concat":
        return [found for given in node.inputs() for found in _sources(given)]
    return [node]


def _is_stored(node: _Node) -> bool:
    return node.value is not None or node.kind in _QUANTIZERS


def _is_quantized(node: _Node) -> bool:
    if node.value is None:
        return node.kind in _QUANTIZERS
    return node.value().dtype in (np.int8, np.uint8)


def _hash(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _openvino_nodes(model: Any) -> Iterator[_Node]:
    def node(op: Any) -> _Node:
        kind = op.get_type_name()
        return _Node(
            op.get_friendly_name(),
            kind,
            lambda: [node(op.input_value(i).get_node()) for i in range(op.get_input_size())],
            (lambda: op.data) if kind == "Constant" else None,
        )

    return map(node, model.get_ordered_ops())


def _onnx_nodes(model: Any) -> Iterator[_Node]:
    import onnx

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {output: op for op in model.graph.node for output in op.output}

    def given(name: str) -> _Node:
        if name in stored:
            return _Node(name, "Constant", list, lambda: onnx.numpy_helper.to_array(stored[name]))
        return node(made[name]) if name in made else _Node(name, "Parameter", list)

    def node(op: Any) -> _Node:
        return _Node(op.name, op.op_type, lambda: [given(name) for name in op.input if name])

    return map(node, model.graph.node)
