"""What is made of the label map of a scene: polygons, areas of classes, and a STAC item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer.files import check_replaceable, write_json
from segformer.raster.areas import ClassArea, NoGroundArea, class_areas
from segformer.raster.polygons import write_polygons
from segformer.raster.polygons_config import PolygonConfig
from segformer.raster.stac import ModelFacts, acquisition_time, scene_item
from segformer.raster.stac_config import StacConfig
from segformer.raster.vector_files import check_suffix


@dataclass(frozen=True)
class SceneOutputs:
    """What was made of a label map.

    Attributes:
        polygons: File of polygons, or None.
        item: STAC item, or None.
        class_areas: Area of each class, or None where areas in m2 are unknown.
    """

    polygons: Path | None
    item: Path | None
    class_areas: dict[str, ClassArea] | None

    @property
    def files(self) -> list[Path]:
        """Every file that was written."""
        return [path for path in (self.polygons, self.item) if path is not None]

    def areas_m2(self) -> dict[str, float] | None:
        """Square meters of each class that occurs, largest first."""
        if self.class_areas is None:
            return None
        found = {name: area.area_m2 for name, area in self.class_areas.items() if area.pixels}
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))


@dataclass(frozen=True)
class SceneWriter:
    """Writes what is made of label maps.

    Attributes:
        folder: Where files are written.
        polygons: Options of polygons.
        stac: Options of STAC items.
        overwrite: Replace files that exist.
    """

    folder: Path
    polygons: PolygonConfig
    stac: StacConfig
    overwrite: bool = False

    def polygon_file(self, name: str) -> Path | None:
        """The file of polygons of a scene, if one is wanted."""
        suffix = self.polygons.polygons
        return None if suffix is None else self.folder / f"{name}.{suffix}"

    def is_complete(self, name: str) -> bool:
        """Whether all that is wanted of a scene exists."""
        polygons = self.polygon_file(name)
        item = self.folder / f"{name}.stac.json"
        return (polygons is None or polygons.exists()) and (not self.stac.stac or item.exists())

    def check(self, name: str, crs: Any, model: ModelFacts, *, skip_existing: bool = False) -> None:
        """Refuse what cannot be written, before the scene is predicted.

        Args:
            name: Name of the results without suffix.
            crs: Coordinate reference system of the scene, or None.
            model: The model.
            skip_existing: Files that exist are kept.

        Raises:
            ValueError: Polygons of a scene without a coordinate reference system, or a class to
                skip that the model does not have.
            OutputExists: A file would be replaced.
            ImportError: A package is missing.
        """
        self.polygons.check_classes(model.classes)
        # The label map first, unless a killed run was putting its results in place
        unfinished = (self.folder / f"{name}.unfinished").exists()
        targets = [] if unfinished else [self.folder / f"{name}.tif"]
        if self.stac.stac and crs:
            targets.append(self.folder / f"{name}.stac.json")
        file = self.polygon_file(name)
        if file is not None:
            check_suffix(file)
            if not crs:
                raise NoGroundArea(
                    f"{name} has no coordinate reference system, so --polygons cannot be used: "
                    "their areas in m2 are unknown"
                )
            targets.append(file)
        if not skip_existing:
            check_replaceable(targets, overwrite=self.overwrite)

    def write(
        self,
        label_map: Path,
        confidence: Path | None,
        model: ModelFacts,
        *,
        source: str | Path | Sequence[str | Path],
        files: Sequence[str | Path] = (),
        skip_existing: bool = False,
    ) -> SceneOutputs:
        """Make polygons, areas and the item of a label map.

        Args:
            label_map: From `predict_scene`.
            confidence: From `predict_scene`, if there is one.
            model: The model.
            source: What the scene was opened from.
            files: Its files, in whose metadata the time of acquisition is looked for.
            skip_existing: Keep files that exist.

        Raises:
            TooManyPolygons: The outlines do not fit into the memory.
            ValueError: See `write_polygons`.
            OSError: A file cannot be written; the label map is kept.
        """
        try:
            return self._write(
                label_map,
                confidence,
                model,
                source=source,
                files=files,
                skip_existing=skip_existing,
            )
        except OSError as error:
            raise OSError(
                f"{error}; {label_map} is complete: run the same command again with "
                "--skip-existing to write what is missing"
            ) from None

    def _write(
        self,
        label_map: Path,
        confidence: Path | None,
        model: ModelFacts,
        *,
        source: str | Path | Sequence[str | Path],
        files: Sequence[str | Path],
        skip_existing: bool,
    ) -> SceneOutputs:
        """See `write`."""
        name, options = label_map.stem, self.polygons
        try:
            areas = class_areas(label_map, model.classes)
        except NoGroundArea:
            return SceneOutputs(None, None, None)
        polygons = self.polygon_file(name)
        if polygons is not None and not (skip_existing and polygons.exists()):
            write_polygons(
                label_map,
                polygons,
                confidence=confidence,
                classes=model.classes,
                skip_classes=options.skip_classes,
                min_area=options.min_area,
                simplify=options.simplify,
                overwrite=self.overwrite,
            )
        item = self.folder / f"{name}.stac.json" if self.stac.stac else None
        if item is not None and not (skip_existing and item.exists()):
            time = self.stac.acquisition_time or (acquisition_time(files) if files else None)
            check_replaceable([item], overwrite=self.overwrite)
            content = scene_item(
                label_map,
                model,
                folder=self.folder,
                source=source,
                confidence=confidence,
                polygons=polygons,
                acquired=time,
            )
            write_json(item, content)
        return SceneOutputs(polygons, item, areas)
