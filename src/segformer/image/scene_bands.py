"""Where the bands of a scene are: in a raster, in one file each, or in the assets of a STAC item.

Needs the extra ``geo``.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from segformer.image.scene_items import REMOTE_SCHEMES, ItemValues, item_assets
from segformer.image.stored import UnreadableImage
from segformer.image.warning_filters import ignoring
from segformer.machine import available_cpus

logger = logging.getLogger(__name__)

SceneSource: TypeAlias = str | Path | Sequence[str] | Sequence[Path]
"""A raster file, VRT, URL or STAC item, or a file for each band."""

RETRY_DELAYS_S = (1.0, 4.0, 10.0)
"""Waits before a request over a network is repeated."""

_NO_RANGES = "Range downloading not supported"
"""In GDAL's message about servers that cannot send parts of files."""

T = TypeVar("T")

decoding_threads: ContextVar[int] = ContextVar("decoding_threads", default=0)
"""Threads that GDAL decodes with; 0: one for each CPU."""


@dataclass(frozen=True)
class Band:
    """One band of one file.

    Attributes:
        file: Path or URL.
        index: Number of the band in the file, from 1.
        name: What the file or item calls it, else its number in the scene.
        item: What a STAC item says of its values.
    """

    file: str
    index: int
    name: str
    item: ItemValues = field(default_factory=ItemValues)


def rasterio() -> Any:
    """The module.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("rasterio")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "georeferenced scenes need rasterio: pip install 'segformer[geo]'", name=error.name
        ) from None


@contextmanager
def gdal_settings(*, fresh: bool = False) -> Iterator[None]:
    """GDAL's settings for reading scenes, in this thread.

    Args:
        fresh: Forget what earlier, failed requests to servers gave.
    """
    settings: dict[str, Any] = {
        "GDAL_NUM_THREADS": str(decoding_threads.get() or available_cpus()),
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no requests for files that may lie beside
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_HTTP_CONNECTTIMEOUT": "20",
        "GDAL_HTTP_LOW_SPEED_TIME": "60",
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
        "CPL_VSIL_CURL_USE_HEAD": "NO",
        "VSI_CACHE": "TRUE",
    }
    if fresh:
        settings["CPL_VSIL_CURL_NON_CACHED"] = "/vsicurl/"
    with rasterio().Env(**settings):
        yield


@contextmanager
def open_raster(file: str | Path, *, fresh: bool = False) -> Iterator[Any]:
    """A file as rasterio reads it, which may have no place on the earth.

    Args:
        file: Path or URL.
        fresh: See `gdal_settings`.
    """
    with gdal_settings(fresh=fresh):
        with no_place_is_fine():
            dataset = rasterio().open(file)
        with dataset:
            yield dataset


@contextmanager
def no_place_is_fine() -> Iterator[None]:
    """Without rasterio's warning about files that have no place on the earth.

    rasterio itself changes the filters of warnings while it rasterizes, so that belongs in here.
    """
    with ignoring(rasterio().errors.NotGeoreferencedWarning):
        yield


def is_remote(file: str) -> bool:
    """Whether a file is read over a network."""
    return urlsplit(file).scheme in REMOTE_SCHEMES or file.startswith(
        ("/vsicurl/", "/vsis3/", "/vsigs/")
    )


def retried(action: Callable[[], T], file: str) -> T:
    """The result of reading; over a network, errors are retried.

    Args:
        action: Reads; called again after an error.
        file: Path or URL, for the message.

    Raises:
        UnreadableImage: It fails, also at the last attempt.
    """
    errors = rasterio().errors
    delays = iter(RETRY_DELAYS_S if is_remote(file) else ())
    while True:
        try:
            return action()
        except (errors.RasterioIOError, errors.WarpOperationError, OSError) as error:
            reason = _first_line(error)
            if _NO_RANGES in reason:
                raise UnreadableImage(
                    f"{file}: the server sends whole files only; download the file first"
                ) from None
            delay = next(delays, None)
            if delay is None:
                attempts = f" after {len(RETRY_DELAYS_S) + 1} attempts" if is_remote(file) else ""
                raise UnreadableImage(f"{file}: cannot be read{attempts} ({reason})") from None
            logger.warning(f"{file}: {reason}; trying again in {delay:g} s")
            time.sleep(delay)


def _first_line(error: BaseException) -> str:
    """What an error of GDAL says; where there is a cause, it says more."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def find_bands(source: SceneSource) -> list[Band]:
    """All bands of a source, in order; those of transparency are left out.

    Raises:
        UnreadableImage: A file cannot be read, or one of several files has several bands.
    """
    if not isinstance(source, (str, Path)):
        found = [_bands_of(str(file)) for file in source]
        for bands in found:
            if len(bands) != 1:
                raise UnreadableImage(
                    f"{bands[0].file}: has {len(bands)} bands; a file that is one of several for a "
                    "scene must have one band"
                )
        if not found:
            raise UnreadableImage("a scene of several files needs at least one file")
        names = [Path(bands[0].file).stem for bands in found]
        return [
            Band(bands[0].file, bands[0].index, name)
            for bands, name in zip(found, names, strict=True)
        ]
    text = str(source)
    if urlsplit(text).path.lower().endswith((".json", ".geojson")):
        return [
            replace(band, item=asset.values(band.index))
            for asset in item_assets(text, _text(text))
            for band in _bands_of(asset.href, asset.key)
        ]
    return _bands_of(text)


def choose_bands(found: Sequence[Band], wanted: Sequence[int | str], name: str) -> list[Band]:
    """Bands by number, from 1, or by name.

    Raises:
        ValueError: There is no such band; the message lists those that there are.
    """
    by_name = {band.name.lower(): band for band in reversed(found)}
    chosen = []
    for word in wanted:
        text = str(word)
        if text.isdecimal() and 1 <= int(text) <= len(found):
            chosen.append(found[int(text) - 1])
        elif text.lower() in by_name:
            chosen.append(by_name[text.lower()])
        else:
            known = ", ".join(band.name for band in found)
            raise ValueError(f"{name}: there is no band {text}; bands 1 to {len(found)}: {known}")
    return chosen


def _bands_of(file: str, name: str | None = None) -> list[Band]:
    from rasterio.enums import ColorInterp

    if not is_remote(file) and not file.startswith("/vsi") and ":" not in file:
        path = Path(file)
        if not path.exists():
            raise UnreadableImage(f"{file}: no such file")
        if path.is_dir():
            raise UnreadableImage(f"{file}: a folder, not a scene")

    def describe() -> list[Band]:
        with open_raster(file) as dataset:
            kept = [
                (index, title)
                for index, title, color in zip(
                    dataset.indexes, dataset.descriptions, dataset.colorinterp, strict=True
                )
                if color != ColorInterp.alpha
            ]
        if name is not None and len(kept) == 1:
            return [Band(file, kept[0][0], name)]
        prefix = "" if name is None else f"{name}-"
        return [Band(file, index, f"{prefix}{title or index}") for index, title in kept]

    return retried(describe, file)


def _text(source: str) -> str:
    """The text of a file or URL."""
    if not is_remote(source):
        try:
            return Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableImage(f"{source}: cannot be read ({error})") from None
    from urllib.request import urlopen

    def download() -> str:
        with urlopen(source, timeout=60) as response:
            return str(response.read().decode())

    return retried(download, source)
