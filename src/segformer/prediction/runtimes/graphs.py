"""Graphs in files: what is known of them, and converting a model to one.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from segformer.prediction.runtimes.base import RuntimeUnavailable

if TYPE_CHECKING:
    from segformer.model.tracing import Graph

GraphFormat: TypeAlias = Literal["onnx", "openvino"]

OPSET = 18
"""ONNX operator set: the first with all operators of the model, so older runtimes take it too."""

IR_VERSION = 8
"""Version of the ONNX file format, the first that this operator set may have; older runtimes refuse
newer files, as ONNX Runtime below 1.18 does those of version 10, which the exporter writes."""

GRAPH_FILES: dict[GraphFormat, str] = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
"""Name of the file that holds a graph; that of OpenVINO has a .bin file with the weights."""

_PACKAGES = {"onnx": ("onnx", "onnxscript"), "openvino": ("openvino",)}
"""Packages that write a graph, by format."""


@dataclass(frozen=True)
class GraphFile:
    """A graph of a model in a file, with normalized float32 pixels as input and logits as output.

    Attributes:
        path: The file.
        format: Its format.
        channels: C.
        size: (height, width) of the pixels that it takes, with a batch of 1; None for any size.
    """

    path: Path
    format: GraphFormat
    channels: int
    size: tuple[int, int] | None = None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the graph does not take pixels (B, C, H, W) of this shape."""
        if shape[1] != self.channels:
            raise ValueError(f"the model takes {self.channels} channels, not {shape[1]}")
        if self.size is not None and shape != (1, self.channels, *self.size):
            raise ValueError(
                f"{self.path}: exported for single images of {self.size[0]} x {self.size[1]} "
                f"pixels, not for {shape[0]} of {shape[2]} x {shape[3]}; export it without --size"
            )


def require(package: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        RuntimeUnavailable: It is not installed, or cannot be imported.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            f"{error.name} is not installed; pip install 'segformer[{extra}]' brings it"
        ) from None
    except ImportError as error:
        raise RuntimeUnavailable(f"{package} is installed but cannot be used: {error}") from None


def can_convert(format: GraphFormat) -> bool:
    """Whether the packages that write a format are installed."""
    return all(find_spec(package) is not None for package in _PACKAGES[format])


def convert(
    graph: Graph, channels: int, path: Path, format: GraphFormat, size: tuple[int, int] | None
) -> None:
    """Write a model as a graph.

    Args:
        graph: The model with what runs inside its graph.
        channels: C.
        path: File to write; existing files are replaced.
        format: Format of the file.
        size: (height, width) of the only size that it takes. Default: any size.

    Raises:
        RuntimeUnavailable: A package is not installed.
        ValueError: The model has an operation that the format does not have.
        OSError: The file cannot be written.
    """
    for package in _PACKAGES[format]:
        require(package, "onnxruntime" if format == "onnx" else format)
    from segformer.model.tracing import trace

    program, pixels = trace(graph, channels, size)
    try:
        with _quiet():
            (_write_onnx if format == "onnx" else _write_openvino)(program, pixels, path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each exporter has exceptions of its own
        _reraise_disk_error(error, path)
        raise ValueError(f"the model cannot be written as {format}: {first_line(error)}") from error


def _write_onnx(program: Any, pixels: Any, path: Path) -> None:
    import torch

    outputs = len(program.graph_signature.user_outputs)
    names = [f"feature_maps.{i}" for i in range(outputs)] if outputs > 1 else ["logits"]
    written = torch.onnx.export(
        program,
        (pixels,),
        input_names=["pixel_values"],
        output_names=names,
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    assert written is not None
    import onnx
    from onnxscript.optimizer import fold_constants

    # The exporter folds small ones only. Programs that quantize take products with stored weights
    size = max(tensor.numel() for tensor in program.state_dict.values())
    fold_constants(written.model, input_size_limit=size, output_size_limit=2 * size)
    model = written.model_proto
    model.ir_version = IR_VERSION
    _name_axes(model.graph)
    onnx.save(model, path)


def _name_axes(graph: Any) -> None:
    """Give the axes of any size the names batch, height and width instead of s1, s2, s3."""
    axes = graph.input[0].type.tensor_type.shape.dim
    symbols = [axis.dim_param for axis in axes if axis.dim_param]
    names = dict(zip(symbols, ("batch", "height", "width"), strict=False))
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(
                    r"\w+", lambda word: names.get(word[0], word[0]), axis.dim_param
                )


def _write_openvino(program: Any, pixels: Any, path: Path) -> None:
    import openvino

    from segformer.prediction.runtimes.openvino_graph import simplify

    model = openvino.convert_model(program)
    simplify(model)
    model.inputs[0].get_tensor().set_names({"pixel_values"})
    outputs = model.outputs
    for i, output in enumerate(outputs):
        name = "logits" if len(outputs) == 1 else f"feature_maps.{i}"
        output.get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters print and warn of; errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reraise_disk_error(error: BaseException, path: Path) -> None:
    """Raise an OSError if an exporter failed because the disk is full."""
    text = str(error).lower()
    if any(part in text for part in ("no space left", "file too large", "quota", "can't open")):
        raise OSError(f"{path}: cannot be written: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
