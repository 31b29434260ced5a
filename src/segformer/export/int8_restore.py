"""Putting layers of a quantized graph back into float32, in the two formats."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from segformer.export.int8_layers import PASSES_ON, layers
from segformer.prediction.runtimes.graphs import GraphFormat

_QUANTIZED = (np.int8, np.uint8)


def groups(quantized: Any, format: GraphFormat) -> list[frozenset[str]]:
    """Names of the int8 layers; those that read the same quantizer are in one group.

    Such layers go back to float32 together, such as the query of an attention and the convolution
    that reduces its keys and values.
    """
    found: list[tuple[set[str], set[str]]] = []
    for layer in layers(quantized, format):
        if not layer.int8:
            continue
        names, quantizers = {layer.name}, set(layer.quantizers)
        apart = []
        for group in found:
            if group[1] & quantizers:
                names |= group[0]
                quantizers |= group[1]
            else:
                apart.append(group)
        found = [*apart, (names, quantizers)]
    return [frozenset(names) for names, _ in found]


def restore(quantized: Any, original: Any, names: Collection[str], format: GraphFormat) -> Any:
    """A copy of a quantized graph in which some layers compute in float32.

    Args:
        quantized: The graph, as NNCF returns it.
        original: The float32 graph that it was made from.
        names: Names of the layers, whole groups (`groups`). Their weights and biases are those of
            the original.
        format: Format of the graphs.
    """
    if format == "openvino":
        return _restore_openvino(quantized, original, names)
    return _restore_onnx(quantized, original, names)


def _restore_openvino(quantized: Any, original: Any, names: Collection[str]) -> Any:
    from openvino import opset13

    model = quantized.clone()
    originals = {op.get_friendly_name(): op for op in original.get_ops()}

    def paths(op: Any, i: int) -> list[list[Any]]:
        """The nodes from an input back to each quantizer, constant or other operation."""
        nodes = [op.input_value(i).get_node()]
        while nodes[-1].get_type_name() in PASSES_ON and nodes[-1].get_input_size():
            nodes.append(nodes[-1].input_value(0).get_node())
        if nodes[-1].get_type_name() == "Concat":
            joined = nodes[-1]
            return [path for j in range(joined.get_input_size()) for path in paths(joined, j)]
        return [nodes]

    def constant(op: Any, i: int) -> Any:
        return opset13.constant(paths(originals[op.get_friendly_name()], i)[0][-1].data).output(0)

    def redirect(node: Any, source: Any) -> None:
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(source)

    for layer in model.get_ordered_ops():
        if layer.get_friendly_name() not in names:
            continue
        read = [(i, path) for i in range(layer.get_input_size()) for path in paths(layer, i)]
        for i, nodes in read:
            if nodes[-1].get_type_name() == "FakeQuantize":
                redirect(nodes[-1], nodes[-1].input_value(0))
            elif nodes[-1].get_type_name() == "Constant" and nodes[-1].data.dtype in _QUANTIZED:
                scaled = [node for node in nodes if node.get_type_name() == "Multiply"]
                redirect(scaled[-1], constant(layer, i))
        for reader in layer.output(0).get_target_inputs():
            bias = reader.get_node()
            if bias.get_type_name() != "Add" or bias.get_friendly_name() not in originals:
                continue
            for i in range(2):  # NNCF corrects biases for the error of the 8-bit weights
                if bias.input_value(i).get_node().get_type_name() == "Constant":
                    bias.input(i).replace_source_output(constant(bias, i))
    model.validate_nodes_and_infer_types()
    return model


def _restore_onnx(quantized: Any, original: Any, names: Collection[str]) -> Any:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {output: op for op in model.graph.node for output in op.output}
    originals = {op.name: op for op in original.graph.node}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    made_before = {output: op for op in original.graph.node for output in op.output}
    redirected: dict[str, str] = {}

    def sources(name: str, made: dict[str, Any]) -> list[str]:
        """The outputs of quantizers, tensors or outputs that a value comes from."""
        while name in made and made[name].op_type in PASSES_ON:
            name = made[name].input[0]
        if name in made and made[name].op_type == "Concat":
            return [found for given in made[name].input for found in sources(given, made)]
        return [name]

    def weight(name: str, i: int) -> Any:
        """The tensor that an input of an original operation comes from."""
        return weights[sources(originals[name].input[i], made_before)[0]]

    def restore_tensors(op: Any) -> None:
        for i, given in enumerate(op.input):
            if given in stored and op.name in originals:
                stored[given].CopyFrom(weight(op.name, i))
                stored[given].name = given

    for layer in (op for op in model.graph.node if op.name in names):
        read = [(i, name) for i, given in enumerate(layer.input) for name in sources(given, made)]
        for i, found in read:
            if found not in made or made[found].op_type != "DequantizeLinear":
                continue
            before = made[found].input[0]
            if before in stored:
                tensor = weight(layer.name, i)
                if tensor.name not in stored:
                    model.graph.initializer.append(tensor)
                    stored[tensor.name] = model.graph.initializer[-1]
                redirected[found] = tensor.name
            else:
                redirected[found] = made[before].input[0]
        restore_tensors(layer)
        for op in _readers(model.graph, layer.output[0]):
            if op.op_type == "Add":
                restore_tensors(op)
    for op in model.graph.node:
        for i, given in enumerate(op.input):
            op.input[i] = redirected.get(given, given)
    _prune(model.graph)
    return model


def _readers(graph: Any, name: str) -> Iterable[Any]:
    return [op for op in graph.node if name in op.input]


def _prune(graph: Any) -> None:
    """Remove quantizers and tensors of an ONNX graph that nothing reads."""
    while True:
        read = {name for op in graph.node for name in op.input} | {o.name for o in graph.output}
        unread = [
            op
            for op in graph.node
            if op.op_type in ("QuantizeLinear", "DequantizeLinear") and op.output[0] not in read
        ]
        if not unread:
            break
        for op in unread:
            graph.node.remove(op)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
