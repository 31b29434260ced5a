"""Measure the runtimes: PyTorch, OpenVINO, ONNX Runtime; forward pass, and photograph -> label map.

    python benchmarks/runtimes.py [b0 b1 b2 b5] [--precision float32] [--rounds 5]
    python benchmarks/runtimes.py --sizes        # OpenVINO: what compiling for a size costs
    python benchmarks/runtimes.py --cold-start   # a process without PyTorch: first label map
    python benchmarks/runtimes.py --profile      # OpenVINO: time by kind of operation

Random weights, 150 classes, 512 x 512 pixels, batch 1. "exported from transformers" is the same
model as transformers builds it, with its own decoder, exported to ONNX at this size and compiled by
the runtime. The photograph is a JPEG of 1280 x 720 pixels; "transformers" is the code of its
documentation, in float32. The outputs are compared first.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import transformers
from forward import exported, peer
from photograph import documented, write_images

from segformer import Predictor, SegFormer
from segformer.export.config import ExportConfig, ExportFormat
from segformer.export.export import export_model
from segformer.prediction.config import RuntimeName
from segformer.prediction.runtimes.choice import open_runtime
from segformer.prediction.runtimes.converted import converted
from segformer.prediction.runtimes.openvino import OpenVINORuntime

Run = Callable[[], Any]
PLAIN = "openvino, exported from transformers"
OURS = "segformer, openvino"
SIDE = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("variants", nargs="*", default=["b0", "b1", "b2", "b5"])
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--cold-start", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    precisions = [options.precision] if options.precision else ["float32", "bfloat16"]
    if options.sizes:
        harness.report("runtimes_sizes", sizes(options.variants, precisions))
    elif options.cold_start:
        harness.report("runtimes_cold_start", [cold_start()])
    elif options.profile:
        harness.report("runtimes_profile", profiles(options.variants, precisions))
    else:
        harness.report("runtimes", rows(options.variants, precisions, options.rounds))


def build(variant: str) -> SegFormer:
    torch.manual_seed(0)
    model = harness.like_trained(SegFormer.from_variant(variant)).eval()
    assert isinstance(model, SegFormer)
    model.preprocessing = replace(model.preprocessing, size=(SIDE, SIDE))
    return model


def rows(variants: list[str], precisions: list[str], rounds: int) -> Iterator[harness.Row]:
    with tempfile.TemporaryDirectory() as folder:
        photograph = write_images(Path(folder), 1)[0]
        for variant in variants:
            model = build(variant)
            for precision in precisions:
                yield forward(model, variant, precision, rounds)
                yield label_map(model, variant, precision, rounds, photograph)


def forward(model: SegFormer, variant: str, precision: str, rounds: int) -> harness.Row:
    pixels = torch.randn(1, 3, SIDE, SIDE).to(memory_format=torch.channels_last)  # as images are
    found: dict[str, Run] = {}
    if installed("openvino"):
        found[PLAIN] = exported(peer(model), pixels, "openvino", precision)
        found[OURS] = partial(open_runtime(model, "openvino", "cpu", precision), pixels)
    found["segformer, torch"] = partial(open_runtime(model, "torch", "cpu", precision), pixels)
    if installed("onnxruntime") and precision == "float32":
        plain = exported(peer(model), pixels, "onnxruntime", precision)
        found["onnxruntime, exported from transformers"] = plain
        found["segformer, onnxruntime"] = partial(open_runtime(model, "onnxruntime"), pixels)
    exact = open_runtime(model, "torch", "cpu")(pixels)
    differences = {name: float((run() - exact).abs().max()) for name, run in found.items()}
    bound = 1e-3 if precision == "float32" else 0.1
    assert max(differences.values()) < bound, differences
    return harness.Row(
        f"forward {variant} {precision}",
        harness.in_turns(found, rounds),
        OURS if OURS in found else "segformer, torch",
        notes={"largest differences": {n: f"{d:.1e}" for n, d in differences.items()}},
    )


def label_map(
    model: SegFormer, variant: str, precision: Any, rounds: int, path: Path
) -> harness.Row:
    """The reference is transformers in float32, as in its documentation, for both precisions."""
    processor = transformers.SegformerImageProcessor()
    names: tuple[RuntimeName, ...] = ("auto", "torch")
    predictors = {
        f"segformer, {name}": Predictor(model, runtime=name, device="cpu", precision=precision)
        for name in names
    }
    found: dict[str, Run] = {"transformers": partial(documented, peer(model), processor, path)}
    for name, predictor in predictors.items():
        found[name] = partial(_label_map, predictor, path)
    expected = found["transformers"]()
    same = {name: float((run() == expected).mean()) for name, run in found.items()}
    assert min(same.values()) > (0.995 if precision == "float32" else 0.9), same
    chosen = type(predictors["segformer, auto"].runtime).__name__
    return harness.Row(
        f"1280 x 720 JPEG to label map, {variant} {precision}",
        harness.in_turns(found, rounds),
        "segformer, auto",
        notes={"same class": {n: f"{f:.4%}" for n, f in same.items()}, "auto": chosen},
    )


def _label_map(predictor: Predictor, path: Path) -> Any:
    return predictor(path).label_map


def sizes(variants: list[str], precisions: list[str]) -> Iterator[harness.Row]:
    """A run for any size and for a fixed size; compiling for a size, in runs that it must save."""
    for variant in variants:
        model = build(variant)
        for precision in precisions:
            graph = converted(model, "openvino")
            pixels = np.zeros((1, SIDE, SIDE, 3), np.float32)
            runtime = OpenVINORuntime(graph, precision)
            began = time.perf_counter()
            fixed = runtime._compile(pixels.shape)
            compiling = time.perf_counter() - began
            any_size = runtime._compile(None)
            runs = {"any size": any_size, "fixed size": fixed}
            seconds = harness.in_turns(
                {name: partial(request.infer, [pixels]) for name, request in runs.items()}, 5
            )
            gain = seconds["any size"] - seconds["fixed size"]
            yield harness.Row(
                f"OpenVINO {variant} {precision}",
                seconds,
                "fixed size",
                notes={
                    "seconds to compile": round(compiling, 2),
                    "runs until compiling pays": round(compiling / gain, 1) if gain > 0 else None,
                },
            )
            yield changing(variant, precision, graph)


def changing(variant: str, precision: str, graph: Any) -> harness.Row:
    """Twenty images, each of another size: all compiled, none compiled, and as `Predictor` does."""
    shapes = [(1, SIDE - 8 * i, SIDE + 4 * i, 3) for i in range(20)]
    each, none, ours = (OpenVINORuntime(graph, precision) for _ in range(3))
    policies: dict[str, Callable[[tuple[int, ...]], Any]] = {
        "compiled for each size": each._compile,
        "any size": lambda _: none._any_size,
        "segformer": ours._request,
    }
    seconds = {}
    for name, request in policies.items():
        began = time.perf_counter()
        if name == "any size":
            none._any_size = none._compile(None)
        for shape in shapes:
            request(shape).infer([np.zeros(shape, np.float32)])
        seconds[name] = time.perf_counter() - began
    return harness.Row(f"20 images of 20 sizes, {variant} {precision}", seconds, "segformer")


def profiles(variants: list[str], precisions: list[str]) -> Iterator[harness.Row]:
    """Time of our graph by kind of operation, and the floor: all products at full speed."""
    for variant in variants:
        model = build(variant)
        pixels = np.random.default_rng(0).standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)
        operations = harness.operations(partial(model, torch.zeros(1, 3, SIDE, SIDE)))
        for precision in precisions:
            runtime = OpenVINORuntime(converted(model, "openvino"), precision)
            runtime._hints["PERF_COUNT"] = True
            request = runtime._compile(pixels.shape)
            seconds = harness.in_turns({"all": partial(request.infer, [pixels])}, 5)
            runs = [_times_by_kind(request, pixels) for _ in range(20)]
            for kind in sorted(runs[0], key=runs[0].__getitem__, reverse=True):
                seconds[kind] = statistics.median(run[kind] for run in runs)
            floor = operations / harness.product_rate(getattr(torch, precision))
            yield harness.Row(f"OpenVINO {variant} {precision}", seconds, "all", floor)


def _times_by_kind(request: Any, pixels: Any) -> dict[str, float]:
    """Seconds by kind of operation; OpenVINO merges element by element operations and attention."""
    request.infer([pixels])
    seconds: dict[str, float] = defaultdict(float)
    for node in request.profiling_info:
        attention = "attention" in node.node_name or "permute" in node.node_name
        kind = "attention" if node.node_type == "Subgraph" and attention else node.node_type
        seconds[kind] += node.real_time.total_seconds()
    return {kind: value for kind, value in seconds.items() if value}


def cold_start() -> harness.Row:
    """A new process, until the label map of the shipped model is there."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_images(Path(folder) / "images", 1)[0]
        programs = {"segformer, torch": "segformer.Predictor()"}
        formats: tuple[ExportFormat, ...] = ("openvino", "onnx")
        for format in formats:
            out = Path(folder) / format
            export_model("human-parsing-b0", out, ExportConfig(format=format))
            programs[f"segformer, exported ({format})"] = f"segformer.Predictor({str(out)!r})"
        for name, program in programs.items():
            blocked = "" if name.endswith("torch") else "import sys; sys.modules['torch'] = None; "
            code = f"{blocked}import segformer; {program}({str(path)!r}).label_map"
            runs = []
            for _ in range(6):
                began = time.perf_counter()
                subprocess.run([sys.executable, "-c", code], check=True)
                runs.append(time.perf_counter() - began)
            seconds[name] = sorted(runs[1:])[len(runs[1:]) // 2]
    return harness.Row("cold start, B0", seconds, "segformer, exported (openvino)")


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(needed) is not None for needed in (name, "onnx"))


if __name__ == "__main__":
    main()
