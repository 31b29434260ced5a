"""Graphs in exported folders, before and after they are quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segformer.prediction.predictor import Predictor
from segformer.prediction.runtimes.graphs import GRAPH_FILES, GraphFile, first_line

QUANTIZED_FILE = "model_quantized.onnx"
"""Name under which transformers.js looks for a model in 8-bit integers."""


def read_graph(graph: GraphFile) -> Any:
    """The graph as `openvino.Model` or `onnx.ModelProto`."""
    if graph.format == "openvino":
        import openvino

        return openvino.Core().read_model(graph.path)
    import onnx

    return onnx.load(graph.path)


def write_graph(found: Any, folder: Path, graph: GraphFile) -> None:
    """Write a graph into a copy of the exported folder, in place of the float32 graph."""
    for path in graph_files(folder):
        path.unlink()
    if graph.format == "openvino":
        import openvino

        try:
            openvino.save_model(found, folder / GRAPH_FILES["openvino"], compress_to_fp16=False)
        except RuntimeError as error:
            raise OSError(
                f"{folder}: the int8 graph cannot be written ({first_line(error)})"
            ) from error
        return
    import onnx

    onnx.save(found, folder / "onnx" / QUANTIZED_FILE)


def open_written(folder: Path) -> Predictor:
    """Open what was just written; OpenVINO does not notice all failed writes."""
    try:
        return Predictor(folder)
    except ValueError as error:
        raise OSError(
            f"{folder}: the written int8 graph cannot be read; is the disk full? "
            f"({first_line(error)})"
        ) from error


def graph_files(folder: Path) -> list[Path]:
    """The graph in a folder, and the file with its weights."""
    return sorted(
        (path for path in folder.rglob("*") if path.suffix in (".onnx", ".xml", ".bin")),
        key=lambda path: path.suffix,
        reverse=True,  # .xml before .bin
    )


def graph_size(folder: Path) -> int:
    """Bytes of the graph with its weights."""
    return sum(path.stat().st_size for path in graph_files(folder))
