"""Measure the forward pass of one 512 x 512 image, with this package and with transformers.

    python benchmarks/forward.py [b0 b1 b2 b5] [--neighbor] [--quota CPUS]

All use the same random weights and 150 classes. Transformers runs with its default (fused)
attention, with plain attention, compiled, and exported to ONNX Runtime and OpenVINO if these are
installed; in float32 and, if supported, in bfloat16. The outputs are compared first. The floor is
the number of operations of the folded model divided by the speed of a large matrix product.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
import transformers
from torch import Tensor, nn

from segformer import SegFormer
from segformer.prediction.runtimes.pytorch import TorchRuntime

OURS = "segformer"
Run = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("variants", nargs="*", default=["b0", "b1", "b2", "b5"])
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--without-exports", action="store_true", help="do not run ONNX Runtime and OpenVINO"
    )
    harness.add_load_options(parser)
    parser.add_argument(harness.PEAK_OF, help="internal: run in a subprocess")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    precisions = [options.precision] if options.precision else ["float32", "bfloat16"]
    if options.peak_of:
        found = contenders(options.variants[0], precisions[0], [options.peak_of])
        harness.print_peak(found[options.peak_of])
        return
    with harness.load(options.neighbor, options.quota):
        harness.report(
            harness.loaded_name("forward", options.neighbor, options.quota),
            (row(v, p, options.without_exports) for v in options.variants for p in precisions),
        )


def row(variant: str, precision: str, without_exports: bool) -> harness.Row:
    names = ["transformers", OURS, "transformers, plain attention", "transformers, compiled"]
    if not without_exports:
        names += [f"transformers, {e}" for e in ("onnxruntime", "openvino") if installed(e)]
    found = contenders(variant, precision, names)
    expected = found["transformers"]()
    differences = {name: (run() - expected).abs().max().item() for name, run in found.items()}
    bound = 1e-4 if precision == "float32" else 0.05
    assert differences[OURS] < bound, differences
    with torch.no_grad():
        folded = SegFormer.from_variant(variant).fold()
        work = harness.operations(lambda: folded(torch.zeros(1, 3, 512, 512)))
    return harness.Row(
        f"forward {variant} {precision}",
        harness.in_turns(found, 5 if variant in ("b0", "b1") else 3),
        OURS,
        work / harness.product_rate(getattr(torch, precision)),
        harness.peaks(names[:2], variant, "--precision", precision),
        {"largest differences": {n: f"{d:.1e}" for n, d in differences.items()}},
    )


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(needed) is not None for needed in (name, "onnx"))


def contenders(variant: str, precision: str, names: list[str]) -> dict[str, Run]:
    """Return functions without arguments that compute logits in float32, by name."""
    torch.manual_seed(0)
    dtype = getattr(torch, precision)
    model = harness.like_trained(SegFormer.from_variant(variant)).eval()
    assert isinstance(model, SegFormer)
    pixels = torch.randn(1, 3, 512, 512)
    found: dict[str, Run] = {}
    for name in names:
        if name == OURS:
            runtime = TorchRuntime(model, precision=precision)
            found[name] = partial(runtime, pixels)
        elif name.endswith(("onnxruntime", "openvino")):
            if precision == "float32" or name.endswith("openvino"):
                found[name] = exported(peer(model), pixels, name.split()[-1], precision)
        else:
            attention = "eager" if "plain" in name else "sdpa"
            theirs: Any = peer(model, attention).to(dtype)
            if "compiled" in name:
                theirs = torch.compile(theirs)
            found[name] = partial(run_peer, theirs, pixels.to(dtype))
    return found


def peer(model: SegFormer, attention: str = "sdpa") -> nn.Module:
    """Return the model of transformers with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(
            folder, attn_implementation=attention
        )
    return theirs.eval()


def run_peer(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(pixels).logits.float()


class _Logits(nn.Module):
    """A model with a tensor as input and output, as exporters need it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).logits


def exported(model: nn.Module, pixels: Tensor, engine: str, precision: str) -> Run:
    """Export the model of transformers to ONNX and load it, as Optimum does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(_Logits(model), (pixels,), path, dynamo=False)
        if engine == "onnxruntime":
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            feed = {session.get_inputs()[0].name: pixels.numpy()}
            return lambda: torch.from_numpy(session.run(None, feed)[0])
        import openvino

        hint = {"INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16"}
        compiled = openvino.Core().compile_model(path, "CPU", hint)
        return lambda: torch.from_numpy(compiled(pixels.numpy())[0].astype("float32"))


if __name__ == "__main__":
    main()
