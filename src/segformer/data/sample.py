"""One image with its annotation, and the error of every reader of data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class DatasetError(ValueError):
    """A data set that cannot be used; the message says what is wrong, where, and what to do."""


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
class Sample:
    """One image and its annotation.

    Attributes:
        name: Path of the image inside its split's folder, for messages and reports.
        image: Image file.
        mask: Mask file, an annotation to rasterize, or None where there is none.
    """

    name: str
    image: Path
    mask: Path | Annotation | None


@dataclass(frozen=True, slots=True)
class BrokenAnnotation:
    """An annotation that is known to be unusable: `rasterize` raises its message."""

    file: Path
    message: str

    def rasterize(self, height: int, width: int) -> NDArray[np.integer]:
        """Raise a DatasetError with the message."""
        raise DatasetError(self.message)
