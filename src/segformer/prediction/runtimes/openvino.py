"""Logits from pixels with OpenVINO, on a CPU.

OpenVINO is faster with a fixed input size, and compiling for a size takes as long as several runs.
So the first size is compiled at once. Other sizes run with a model for any size, and are compiled
when they have come several times.

Legend: B batch, H W pixels, h w logits, C channels, K classes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segformer.machine import inference_threads
from segformer.prediction.runtimes.base import as_kind
from segformer.prediction.runtimes.graphs import GraphFile, require

Shape: TypeAlias = tuple[int, ...]

REPEATS = 6
"""Runs of a size until it is compiled; see ``benchmarks/runtimes.py --sizes``."""

_MOST_SHAPES = 4
"""Compiled sizes that are kept, at most."""

_MOST_WEIGHTS = 1 << 30
"""Bytes of weights in the compiled sizes together; each has a copy in the layout of its kernels."""

_COUNTED_SHAPES = 1024
"""Sizes whose runs are counted; with more, the counts start again."""

_FIRST_SIDE = 128
"""Height and width of the image with which models for any size are prepared."""

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINORuntime:
    """Runs a graph with OpenVINO.

    Args:
        graph: The graph, also one in ONNX format.
        precision: "float32" or "bfloat16".

    Raises:
        RuntimeUnavailable: OpenVINO is not installed.
        ValueError: The file cannot be read.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, graph: GraphFile, precision: str = "float32"):
        openvino = require("openvino", "openvino")
        self.graph = graph
        self._openvino = openvino
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(graph.path)
        except RuntimeError as error:
            raise ValueError(
                f"{graph.path}: OpenVINO {openvino.__version__.split('-')[0]} cannot read it; it "
                "may be damaged, or written by a newer OpenVINO: export it again"
            ) from error
        self._hints = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": inference_threads(),
        }
        weights = graph.path.with_suffix(".bin")
        size = (weights if weights.is_file() else graph.path).stat().st_size
        self._most_shapes = max(1, min(_MOST_SHAPES, _MOST_WEIGHTS // max(1, size)))
        self._compiled: OrderedDict[Shape, Any] = OrderedDict()
        self._any_size: Any = None
        self._runs = Counter[Shape]()
        self._lock = Lock()  # an inference request runs one input at a time

    def __call__(self, pixels: Any) -> Any:
        """(B, C, H, W) float32 -> logits (B, K, ceil(H / 4), ceil(W / 4)) or (B, K), float32."""
        found = self._run(np.asarray(pixels, np.float32))
        return found if isinstance(pixels, np.ndarray) else as_kind(found, pixels)

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self.graph.check(pixels.shape)
        tokens = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))  # a view of what it was read as
        with self._lock:
            request = self._request(tokens.shape)
            end = request.model_outputs[0]
            fixed = end.partial_shape.is_static
            if fixed:  # it writes to memory of the result's own, which need not be copied
                request.set_output_tensor(self._openvino.Tensor(end.element_type, end.shape))
            result = request.infer([tokens], share_inputs=True, share_outputs=fixed)
        found: NDArray[np.float32] = result[0]
        return found.transpose(0, 3, 1, 2) if found.ndim == 4 else found

    def _request(self, shape: Shape) -> Any:
        """What runs this shape: compiled for it, or for any size."""
        request = self._compiled.get(shape)
        if request is not None:
            self._compiled.move_to_end(shape)
            return request
        if len(self._runs) >= _COUNTED_SHAPES:
            self._runs.clear()
        self._runs[shape] += 1
        if not self._compiled or self._runs[shape] > REPEATS:
            del self._runs[shape]  # to be compiled again after it was dropped, it must come again
            while len(self._compiled) >= self._most_shapes:
                self._compiled.popitem(last=False)
            self._compiled[shape] = self._compile(shape)
            return self._compiled[shape]
        if self._any_size is None:
            self._any_size = self._compile(None)
        return self._any_size

    def _compile(self, shape: Shape | None) -> Any:
        model = self._model.clone()
        # Channels last, as images are read and as label maps are made: no copies at the ends
        ends = self._openvino.preprocess.PrePostProcessor(model)
        layout = self._openvino.Layout
        ends.input().tensor().set_layout(layout("NHWC"))
        ends.input().model().set_layout(layout("NCHW"))
        if len(model.output().partial_shape) == 4:
            ends.output().model().set_layout(layout("NCHW"))
            ends.output().tensor().set_layout(layout("NHWC"))
        model = ends.build()
        if shape is not None:
            model.reshape(list(shape))
        if shape is not None:
            return self._core.compile_model(model, "CPU", self._hints).create_infer_request()
        hints = {**self._hints, "NUM_STREAMS": 1}  # each stream would have to be prepared
        compiled = self._core.compile_model(model, "CPU", hints)
        prepare_any_size(compiled)
        return compiled.create_infer_request()


def prepare_any_size(compiled: Any) -> None:
    """Run a compiled model for any size once, before it runs images.

    If the first image leaves a single key in attention, as images below 64 pixels do, OpenVINO
    (seen with 2026.4.1) computes wrong values for all larger images that follow.
    """
    end = compiled.input(0)
    shape = [_FIRST_SIDE if axis.is_dynamic else len(axis) for axis in end.partial_shape]
    compiled([np.zeros([1, *shape[1:]], end.element_type.to_dtype())])
