"""Options of `segformer export`. Nothing here imports torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

from segformer.options import depends

ExportFormat: TypeAlias = Literal["onnx", "openvino", "web"]

_SMALLEST_SIDE = 32


@dataclass(frozen=True)
class ExportConfig:
    """What is inside the exported graph.

    Attributes:
        format: onnx: for ONNX Runtime, transformers.js, optimum-onnx, TensorRT and QGIS Deepness.
            openvino: for OpenVINO and optimum-intel. web: a static web page that segments images
            on the visitor's own machine.
        size: Height and width in pixels of the only image size that the graph takes, one
            image at a time. Some compilers need it, and others make faster code for it.
        input: float: normalized values, (batch, channels, height, width). image: 8-bit values as
            image decoders return them, (batch, height, width, channels); they are normalized
            inside the graph. Resizing is never part of the graph.
        output: logits: at a quarter of the height and width. label-map: the class id of each
            pixel, at the size of the input. probabilities: of each class and pixel, at the size
            of the input.
        half: Compute in float16; input and output stay float32. The file is half as large.
        resolution: Centimeters per pixel of the images that the model is for; QGIS Deepness reads
            it. Files for this plugin have the format onnx, the output probabilities, the input
            float and a square size.

    Raises:
        ValueError: A value is not possible.
    """

    format: ExportFormat
    size: Annotated[tuple[int, int] | None, depends("H W", "any size, and any batch")] = None
    input: Literal["float", "image"] = "float"
    output: Literal["logits", "label-map", "probabilities"] = "logits"
    half: bool = False
    resolution: Annotated[float | None, depends("CM", "not stated")] = None

    def __post_init__(self) -> None:
        if self.format not in get_args(ExportFormat):
            formats = ", ".join(get_args(ExportFormat))
            raise ValueError(f"no export format {self.format!r}; the formats are {formats}")
        if self.input not in ("float", "image"):
            raise ValueError(f"input must be float or image, not {self.input!r}")
        if self.output not in ("logits", "label-map", "probabilities"):
            raise ValueError(
                f"output must be logits, label-map or probabilities, not {self.output!r}"
            )
        if self.size is not None and min(self.size) < _SMALLEST_SIDE:
            raise ValueError(
                f"a side of {min(self.size)} pixels is below {_SMALLEST_SIDE}, the smallest"
            )
        if self.resolution is not None and not self.resolution > 0:
            raise ValueError(f"resolution must be above 0 centimeters, not {self.resolution}")
        if self.resolution is not None and not self.for_deepness:
            raise ValueError(
                "a resolution is for QGIS Deepness, which takes ONNX files with a square size and "
                "probabilities only: add --format onnx --size 512 512 --output probabilities"
            )

    @property
    def for_deepness(self) -> bool:
        """Whether the Deepness plugin of QGIS can run the graph; others give wrong maps there."""
        return (
            (self.format, self.input, self.output) == ("onnx", "float", "probabilities")
            and self.size is not None
            and self.size[0] == self.size[1]
        )
