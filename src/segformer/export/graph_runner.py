"""Running a graph of either format as another program would, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from segformer.prediction.runtimes.graphs import GraphFormat
from segformer.prediction.runtimes.openvino import prepare_any_size

Run: TypeAlias = Callable[[NDArray[Any]], list[NDArray[Any]]]
"""Runs a graph: its input -> its outputs."""


def open_runner(model: Any, format: GraphFormat, *, any_size: bool = False) -> Run:
    """Prepare a graph.

    Args:
        model: A file (`pathlib.Path`), an `openvino.Model` or an `onnx.ModelProto`.
        format: Format of the graph.
        any_size: Inputs of many sizes will be given.
    """
    if format == "openvino":
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", hints)
        if any_size:
            prepare_any_size(compiled)
        return lambda pixels: [compiled(pixels)[i].copy() for i in range(len(compiled.outputs))]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    graph = model if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixel_values": pixels})
