"""STAC items: which rasters they list, and what they say of the values of their bands.

Bands are described by ``bands`` (STAC 1.1, with ``raster:scale`` and ``raster:offset`` of version 2
of the raster extension) or ``raster:bands`` (version 1 of the extension). What holds for all bands
of an asset may be given for the asset, and for all assets in the properties of the item.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from segformer.image.stored import UnreadableImage

REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az")
"""Schemes of addresses of files that are read over a network."""


@dataclass(frozen=True)
class ItemValues:
    """What a STAC item says of the values of a band; None where it says nothing.

    Attributes:
        scale: Factor from stored values to the quantity they stand for.
        offset: Added after it.
        nodata: Stored value that means that there is no data.
    """

    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None


@dataclass(frozen=True)
class ItemAsset:
    """A raster of a STAC item.

    Attributes:
        key: What the item calls it.
        href: Path or URL.
        bands: What the item says of each of its bands, in order; may be shorter.
        all_bands: What it says of bands that ``bands`` leaves out.
    """

    key: str
    href: str
    bands: tuple[ItemValues, ...] = ()
    all_bands: ItemValues = field(default_factory=ItemValues)

    def values(self, index: int) -> ItemValues:
        """What the item says of a band, numbered from 1."""
        return self.bands[index - 1] if index <= len(self.bands) else self.all_bands


def item_assets(source: str, text: str) -> list[ItemAsset]:
    """The rasters of a STAC item, without thumbnails and previews.

    Args:
        source: Path or URL of the item.
        text: Its content.

    Raises:
        UnreadableImage: It is not a STAC item, has no rasters, or a value in it is not a number.
    """
    try:
        item = json.loads(text)
        properties = item.get("properties") or {}
        assets = [
            _asset(source, key, asset, properties)
            for key, asset in item["assets"].items()
            if _is_raster(asset)
        ]
    except UnreadableImage:
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UnreadableImage(f"{source}: not a STAC item, which lists its assets") from None
    if not assets:
        raise UnreadableImage(f"{source}: the STAC item has no assets that are rasters")
    return assets


def _asset(
    source: str, key: str, asset: Mapping[str, Any], properties: Mapping[str, Any]
) -> ItemAsset:
    where = f"{source}: asset {key!r}"
    new, old = (asset.get(name) or [] for name in ("bands", "raster:bands"))
    bands = tuple(
        _values(
            where,
            new[i] if i < len(new) else {},
            {_NEW_NAMES.get(name, name): value for name, value in old[i].items()}
            if i < len(old)
            else {},
            asset,
            properties,
        )
        for i in range(max(len(new), len(old)))
    )
    href = _resolved(source, asset["href"])
    return ItemAsset(key, href, bands, _values(where, asset, properties))


_NEW_NAMES = {"scale": "raster:scale", "offset": "raster:offset"}
"""Names of fields of a band in ``raster:bands`` -> in ``bands``."""


def _values(where: str, *levels: Mapping[str, Any]) -> ItemValues:
    """What the first of some objects says that has a field, from the band to the item."""

    def number(name: str) -> float | None:
        value = next((level[name] for level in levels if level.get(name) is not None), None)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return None if value is None else float(value)
        if name == "nodata" and value in ("nan", "inf", "-inf"):
            return float(value)
        raise UnreadableImage(f"{where}: {name} must be a number, not {value!r}")

    return ItemValues(number("raster:scale"), number("raster:offset"), number("nodata"))


def _is_raster(asset: Mapping[str, Any]) -> bool:
    """Whether an asset has data; thumbnails and previews are left out."""
    roles = asset.get("roles") or ["data"]
    if not {"data", "visual", "reflectance"}.intersection(roles):
        return False
    kind, suffix = str(asset.get("type", "")), PurePosixPath(urlsplit(asset["href"]).path).suffix
    return kind.startswith(("image/tiff", "image/jp2", "image/vnd.stac.geotiff")) or (
        not kind and suffix.lower() in _RASTERS
    )


_RASTERS = (".tif", ".tiff", ".jp2", ".vrt")


def _resolved(item: str, href: str) -> str:
    """The address of an asset, which may be relative to that of its item."""
    if urlsplit(href).scheme in (*REMOTE_SCHEMES, "file") or href.startswith("/"):
        return href.removeprefix("file://")
    if urlsplit(item).scheme in REMOTE_SCHEMES:
        return urljoin(item, href)
    return str(Path(item).parent / href)
