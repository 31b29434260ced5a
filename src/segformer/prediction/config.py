"""How images are seen and run: the options of `Predictor` and of the commands that predict.

Nothing here imports torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segformer.prediction.windows import window_starts

SMALLEST_SIDE = 32
"""Sides of what goes into a model are at least this, pixels."""


@dataclass(frozen=True)
class PredictConfig:
    """Size, windows, scales and arithmetic. Left out, the model's own preprocessing decides.

    Attributes:
        size: Height and width in pixels to resize images to, ratio not kept.
        short_side: Pixels to resize the short side to, ratio kept.
        window: Side in pixels of windows to run one by one over the image, which keeps its own
            size unless one of the above says otherwise; logits are averaged where windows
            overlap. A multiple of 4.
        stride: Pixels between windows, a multiple of 4; left out, three quarters of a window.
        scales: Ratios at which to see the image; probabilities are averaged.
        flip: Also see each scale mirrored.
        confidence: Keep the probability of each pixel's class.
        device: Where to run: cpu, cuda, cuda:1, mps; left out, the best there is.
        precision: bfloat16 is faster where the hardware has it, and differs in the third digit.
        batch_size: Images, or windows, of one size to run at once; left out, 8, and 1 on a CPU,
            which gains nothing by it.
        compile: Have PyTorch compile the model, on a GPU with CUDA graphs: the first image of
            each size takes a minute, the others less time. A CPU needs a C++ compiler, and is
            faster without.

    Raises:
        ValueError: Options that contradict each other or cannot be.
    """

    size: tuple[int, int] | None = None
    short_side: int | None = None
    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    confidence: bool = False
    device: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.size is not None and self.short_side is not None:
            raise ValueError("give a size or a short side, not both")
        for side in (*(self.size or ()), self.short_side or SMALLEST_SIDE):
            if side < SMALLEST_SIDE:
                raise ValueError(f"a side of {side} pixels is below {SMALLEST_SIDE}, the smallest")
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise ValueError(f"scales must be ratios above 0, at most 16, not {self.scales}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is neither float32 nor bfloat16")
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
