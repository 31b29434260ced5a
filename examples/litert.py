"""Write a segmentation model for LiteRT (formerly TensorFlow Lite), which runs on phones.

    pip install segformer litert-torch
    python examples/litert.py MODEL mine.tflite [SIDE]

The file takes one image of SIDE x SIDE pixels (default: 512), normalized float32 values,
(1, channels, SIDE, SIDE), and gives logits at a quarter of the size. Both are compared with PyTorch
before the file is written.
"""

import sys
from pathlib import Path

import litert_torch
import numpy as np
import torch

import segformer
from segformer.model.tracing import Graph

LARGEST_DIFFERENCE = 1e-3


def main(source: str, out: str, side: int = 512) -> None:
    if Path(out).exists():
        raise SystemExit(f"{out} exists already; nothing is replaced")
    model = segformer.SegFormer.from_pretrained(source).eval()
    graph = Graph(model)  # with the folded decoder
    pixels = torch.randn(1, model.config.in_channels, side, side)
    with torch.no_grad():
        expected = graph(pixels).numpy()
    converted = litert_torch.convert(graph, (pixels,))
    difference = float(np.abs(converted(pixels) - expected).max())
    same = float((converted(pixels).argmax(1) == expected.argmax(1)).mean())
    print(f"largest difference {difference:.1e}, same class {same:.4%}")
    if not difference <= LARGEST_DIFFERENCE:
        raise SystemExit("the converted model differs from the model; nothing is written")
    converted.export(out)
    print(f"written: {out}, {Path(out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
