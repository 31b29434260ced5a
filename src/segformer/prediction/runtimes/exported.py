"""Models in folders that `segformer export` wrote; they run without PyTorch.

Legend: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer.checkpoints import layout
from segformer.checkpoints.errors import CheckpointError
from segformer.classes import ClassSet
from segformer.config import SegFormerConfig
from segformer.image import Preprocessing
from segformer.prediction.config import RuntimeName
from segformer.prediction.runtimes.base import Runtime, RuntimeUnavailable
from segformer.prediction.runtimes.graphs import GRAPH_FILES, GraphFile, GraphFormat
from segformer.prediction.runtimes.onnxruntime import ONNXRuntime
from segformer.prediction.runtimes.openvino import OpenVINORuntime

RECORD_FILE = "export.json"
"""How a model was exported, and what was checked."""

_PLACES: dict[GraphFormat, tuple[Path, ...]] = {
    "openvino": (Path(GRAPH_FILES["openvino"]),),
    "onnx": (
        *(Path("onnx", name) for name in ("model.onnx", "model_fp16.onnx", "model_quantized.onnx")),
        Path("model.onnx"),
    ),
}
"""Where a graph lies in its folder, by format."""


@dataclass(frozen=True)
class ExportedModel:
    """A model as a graph in a folder.

    Attributes:
        folder: The folder.
        kind: "segmenter" or "classifier".
        config: Configuration.
        classes: Classes.
        preprocessing: How an image becomes the model's input.
        graph: The file with the graph.
    """

    folder: Path
    kind: str
    config: SegFormerConfig
    classes: ClassSet
    preprocessing: Preprocessing
    graph: GraphFile


def is_exported(source: object) -> bool:
    """Whether a source of a model is a folder with a graph and without weights for PyTorch."""
    if not isinstance(source, (str, Path)) or _find_graph(Path(source)) is None:
        return False
    return not any((Path(source) / name).is_file() for name in layout.WEIGHT_FILES)


def open_exported(folder: str | Path) -> ExportedModel:
    """Read what a folder says of its model; the graph itself is not read.

    Raises:
        CheckpointError: A file is missing or damaged.
        RuntimeUnavailable: The graph has another input or output than `Predictor` needs.
    """
    folder = Path(folder)
    format, path = find_graph(folder)
    record: dict[str, Any] = {}
    if (folder / RECORD_FILE).is_file():
        record = layout.read_json(folder / RECORD_FILE)
    for end, needed in (("input", "float"), ("output", "logits")):
        if record.get(end, needed) != needed:
            raise RuntimeUnavailable(
                f"{folder}: was exported with --{end} {record[end]}; Predictor takes folders with "
                f"--{end} {needed}"
            )
    entries = layout.read_json(folder / layout.CONFIG_FILE)
    kind = layout.kind_from_hub(entries)
    if kind == "encoder":
        raise RuntimeUnavailable(f"{folder}: holds an encoder alone, which gives no classes")
    config, classes = layout.config_from_hub(entries, folder / layout.CONFIG_FILE)
    preprocessing = layout.preprocessing_from_hub(
        layout.read_json(folder / layout.PREPROCESSING_FILE), folder / layout.PREPROCESSING_FILE
    )
    size = record.get("size")
    fixed = (int(size[0]), int(size[1])) if size else None
    graph = GraphFile(path, format, config.in_channels, fixed)
    return ExportedModel(folder, kind, config, classes, preprocessing, graph)


def open_graph_runtime(
    model: ExportedModel,
    name: RuntimeName | None = None,
    device: str | None = None,
    precision: str = "float32",
) -> Runtime:
    """What runs an exported model.

    Args:
        model: The model.
        name: "openvino" or "onnxruntime". Default and "auto": that of the format.
        device: None or "cpu".
        precision: "float32" or "bfloat16".

    Raises:
        RuntimeUnavailable: The runtime is not installed, or cannot run the graph.
    """
    own: RuntimeName = "openvino" if model.graph.format == "openvino" else "onnxruntime"
    if name in (None, "auto"):
        name = own
    if name == "torch" or (name == "onnxruntime" and own == "openvino"):
        raise RuntimeUnavailable(f"{model.folder}: exported for {own}; it cannot run with {name}")
    if device not in (None, "cpu"):
        raise RuntimeUnavailable(f"runtime {name} runs on the CPU, not on {device}")
    return (OpenVINORuntime if name == "openvino" else ONNXRuntime)(model.graph, precision)


def find_graph(folder: Path) -> tuple[GraphFormat, Path]:
    """The format and the file of the graph in a folder.

    Raises:
        CheckpointError: There is none.
    """
    found = _find_graph(folder)
    if found is None:
        raise CheckpointError(f"{folder}: there is no {' or '.join(GRAPH_FILES.values())} in it")
    return found


def _find_graph(folder: Path) -> tuple[GraphFormat, Path] | None:
    for format, places in _PLACES.items():
        for place in places:
            try:
                if (folder / place).is_file():
                    return format, folder / place
            except OSError:  # a name too long for the file system
                return None
    return None
