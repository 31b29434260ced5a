"""The options of predictions of georeferenced scenes. Nothing here imports torch or rasterio."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from segformer.machine import available_memory
from segformer.options import depends

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class SceneConfig:
    """Georeferenced scenes of any size, window by window. Needs the extra "geo".

    Inputs that are scenes: GeoTIFF files, .vrt files, URLs, STAC items (.json); with one of these
    options all inputs. A scene gives NAME.tif, a Cloud-Optimized GeoTIFF of class ids, with
    --confidence also NAME_confidence.tif. Of --size, --short-side and --scales none can be used.

    Attributes:
        scene: Treat inputs as scenes, or as plain images that are read whole.
        max_memory: Memory that the whole process may take, such as 2GB; it decides how much of the
            scene is worked on at a time, and never changes the result. With --cluster it is that
            of each worker, by default half of a machine's memory for all its workers together.
        overlap: Pixels by which windows overlap, a multiple of 4. Logits are blended there.
        bands: Numbers, from 1, or names of the bands, in the order of the model's channels.
        resolution: Side of a pixel, in the units of the scene's CRS, to resample to on the fly.
        area: Vector file, such as field.geojson, in any CRS: nothing is predicted outside of its
            polygons.
        where: Column, row, width and height in pixels of a window: nothing is predicted outside.
        statistics: Mean and standard deviation by which bands are normalized: those of the model,
            or those of the scene, which its file declares or else a sample of its pixels gives.
        apply_scale: Apply the scale and offset that the file, or else its STAC item, declares for
            its bands.
    """

    scene: Annotated[bool | None, depends("{True,False}", "as the inputs are")] = None
    max_memory: Annotated[str | None, depends("SIZE", "a quarter of the machine's memory")] = None
    overlap: Annotated[int | None, depends("PIXELS", "window less stride: a quarter")] = None
    bands: Annotated[tuple[str, ...], depends("BAND ...", "all, without transparency")] = ()
    resolution: Annotated[float | None, depends("NUMBER", "that of the file")] = None
    area: Annotated[Path | None, depends("FILE", "the whole scene")] = None
    where: Annotated[
        tuple[int, int, int, int] | None,
        depends("COLUMN ROW WIDTH HEIGHT", "the whole scene"),
    ] = None
    statistics: Literal["model", "scene"] = "model"
    apply_scale: bool = True

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            memory_bytes(self.max_memory)
        if self.overlap is not None and (self.overlap < 0 or self.overlap % 4):
            raise ValueError(f"overlap must be a multiple of 4 pixels, not {self.overlap}")
        if self.resolution is not None and not self.resolution > 0:
            raise ValueError(f"resolution must be positive, not {self.resolution}")
        if self.where is not None and (len(self.where) != 4 or min(self.where[2:]) < 1):
            raise ValueError(
                f"where must be column, row, width and height in pixels, not {self.where}"
            )
        if self.statistics not in ("model", "scene"):
            raise ValueError(f"statistics must be model or scene, not {self.statistics!r}")

    @property
    def memory_limit(self) -> int:
        """Bytes that the process may take."""
        return default_memory() if self.max_memory is None else memory_bytes(self.max_memory)


def memory_bytes(text: str) -> int:
    """A size such as 2GB, 500 MB or 1.5GiB in bytes.

    Raises:
        ValueError: It is no such size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"a size of memory is a number with a unit, such as 2GB, not {text!r}")
    number, unit, binary = match[1], match[2].upper(), match[3]
    factor = (_BINARY_UNITS if binary else _UNITS).get(unit)
    if factor is None or not float(number):
        raise ValueError(f"a size of memory is a number with a unit, such as 2GB, not {text!r}")
    return round(float(number) * factor)


def default_memory() -> int:
    """A quarter of the machine's memory, at most half of what is available now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = available_memory()
    return total // 4 if available is None else min(total // 4, available // 2)
