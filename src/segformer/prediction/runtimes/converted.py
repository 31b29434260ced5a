"""Models that are converted for another runtime than PyTorch on their first use, and kept on disk.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import segformer
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.model.tracing import Graph
from segformer.prediction.runtimes.base import Runtime
from segformer.prediction.runtimes.cache import cached, key_of
from segformer.prediction.runtimes.graphs import GRAPH_FILES, GraphFile, GraphFormat, convert
from segformer.prediction.runtimes.onnxruntime import ONNXRuntime
from segformer.prediction.runtimes.openvino import OpenVINORuntime
from segformer.prediction.runtimes.pytorch import model_tensors, same_tensors, tensor_versions

logger = logging.getLogger(__name__)

_RUNTIMES: dict[str, tuple[type[OpenVINORuntime | ONNXRuntime], GraphFormat, str]] = {
    "openvino": (OpenVINORuntime, "openvino", "openvino"),
    "onnxruntime": (ONNXRuntime, "onnx", "onnxscript"),
}
"""Class, graph format, and the package whose version decides on the graph, by runtime."""


class ConvertedRuntime:
    """Runs a model with OpenVINO or ONNX Runtime, as the model is at each call.

    The model is converted at once, and again at the first call after its weights have changed,
    which takes some seconds. Converted models are kept on disk
    (`segformer.prediction.runtimes.cache`).

    Args:
        model: Segmentation model or classifier; it is not changed.
        name: "openvino" or "onnxruntime".
        precision: "float32" or "bfloat16".

    Raises:
        RuntimeUnavailable: The runtime is not installed, or does not have the precision.
    """

    device = "cpu"

    def __init__(
        self, model: SegFormer | SegFormerClassifier, name: str, precision: str = "float32"
    ):
        self.model, self.name, self.precision = model, name, precision
        self._source: list[Tensor] = []
        self._versions: list[tuple[int, int]] | None = None
        self._hash = ""
        self._runtime: Runtime
        self._update()

    def __call__(self, pixels: Any) -> Any:
        """(B, C, H, W) float32 -> logits (B, K, ceil(H / 4), ceil(W / 4)) or (B, K), float32."""
        self._update()
        return self._runtime(pixels)

    def _update(self) -> None:
        """Follow the model: convert it again if its values have changed."""
        source = list(model_tensors(self.model))
        versions = tensor_versions(source)
        if (
            same_tensors(source, self._source)
            and versions is not None
            and versions == self._versions
        ):
            return
        found = weights_hash(self.model)
        if found != self._hash:
            runtime, _, _ = _RUNTIMES[self.name]
            self._runtime = runtime(converted(self.model, self.name, found), self.precision)
        self._source, self._versions, self._hash = source, versions, found


def converted(
    model: SegFormer | SegFormerClassifier, name: str, weights: str | None = None
) -> GraphFile:
    """A model's graph for a runtime, at any size, from the disk cache.

    Args:
        model: The model.
        name: "openvino" or "onnxruntime".
        weights: The model's `weights_hash`, if it is known.
    """
    _, format, package = _RUNTIMES[name]
    channels = model.config.in_channels

    def write(folder: Path) -> None:
        logger.info(f"converting the model for {name}; it is kept for the next time")
        convert(Graph(model), channels, folder / GRAPH_FILES[format], format, None)

    parts = [_code_hash(), torch.__version__, package, _version(package), "float32"]
    folder = cached(key_of(weights or weights_hash(model), *parts), write)
    return GraphFile(folder / GRAPH_FILES[format], format, channels)


def weights_hash(model: SegFormer | SegFormerClassifier) -> str:
    """A hash of a model's configuration and of all of its values."""
    found = hashlib.sha256(repr((model.kind, asdict(model.config))).encode())
    for name, tensor in model.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@cache
def _code_hash() -> str:
    """A hash of the code that decides on a graph: it may change within a version of the package."""
    found = hashlib.sha256(segformer.__version__.encode())
    package = Path(segformer.__file__).parent
    for path in sorted([*package.glob("model/*.py"), *package.glob("prediction/runtimes/*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "none"  # the conversion will name the package
