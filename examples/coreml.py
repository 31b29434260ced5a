"""Write a segmentation model for Core ML, which runs on iPhones, iPads and Macs.

    pip install segformer coremltools
    python examples/coreml.py MODEL mine.mlpackage [SIDE]

The model takes one image of SIDE x SIDE pixels (default: 512), normalized values,
(1, channels, SIDE, SIDE), and gives logits at a quarter of the size. It computes in float16.
Core ML runs on macOS only: there, both are compared with PyTorch before the folder is written.
"""

import platform
import sys
from pathlib import Path

import coremltools
import torch

import segformer
from segformer.model.tracing import Graph, trace

LEAST_SAME_CLASS = 0.995


def main(source: str, out: str, side: int = 512) -> None:
    if Path(out).exists():
        raise SystemExit(f"{out} exists already; nothing is replaced")
    model = segformer.SegFormer.from_pretrained(source).eval()
    graph = Graph(model)  # with the folded decoder
    program, _ = trace(graph, model.config.in_channels, (side, side))
    converted = coremltools.convert(
        program.run_decompositions({}), minimum_deployment_target=coremltools.target.iOS16
    )
    if platform.system() == "Darwin":
        check(converted, graph, torch.randn(1, model.config.in_channels, side, side))
    else:
        print("not compared with PyTorch: Core ML runs on macOS only")
    converted.save(out)
    print(f"written: {out}")


def check(converted: coremltools.models.MLModel, graph: Graph, pixels: torch.Tensor) -> None:
    """Exit if the converted model gives another class than the model at too many pixels."""
    with torch.no_grad():
        expected = graph(pixels).argmax(1).numpy()
    (name,) = converted.input_description
    (logits,) = converted.predict({name: pixels.numpy()}).values()
    same = float((logits.argmax(1) == expected).mean())
    print(f"same class {same:.4%}")
    if same < LEAST_SAME_CLASS:
        raise SystemExit("the converted model differs from the model; nothing is written")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
