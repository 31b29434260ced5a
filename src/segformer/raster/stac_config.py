"""The options of STAC items of scenes. Nothing here imports rasterio or shapely."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from segformer.options import depends


@dataclass(frozen=True)
class StacConfig:
    """STAC items of scenes that have a coordinate reference system.

    Attributes:
        stac: Write NAME.stac.json, a STAC item of the results with the fields of the Machine
            Learning Model extension.
        acquired: When the scenes were acquired, as 2024-05-31 or 2024-05-31T10:20:30Z, for the
            item.
    """

    stac: bool = True
    acquired: Annotated[str | None, depends("TIME", "metadata of the scene, else now")] = None

    def __post_init__(self) -> None:
        if self.acquired is not None:
            _parse(self.acquired)

    @property
    def acquisition_time(self) -> datetime | None:
        """The time that is given, with its time zone; UTC if it has none."""
        return None if self.acquired is None else _parse(self.acquired)


def _parse(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"acquired must be a time such as 2024-05-31T10:20:30Z, not {text!r}"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
