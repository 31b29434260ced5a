"""How images are seen and run: the options of `Predictor` and of the commands that predict.

Nothing here imports torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, get_args

from segformer.options import depends
from segformer.prediction.windows import window_starts

RuntimeName: TypeAlias = Literal["torch", "openvino", "onnxruntime", "auto"]
"""What runs a model; "auto" is the fastest of those installed."""

SMALLEST_SIDE = 32
"""Smallest side, in pixels, of what goes into a model."""


Protocol: TypeAlias = Literal["default", "paper"]
"""How an evaluation sees images; see `segformer.evaluation.protocol`."""


class PredictOptions(TypedDict, total=False):
    """Fields of `PredictConfig` as keyword arguments; one number stands for a square or one scale.

    Attributes:
        size: See `PredictConfig`, as for the others.
        short_side: Pixels.
        window: Pixels.
        stride: Pixels.
        scales: Ratios.
        flip: Also run the mirror image.
        confidence: Keep probabilities.
        value_range: Low and high.
        device: cpu, cuda, cuda:1, mps.
        precision: float32 or bfloat16.
        batch_size: Images or windows.
        compile: Compile the model.
        runtime: torch, openvino, onnxruntime, auto.
    """

    size: tuple[int, int] | int | None
    short_side: int | None
    window: int | None
    stride: int | None
    scales: Sequence[float] | float
    flip: bool
    confidence: bool
    value_range: tuple[float, float] | None
    device: str | None
    precision: Literal["float32", "bfloat16"]
    batch_size: int | None
    compile: bool
    runtime: RuntimeName | None


@dataclass(frozen=True)
class PredictConfig:
    """Size, windows, scales and arithmetic. By default the model's own preprocessing is used.

    Attributes:
        size: Height and width in pixels to resize images to; the aspect ratio is not kept.
        short_side: Pixels to resize the short side to; the aspect ratio is kept.
        window: Side in pixels of windows to run one by one over the image, at its own size unless
            size or short_side is given; logits are averaged where windows overlap. A multiple
            of 4.
        stride: Pixels between windows, a multiple of 4.
        scales: Ratios at which to run the image; the probabilities are averaged.
        flip: Also run the mirror image at each scale.
        confidence: Keep the probability of each pixel's class.
        value_range: Stored values that mean black and white, for a model of 8-bit images on images
            of 16 bits or floats.
        device: Where to run: cpu, cuda, cuda:1, mps.
        precision: bfloat16 is faster where the hardware supports it; logits differ in the third
            digit.
        batch_size: Images of one size, or windows, to run at once.
        compile: Compile the model with PyTorch, on a GPU with CUDA graphs: the first image of
            each size takes a minute, the others less time. On a CPU it needs a C++ compiler and
            is slower.
        runtime: What runs the model. openvino and onnxruntime run on the CPU; they convert the
            model when it is first used, which takes some seconds, and keep the result on disk.
            auto takes the fastest of those installed; "segformer info" shows which one it is.

    Raises:
        ValueError: Options that contradict each other, or values that are not possible.
    """

    size: Annotated[tuple[int, int] | None, depends("H W", "that of the model")] = None
    short_side: Annotated[int | None, depends("PIXELS", "that of the model")] = None
    window: Annotated[int | None, depends("PIXELS", "the whole image at once")] = None
    stride: Annotated[int | None, depends("PIXELS", "three quarters of a window")] = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    confidence: bool = False
    value_range: Annotated[
        tuple[float, float] | None,
        depends("LOW HIGH", "what the file says, else the whole range of its type"),
    ] = None
    device: Annotated[str | None, depends("DEVICE", "the best there is")] = None
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: Annotated[int | None, depends("INT", "8; 1 on a CPU, which gains nothing")] = None
    compile: bool = False
    runtime: Annotated[
        RuntimeName | None, depends("RUNTIME", "torch; for an exported model, that of its format")
    ] = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.size is not None and self.short_side is not None:
            raise ValueError("give size or short_side, not both")
        for side in (*(self.size or ()), self.short_side or SMALLEST_SIDE):
            if side < SMALLEST_SIDE:
                raise ValueError(f"a side of {side} pixels is below {SMALLEST_SIDE}, the smallest")
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise ValueError(f"scales must be ratios above 0, at most 16, not {self.scales}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is neither float32 nor bfloat16")
        if self.runtime is not None and self.runtime not in get_args(RuntimeName):
            names = ", ".join(get_args(RuntimeName))
            raise ValueError(f"runtime {self.runtime!r} is none of {names}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.window is None:
            if self.stride is not None:
                raise ValueError("a stride needs a window")
            return
        if self.stride is None:
            object.__setattr__(self, "stride", max(4, self.window * 3 // 16 * 4))
        assert self.stride is not None
        window_starts(self.window, self.window, self.stride)  # refuses gaps between windows
        if self.window % 4 or self.stride % 4 or self.window < SMALLEST_SIDE:
            raise ValueError(
                f"window {self.window} and stride {self.stride} must be multiples of 4, the "
                f"window at least {SMALLEST_SIDE}: logits are a quarter of the image's size"
            )

    def _check_types(self) -> None:
        """Make one number a square or a scale, and refuse values of other types."""
        values: dict[str, Any] = {}
        if self.size is not None:
            sides = self.size if isinstance(self.size, (tuple, list)) else (self.size, self.size)
            values["size"] = tuple(_integer("size", side) for side in sides)
            if len(sides) != 2:
                raise ValueError(f"size must be height and width, not {self.size!r}")
        for name in ("short_side", "window", "stride", "batch_size"):
            value = getattr(self, name)
            if value is not None:
                values[name] = _integer(name, value)
        values["scales"] = _ratios(self.scales)
        for name in ("flip", "confidence", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _integer(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise ValueError(
        f"{name} must be a whole number of {_UNITS.get(name, 'pixels')}, not {value!r}"
    )


_UNITS = {"batch_size": "images"}


def _ratios(scales: Any) -> tuple[float, ...]:
    """One ratio or several -> a tuple."""
    try:
        if not isinstance(scales, (str, bytes)):
            return tuple(map(float, scales)) if hasattr(scales, "__iter__") else (float(scales),)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"scales must be a ratio or several, such as (0.75, 1), not {scales!r}")
