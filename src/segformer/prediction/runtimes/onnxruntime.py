"""Logits from pixels with ONNX Runtime, on a CPU.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segformer.machine import inference_threads
from segformer.prediction.runtimes.base import RuntimeUnavailable, as_kind
from segformer.prediction.runtimes.graphs import GraphFile, require


class ONNXRuntime:
    """Runs a graph with ONNX Runtime, at any size.

    Args:
        graph: The graph.
        precision: "float32", the only one that ONNX Runtime has on a CPU.

    Raises:
        RuntimeUnavailable: ONNX Runtime is not installed, or does not have the precision.
        ValueError: The file cannot be read.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, graph: GraphFile, precision: str = "float32"):
        if precision != "float32":
            raise RuntimeUnavailable(
                f"onnxruntime does not compute in {precision} on a CPU; use float32, or runtime "
                "openvino or torch"
            )
        onnxruntime = require("onnxruntime", "onnxruntime")
        self.graph = graph
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Its threads wait for each other by spinning: with fewer free CPUs than threads it is twice
        # as slow as with one thread
        options.intra_op_num_threads = inference_threads(only_idle=True)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(
                graph.path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has a class for each of its error codes
            raise ValueError(
                f"{graph.path}: ONNX Runtime {onnxruntime.__version__} cannot read it; it may be "
                "damaged, or need a newer ONNX Runtime"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, pixels: Any) -> Any:
        """(B, C, H, W) float32 -> logits (B, K, ceil(H / 4), ceil(W / 4)) or (B, K), float32."""
        array = np.ascontiguousarray(pixels, np.float32)
        self.graph.check(array.shape)
        try:
            (found,) = self._session.run(None, {self._input: array})
        except Exception as error:
            if "allocate memory" in str(error):
                raise MemoryError(str(error)) from None
            raise
        return found if isinstance(pixels, np.ndarray) else as_kind(found, pixels)
