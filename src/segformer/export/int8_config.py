"""Options of `segformer export --int8`. Nothing here imports torch, so ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from segformer.options import depends


@dataclass(frozen=True)
class Int8Config:
    """Whether a graph computes in 8-bit integers, and how much accuracy that may cost.

    Attributes:
        int8: Compute in 8-bit integers. The file is about a quarter as large.
        calibrate: Data set for it. The ranges of values are measured on its train split, and the
            loss of accuracy on its val split.
        max_drop: Largest accepted loss of mIoU, in percentage points. Layers stay in float32 until
            it holds; if it cannot hold, nothing is written.
        calibration_images: Images of the train split to measure ranges on, at most.
        validation_images: Images of the val split to measure the mIoU on, at most.

    Raises:
        ValueError: A value is not possible, or options are missing.
    """

    int8: bool = False
    calibrate: Annotated[Path | None, depends("DATASET", "none; needed with --int8")] = None
    max_drop: float = 0.5
    calibration_images: int = 300
    validation_images: Annotated[int | None, depends("INT", "all")] = None

    def __post_init__(self) -> None:
        if self.int8 and self.calibrate is None:
            raise ValueError("int8 needs a data set to measure on: give it as --calibrate DATASET")
        if self.calibrate is not None and not self.int8:
            raise ValueError("calibrate is an option of int8: give --int8 too")
        if not 0 <= self.max_drop <= 100:
            raise ValueError(
                f"max_drop must be 0 to 100 percentage points of mIoU, not {self.max_drop}"
            )
        for name in ("calibration_images", "validation_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
