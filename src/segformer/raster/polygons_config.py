"""The options of polygons of scenes. Nothing here imports rasterio or shapely."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from segformer.classes import ClassSet
from segformer.options import depends


@dataclass(frozen=True)
class PolygonConfig:
    """Polygons of the regions of scenes, written beside NAME.tif.

    Attributes:
        polygons: Write NAME.gpkg (GeoPackage) or NAME.parquet (GeoParquet, which needs the extra
            "geoparquet"): a polygon with holes for each connected region, with the attributes
            class_id, class_name, area_m2 and, with --confidence, mean_confidence.
        skip_classes: Names of classes that get no polygons, such as background.
        min_area: Area in m2: smaller regions get the class of their largest neighbor, and those
            without a neighbor get no polygon.
        simplify: Length in meters of details of outlines that are left out, without gaps or
            overlaps between neighbors. 0: outlines follow the pixels.
    """

    polygons: Annotated[Literal["gpkg", "parquet"] | None, depends("{gpkg,parquet}", "none")] = None
    skip_classes: tuple[str, ...] = ()
    min_area: float = 0
    simplify: float = 0

    def __post_init__(self) -> None:
        if self.polygons not in (None, "gpkg", "parquet"):
            raise ValueError(f"polygons must be gpkg or parquet, not {self.polygons!r}")
        for name in ("min_area", "simplify"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be 0 or more, not {value}")

    def check_classes(self, classes: ClassSet) -> None:
        """Refuse ``skip_classes`` that a model does not have.

        Raises:
            ValueError: A name is no class; the message lists those there are.
        """
        class_ids(self.skip_classes, classes)


def class_ids(names: tuple[str, ...], classes: ClassSet) -> list[int]:
    """Ids of classes given by name.

    Raises:
        ValueError: A name is no class; the message lists those there are.
    """
    for name in names:
        if name not in classes.names:
            shown = ", ".join(classes.names[:20]) + (", ..." if len(classes) > 20 else "")
            raise ValueError(f"there is no class {name!r}; the classes are {shown}")
    return [classes.names.index(name) for name in names]
