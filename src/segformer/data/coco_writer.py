"""Writing COCO JSON: one run-length encoded annotation for each class in an image.

Legend: H W pixels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from segformer.classes import ClassSet
from segformer.data.run_lengths import encode

IGNORED = "ignored"
"""Category of pixels that are not labeled, for which COCO has no notation."""

_BACKGROUND = ("background", "_background_")


def is_background(name: str) -> bool:
    """Whether a class is what COCO leaves without an annotation."""
    return name.lower() in _BACKGROUND


def mask_annotation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The fields of an annotation that follow from its mask (H, W), which marks a pixel at least.

    They are ``segmentation`` (compressed run lengths), ``area``, ``bbox`` and ``iscrowd``.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "segmentation": {"size": list(mask.shape), "counts": encode(mask)},
        "area": int(np.count_nonzero(mask)),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "iscrowd": 0,
    }


class CocoWriter:
    """Writes ``annotations/instances_SPLIT.json``, entry by entry.

    Pixels without an annotation are the background. Pixels that are not labeled get the category
    "ignored".

    Args:
        folder: Folder of the data set.
        split: Name of the split.
        classes: Of the data set.
        has_masks: Whether annotations are written; without, the file is called
            ``image_info_SPLIT.json``, as in COCO.
    """

    def __init__(self, folder: Path, split: str, classes: ClassSet, *, has_masks: bool = True):
        name = f"{'instances' if has_masks else 'image_info'}_{split}.json"
        self.path, self.classes = folder / "annotations" / name, classes
        self.path.parent.mkdir(exist_ok=True)
        self.has_ignored = False
        self._images = self._annotations = 0
        self._stack = ExitStack()

    def __enter__(self) -> CocoWriter:
        self._file = self._open(self.path)
        # Annotations follow all images in the file; they wait here so that memory stays flat
        self._waiting = self._open(self.path.with_suffix(".part"))
        self._file.write('{"images": [')
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> IO[str]:
        return self._stack.enter_context(path.open("w+", encoding="utf-8"))

    def annotate(self, class_ids: NDArray[np.integer]) -> list[dict[str, Any]]:
        """Annotations of class ids (H, W); may be called by several threads."""
        found = []
        for class_id in np.unique(class_ids).tolist():
            is_ignored = class_id == self.classes.ignore_index
            if not is_ignored and is_background(self.classes.names[class_id]):
                continue
            category = len(self.classes) + 1 if is_ignored else class_id + 1
            found.append({"category_id": category, **mask_annotation(class_ids == class_id)})
        return found

    def add(
        self, name: PurePosixPath, shape: Sequence[int], annotations: Sequence[dict[str, Any]]
    ) -> None:
        """Write an image (H, W) and its annotations."""
        self._images += 1
        image = {
            "id": self._images,
            "file_name": name.as_posix(),
            "height": shape[0],
            "width": shape[1],
        }
        self._file.write((",\n" if self._images > 1 else "\n") + _dump(image))
        for annotation in annotations:
            self._annotations += 1
            self.has_ignored |= annotation["category_id"] > len(self.classes)
            entry = {"id": self._annotations, "image_id": self._images, **annotation}
            self._waiting.write((",\n" if self._annotations > 1 else "\n") + _dump(entry))

    def finish(self) -> None:
        """Write annotations and categories."""
        self._file.write('\n],\n"annotations": [')
        self._waiting.seek(0)
        shutil.copyfileobj(self._waiting, self._file)
        categories = [
            {"id": i + 1, "name": name, "supercategory": ""}
            for i, name in enumerate(self.classes.names)
            if not is_background(name)
        ]
        if self.has_ignored:
            name = IGNORED
            while name in self.classes.names:
                name += "_"
            categories.append({"id": len(self.classes) + 1, "name": name, "supercategory": ""})
        rows = ",\n".join(_dump(category) for category in categories)
        self._file.write(f'\n],\n"categories": [\n{rows}\n]}}\n')
        self._stack.close()
        self.path.with_suffix(".part").unlink()


def _dump(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False)
