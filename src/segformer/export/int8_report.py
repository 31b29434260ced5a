"""What quantization gained and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class FloatLayer:
    """A layer that stayed in float32.

    Attributes:
        name: Name of the module in the model, or of the operation in the graph.
        reason: Why it stayed.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Int8Report:
    """What quantization gained and cost.

    Attributes:
        dataset: Folder of the data set.
        calibration_images: Images of the train split on which ranges were measured.
        validation_images: Images of the val split on which the mIoU was measured.
        max_drop: Largest accepted loss of mIoU, in percentage points.
        miou: 0 to 1, by precision ("float32", "int8").
        drop: Loss of mIoU, in percentage points; negative if int8 is better.
        file_bytes: Size of the graph with its weights, by precision.
        seconds: Time of a run, by precision; of "bfloat16" too where the runtime has it.
        timed_shape: Shape (1, channels, height, width) of the input of these runs.
        int8_layers: Number of layers in 8-bit integers, of those that multiply.
        float_layers: The others.
    """

    dataset: str
    calibration_images: int
    validation_images: int
    max_drop: float
    miou: dict[str, float]
    drop: float
    file_bytes: dict[str, int]
    seconds: dict[str, float]
    timed_shape: tuple[int, ...]
    int8_layers: int
    float_layers: tuple[FloatLayer, ...]

    def lines(self) -> Iterator[str]:
        """The report in a few lines of text."""
        yield (
            f"int8: mIoU {self.miou['float32']:.2%} -> {self.miou['int8']:.2%} "
            f"({-self.drop:+.2f} points; at most -{self.max_drop:g} was accepted) on "
            f"{self.validation_images} images"
        )
        before, after = (self.file_bytes[name] / 1e6 for name in ("float32", "int8"))
        yield f"int8: size {before:.1f} -> {after:.1f} MB"
        shown = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in self.seconds.items())
        height, width = self.timed_shape[2:]
        yield f"int8: time for {height} x {width} pixels, on this machine: {shown}"
        best = min(self.seconds, key=lambda name: self.seconds[name])
        if best != "int8":
            yield f"int8: {best} is faster on this machine; see docs/export.md"
        count = self.int8_layers + len(self.float_layers)
        yield f"int8: {self.int8_layers} of {count} layers are int8"
        for layer in self.float_layers:
            yield f"int8: in float32: {layer.name} ({layer.reason})"
