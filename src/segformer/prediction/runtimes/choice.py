"""Which runtime runs a model: the one that is asked for, or the fastest of those installed.

What is fastest differs with the processor, the size of the model and the precision. So "auto"
measures it once for each of them, and keeps the result on disk.

Legend: B batch, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer.config import SegFormerConfig
from segformer.files import write_json
from segformer.machine import available_cpus
from segformer.prediction.config import RuntimeName
from segformer.prediction.runtimes.base import Runtime, RuntimeUnavailable
from segformer.prediction.runtimes.cache import cache_folder, key_of
from segformer.prediction.runtimes.graphs import can_convert

if TYPE_CHECKING:
    from segformer.model.segformer import SegFormer, SegFormerClassifier

logger = logging.getLogger(__name__)

_SIDE = 512
"""Pixels of the square image with which runtimes are compared."""

_ROUNDS = 3
"""Measured runs of each runtime, in turns; the fastest counts, as other processes only delay."""


def open_runtime(
    model: SegFormer | SegFormerClassifier,
    name: RuntimeName,
    device: str | None = None,
    precision: str = "float32",
    *,
    compile: bool = False,
) -> Runtime:
    """What runs a model.

    Args:
        model: The model; it is not changed.
        name: "torch", "openvino", "onnxruntime", or "auto": the fastest of those installed.
        device: Where to run; all but PyTorch run on the CPU only.
        precision: "float32" or "bfloat16".
        compile: Compile with PyTorch.

    Raises:
        RuntimeUnavailable: The runtime is not installed, or cannot run with these options.
        ValueError: The device is not available.
    """
    from segformer.prediction.runtimes.converted import ConvertedRuntime
    from segformer.prediction.runtimes.pytorch import TorchRuntime, best_device

    if name == "auto":
        on_cpu = str(device or best_device()) == "cpu"
        name = _fastest(model, precision) if on_cpu and not compile else "torch"
    if name == "torch":
        return TorchRuntime(model, device, precision, compile=compile)
    if device not in (None, "cpu"):
        raise RuntimeUnavailable(f"runtime {name} runs on the CPU, not on {device}")
    if compile:
        raise RuntimeUnavailable("compile is an option of runtime torch")
    return ConvertedRuntime(model, name, precision)


def candidates(precision: str) -> list[RuntimeName]:
    """Runtimes that are installed and have a precision on a CPU, PyTorch first.

    ONNX Runtime is left out where OpenVINO is installed, which is faster.
    """
    found: list[RuntimeName] = ["torch"]
    if can_convert("openvino"):
        return [*found, "openvino"]
    runs = find_spec("onnxruntime") is not None and can_convert("onnx")
    return [*found, "onnxruntime"] if runs and precision == "float32" else found


def known_times(config: SegFormerConfig, precision: str) -> dict[str, float] | None:
    """Seconds of each candidate for an image of 512 x 512, if "auto" has measured them here."""
    try:
        found = json.loads(_record(config, precision).read_text(encoding="utf-8"))["seconds"]
        return {str(name): float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def describe_auto(config: SegFormerConfig, precision: str = "float32") -> str:
    """What "auto" takes for a model on the CPU, and why, in a few words."""
    names = candidates(precision)
    if len(names) == 1:
        return "torch (pip install 'segformer[openvino]' is often faster)"
    seconds = known_times(config, precision)
    if seconds is None:
        return f"the faster of {' and '.join(names)}, measured when it is first used"
    best = min(seconds, key=lambda name: seconds[name])
    shown = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    return f"{best} ({shown} for {_SIDE} x {_SIDE} pixels)"


def _fastest(model: SegFormer | SegFormerClassifier, precision: str) -> RuntimeName:
    names = candidates(precision)
    if len(names) == 1:
        return "torch"
    seconds = known_times(model.config, precision)
    if seconds is None:
        try:
            seconds = _measure(model, names, precision)
        except (ValueError, RuntimeError, OSError) as error:
            logger.warning(f"only torch can run this model: {error}")
            return "torch"
        try:
            write_json(_record(model.config, precision), {"seconds": seconds})
        except OSError as error:
            logger.info(f"{cache_folder()}: what is fastest is not kept: {error.strerror}")
    return min(names, key=lambda name: seconds[name])


def _measure(
    model: SegFormer | SegFormerClassifier, names: list[RuntimeName], precision: str
) -> dict[str, float]:
    import numpy as np

    pixels = np.zeros((1, model.config.in_channels, _SIDE, _SIDE), np.float32)
    runs: dict[str, Callable[[Any], Any]] = {
        name: open_runtime(model, name, "cpu", precision) for name in names
    }
    seconds = dict.fromkeys(runs, float("inf"))
    for measured in range(-1, _ROUNDS):  # the first round compiles
        for name, run in runs.items():
            run(pixels)  # after another runtime, the caches hold its weights
            began = time.perf_counter()
            run(pixels)
            if measured >= 0:
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def _record(config: SegFormerConfig, precision: str) -> Path:
    """File with the times of a kind of model on this machine."""
    versions = [version(name) for name in ("torch", "openvino", "onnxruntime") if find_spec(name)]
    machine = [platform.node(), _processor(), available_cpus(), *versions]
    network = [config.hidden_sizes, config.depths, config.decoder_hidden_size, config.num_classes]
    key = key_of(*machine, *network, config.in_channels, precision)
    return cache_folder() / "times" / f"{key}.json"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith("model name")), "")
