"""Annotations in other forms than masks of class ids: polygons, run lengths, colors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segformer.data.errors import DatasetError


class Annotation(Protocol):
    """What is marked in one image, in another form than a mask of class ids."""

    @property
    def file(self) -> Path:
        """File the annotation comes from, for messages."""

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Class ids (H, W) for an image of this size.

        Raises:
            ValueError: The annotation is broken or does not fit the image; the message names the
                file and the entry.
        """


@dataclass(frozen=True, slots=True)
class BrokenAnnotation:
    """An annotation that is known to be unusable: `rasterize` raises its message."""

    file: Path
    message: str

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Raise a DatasetError with the message."""
        raise DatasetError(self.message)
