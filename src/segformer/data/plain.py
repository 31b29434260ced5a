"""Writing a data set as ``images/``, ``masks/`` and ``dataset.yaml``.

Legend: H W pixels.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from segformer.classes import ClassSet
from segformer.data.dataset import SPLITS, Dataset, DatasetError
from segformer.data.layouts.base import WHOLE
from segformer.data.pairing import Sample
from segformer.data.parallel import map_ordered
from segformer.files import OutputExists, write_json
from segformer.image import ImageArray, SceneTile, read_image

_Result = TypeVar("_Result")

RECORD = "conversion.json"
"""File by which a folder is known that `segformer data` wrote."""

_WRITER = "segformer data"
_OWN_NAMES = frozenset(("images", "masks", "annotations", "dataset.yaml", RECORD))
_RUN_LENGTHS = 3
"""zlib's strategy Z_RLE, fast and small for masks."""


def check_destination(folder: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a destination, before any work is done.

    Args:
        folder: Where a data set is to be written.
        source: What it is made from.
        overwrite: A folder that `segformer data` wrote may be replaced.

    Raises:
        OutputExists: The folder holds something.
        ValueError: The source lies in the folder.
    """
    if source.resolve() == folder.resolve() or folder.resolve() in source.resolve().parents:
        raise ValueError(f"{folder}: the source {source} lies there; choose another destination")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputExists(
            f"{folder} already exists; choose another destination, or pass --overwrite to replace "
            "a folder that segformer data wrote"
        )
    if not _is_own(folder):
        raise OutputExists(
            f"{folder} holds other files than segformer data writes; choose another destination"
        )


def write_record(folder: Path, **entries: Any) -> None:
    """Write what was converted, and mark the folder as written by this package."""
    write_json(folder / RECORD, {"written_by": _WRITER, **entries})


def written_splits(parts: Sequence[Dataset]) -> dict[str, Dataset]:
    """Splits by the name under which ``dataset.yaml`` has them; a source's only split is train.

    Raises:
        DatasetError: None of them can be written, or their classes differ.
    """
    named = {part.split: part for part in parts if part.split in SPLITS}
    whole = [part for part in parts if part.split == WHOLE]
    if whole and "train" not in named:
        named = {"train": whole[0], **named}
    if not named:
        raise DatasetError(
            f"none of the splits {', '.join(part.split for part in parts)} is train, val or test"
        )
    first, *others = named.values()
    first.require_single_labels("writing a data set")
    for other in others:
        if other.classes.names != first.classes.names:
            raise DatasetError(
                f"{first.root}: the splits {first.split} and {other.split} have different classes"
            )
    return named


def write_pairs(
    dataset: Dataset,
    images: Path,
    write: Callable[[Sample, Path, ImageArray, NDArray[np.integer] | None], _Result],
    *,
    skipped: list[str],
    on_sample: Callable[[], None] | None,
) -> Iterator[_Result]:
    """Read the images of a split with their masks, and write each in one of several threads.

    Args:
        dataset: The split.
        images: Folder for its images, of which the folders of all names are made.
        write: Called with a sample, the path of its image below ``images`` under a unique name,
            the image (H, W, C) with its stored values, and the class ids (H, W), which are None
            where the split has no masks.
        skipped: Receives the messages of the samples that cannot be read or written.
        on_sample: Called after each sample.

    Yields:
        What ``write`` returned, in the order of the samples, without those that were skipped.
    """
    has_masks = dataset.has_masks
    paths = [images / name for name in unique_names(dataset)]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)

    def work(pair: tuple[Sample, Path]) -> _Result | ValueError:
        sample, path = pair
        try:
            if has_masks:
                image, class_ids = dataset.read(sample)
                return write(sample, path, image, class_ids)
            image = read_image(sample.image, dataset.channels, as_8_bit=False)
            return write(sample, path, image, None)
        except ValueError as error:
            return error

    for result in map_ordered(work, zip(dataset, paths, strict=True)):
        if isinstance(result, ValueError):
            skipped.append(str(result))
        else:
            yield result
        if on_sample is not None:
            on_sample()


def unique_names(dataset: Dataset) -> list[PurePosixPath]:
    """Path of each image in the folder of its split; images that differ by suffix are renamed.

    Masks have the names of their images, so ``a.jpg`` and ``a.png`` become ``a.jpg`` and
    ``a_2.png``.
    """
    taken: set[str] = set()
    names = []
    prefix = _common_folder(dataset)
    for sample in dataset:
        parts = [p for p in PurePosixPath(sample.name).parts[prefix:] if p not in ("..", "/")]
        name = PurePosixPath(*parts)
        if not isinstance(sample.image, Path):
            name = name.with_suffix(".tif")  # its channels become one file
        stem, number = name.stem, 1
        while name.with_suffix("").as_posix().casefold() in taken:
            number += 1
            name = name.with_stem(f"{stem}_{number}")
        taken.add(name.with_suffix("").as_posix().casefold())
        names.append(name)
    return names


class PlainWriter:
    """Writes masks of class ids, and the description.

    Args:
        folder: An empty folder.
        classes: Of the data set.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self.folder, self.classes = folder, classes
        highest = max(len(classes) - 1, classes.ignore_index)
        self.ignore_index = classes.ignore_index
        if not 0 <= classes.ignore_index <= 65535:
            self.ignore_index = 255 if len(classes) <= 255 else 65535
            highest = max(len(classes) - 1, self.ignore_index)
        self._dtype: type[np.unsignedinteger[Any]] = np.uint8 if highest < 256 else np.uint16

    def write_mask(
        self, image: Path, class_ids: NDArray[np.integer], tile: SceneTile | None = None
    ) -> None:
        """Write the mask of an image below ``images/``; may be called by several threads.

        Args:
            image: Path of the image.
            class_ids: (H, W).
            tile: Where the image is a part of a scene, the part; its mask is a GeoTIFF.
        """
        name = image.relative_to(self.folder / "images")
        path = (self.folder / "masks" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = np.where(class_ids == self.classes.ignore_index, self.ignore_index, class_ids)
        if tile is not None:
            tile.write(path.with_suffix(".tif"), stored.astype(self._dtype))
            return
        Image.fromarray(stored.astype(self._dtype)).save(path, compress_type=_RUN_LENGTHS)

    def describe(self, splits: Mapping[str, Dataset]) -> None:
        """Write ``dataset.yaml``."""
        first = next(iter(splits.values()))
        palette = [list(color) for color in self.classes.palette[: len(self.classes)]]
        entries: dict[str, Any] = {
            "path": ".",
            **{split: f"images/{split}" for split in splits},
            "masks_dir": "masks",
            "ignore_index": self.ignore_index,
            "names": dict(enumerate(self.classes.names)),
        }
        if first.channel_names or first.channels != 3:
            entries["channels"] = list(first.channel_names) or first.channels
        if first.nodata is not None:
            entries["nodata"] = first.nodata
        if first.allow_missing_classes or not first.described:
            entries["allow_missing_classes"] = True
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
        if len({tuple(color) for color in palette}) == len(palette):
            text += f"palette: {json.dumps(palette)}\n"
        (self.folder / "dataset.yaml").write_text(text, encoding="utf-8")


def _common_folder(dataset: Dataset) -> int:
    """Number of folders that begin all names, where names are paths from the root of the source."""
    if any(sample.image != dataset.root / sample.name for sample in dataset):
        return 0
    parents = [PurePosixPath(sample.name).parts[:-1] for sample in dataset]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return len(list(shared))


def _is_own(folder: Path) -> bool:
    """Whether a folder holds what `segformer data` writes and nothing else."""
    if not folder.is_dir() or not {file.name for file in folder.iterdir()} <= _OWN_NAMES:
        return False
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("written_by") == _WRITER
