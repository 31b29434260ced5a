"""Which layout a folder has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segformer.data.errors import DatasetError
from segformer.data.layouts.ade20k import ADE20K
from segformer.data.layouts.base import Layout, subfolders
from segformer.data.layouts.camvid import CAMVID
from segformer.data.layouts.cityscapes import CITYSCAPES
from segformer.data.layouts.coco import COCO
from segformer.data.layouts.coco_stuff import COCO_STUFF
from segformer.data.layouts.cvat import CVAT
from segformer.data.layouts.isprs import ISPRS
from segformer.data.layouts.label_studio import LABEL_STUDIO
from segformer.data.layouts.labelme import LABELME
from segformer.data.layouts.lip import LIP
from segformer.data.layouts.loveda import LOVEDA
from segformer.data.layouts.mapillary import MAPILLARY
from segformer.data.layouts.pascal_voc import PASCAL_VOC
from segformer.data.layouts.roboflow import ROBOFLOW_MASKS
from segformer.data.layouts.yolo import YOLO

LAYOUTS: tuple[Layout, ...] = (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    CVAT,
    PASCAL_VOC,
    *MAPILLARY,
    LOVEDA,
    *ISPRS,
    LIP,
    *CAMVID,
    ROBOFLOW_MASKS,
    COCO,
    YOLO,
    LABELME,
    LABEL_STUDIO,
)
"""All layouts, in the order in which they are tried."""

_LEVELS = 3
_FOLDERS = 64
"""Folders of a level that are tried; a source with more is not a wrapped data set."""


@dataclass(frozen=True)
class Recognized:
    """What a source was taken for.

    Attributes:
        layout: Its layout.
        root: Folder that has the layout; the source or a folder in it.
        reason: Why, in one sentence.
    """

    layout: Layout
    root: Path
    reason: str


def recognize(source: Path, name: str | None = None) -> Recognized | None:
    """The layout of a folder, or of the only data set inside it.

    Args:
        source: Folder.
        name: Layout to read it as, instead of the one it looks like.

    Returns:
        None where the folder has none of the layouts.

    Raises:
        DatasetError: Several layouts or several folders match, or there is no layout of this name,
            or the folder cannot be read as it.
    """
    if name is None:
        wanted = LAYOUTS
    else:
        wanted = tuple(layout for layout in LAYOUTS if layout.name == name)
        if not wanted:
            known = ", ".join(layout.name for layout in LAYOUTS)
            raise DatasetError(f"there is no layout {name!r}; the layouts are {known}")
    level = [source]
    for _ in range(_LEVELS):
        matches = [match for folder in level for match in _matches(folder, wanted)]
        if matches:
            return _only(source, matches)
        level = [folder for parent in level for folder in subfolders(parent)]
        if not level or len(level) > _FOLDERS:
            break
    if name is None:
        return None
    forced = wanted[0]
    if not forced.splits(source):
        raise DatasetError(f"{source}: no files of the layout {name!r} ({forced.title})")
    return Recognized(forced, source, f"the layout {name!r} was asked for")


def _matches(folder: Path, layouts: tuple[Layout, ...]) -> list[Recognized]:
    return [
        Recognized(layout, folder, reason)
        for layout in layouts
        if (reason := layout.recognize(folder)) is not None
    ]


def _only(source: Path, matches: list[Recognized]) -> Recognized:
    if len(matches) == 1:
        return matches[0]
    roots = list(dict.fromkeys(match.root for match in matches))
    if len(roots) > 1:
        listed = "".join(f"\n  {m.root} ({m.layout.title}: {m.reason})" for m in matches)
        raise DatasetError(f"{source}: there are several data sets; name one of them:{listed}")
    listed = "".join(
        f"\n  --layout {m.layout.name}  ({m.layout.title}: {m.reason})" for m in matches
    )
    raise DatasetError(f"{source}: it can be read in several ways; choose one:{listed}")
