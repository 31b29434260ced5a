"""A model as one graph, for exporters and compilers: any size or a fixed one, any precision.

Legend: B batch, H W pixels, h w logits, C channels, K classes.
"""

from __future__ import annotations

import copy
import warnings
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from segformer.image import Preprocessing
from segformer.model.encoder import MixTransformer
from segformer.model.segformer import SegFormer, SegFormerClassifier, inference_copy, probabilities

AnyModel: TypeAlias = SegFormer | SegFormerClassifier | MixTransformer
GraphInput: TypeAlias = Literal["float", "image"]
GraphOutput: TypeAlias = Literal["logits", "label-map", "probabilities"]

_TRACED = (2, 64, 96)
"""Batch and sides with which a graph for any size is traced. None is 1: PyTorch takes a dimension
of 1 for a constant."""

_LARGEST = {"batch": 1 << 16, "side": 1 << 16}


class Graph(nn.Module):
    """A model with everything that runs inside its graph; for inference, with copied weights.

    Args:
        model: Segmentation model, which is folded; classifier; or encoder.
        preprocessing: How images are normalized; for ``input="image"`` only.
        input: "float": (B, C, H, W) float32, normalized. "image": (B, H, W, C) uint8, the stored
            values of images that have been resized.
        output: "logits": (B, K, ceil(H / 4), ceil(W / 4)), of a classifier (B, K), of an encoder
            its feature maps, float32. For segmentation models also "label-map": (B, H, W) class
            ids, uint8, or int32 for more than 256 classes; and "probabilities": (B, K, H, W)
            float32.
        half: Compute in float16. Input and output stay float32.

    Raises:
        ValueError: The model does not have this input or output.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: AnyModel,
        preprocessing: Preprocessing | None = None,
        *,
        input: GraphInput = "float",
        output: GraphOutput = "logits",
        half: bool = False,
    ):
        super().__init__()
        if output != "logits" and not isinstance(model, SegFormer):
            raise ValueError(f"output {output!r} is for segmentation models only")
        network = model.fold() if isinstance(model, SegFormer) else inference_copy(model)
        self.dtype = torch.float16 if half else torch.float32
        self.network = copy.deepcopy(network).to("cpu", self.dtype).requires_grad_(False)
        self.input, self.output = input, output
        if input == "image":
            if preprocessing is None or not preprocessing.expects_8_bit:
                raise ValueError("input 'image' is for models of 8-bit images only")
            std = torch.tensor(preprocessing.std, dtype=torch.float64)
            mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
            self.register_buffer("scale", (preprocessing.rescale / std).float())
            self.register_buffer("shift", (mean / std).float())
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor | list[Tensor]:
        """Pixels as ``input`` says -> what ``output`` says."""
        if self.input == "image":
            pixels = (pixels.float() * self.scale - self.shift).permute(0, 3, 1, 2)
        size = pixels.shape[2:]
        found = self.network(pixels.to(self.dtype))
        if isinstance(found, list):
            return [maps.float() for maps in found]
        logits = found.float()
        if self.output == "logits":
            return logits
        full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.output == "probabilities":
            return probabilities(full)
        classes = full.shape[1]
        if classes == 1:
            return (full[:, 0] > 0).to(torch.uint8)
        return full.argmax(1).to(torch.uint8 if classes <= 256 else torch.int32)


def trace(
    graph: Graph, channels: int, size: tuple[int, int] | None = None
) -> tuple[ExportedProgram, Tensor]:
    """Trace a graph with `torch.export`.

    Args:
        graph: The graph.
        channels: C of its input.
        size: (height, width) of its input in pixels, and a batch of 1. Default: any size of the
            sides and the batch. The program itself then takes sides from 64 pixels on; the graphs
            that exporters write take smaller ones as well.

    Returns:
        The program, and the pixels with which it was traced.
    """
    batch, height, width = _TRACED if size is None else (1, *size)
    pixels = torch.zeros(batch, channels, height, width)
    axes = (2, 3)
    if graph.input == "image":
        pixels = torch.zeros(batch, height, width, channels, dtype=torch.uint8)
        axes = (1, 2)
    dynamic = None
    if size is None:
        side = _LARGEST["side"]
        sides = Dim("height", min=64, max=side), Dim("width", min=64, max=side)
        dynamic = ({0: Dim("batch", max=_LARGEST["batch"]), **dict(zip(axes, sides, strict=True))},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the inner workings of PyTorch
        program = torch.export.export(graph, (pixels,), dynamic_shapes=dynamic)
    return program, pixels
