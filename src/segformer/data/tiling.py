"""Cutting large images and masks into overlapping tiles.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from segformer.data.dataset import Dataset, DatasetError
from segformer.data.pairing import Sample
from segformer.data.plain import (
    PlainWriter,
    check_destination,
    write_pairs,
    write_record,
    written_splits,
)
from segformer.files import whole_folder
from segformer.image import LOSSY_SUFFIXES, ImageArray, SceneTile


@dataclass
class Tiling:
    """What was written.

    Attributes:
        images: Number of images of each split that were cut.
        tiles: Number of tiles of each split.
        unlabeled: Number of tiles that were dropped because none of their pixels is labeled.
        skipped: Messages of the images that cannot be read, or whose masks cannot.
    """

    images: dict[str, int] = field(default_factory=dict)
    tiles: dict[str, int] = field(default_factory=dict)
    unlabeled: int = 0
    skipped: list[str] = field(default_factory=list)


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; the last one ends with the image.

    Args:
        length: Of the side, in pixels.
        size: Of the tiles.
        overlap: Of neighboring tiles at least; less than ``size``.
    """
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def tile(
    parts: Sequence[Dataset],
    folder: str | Path,
    *,
    size: int | None = None,
    overlap: int | None = None,
    overwrite: bool = False,
    on_sample: Callable[[], None] | None = None,
) -> Tiling:
    """Cut splits into tiles, as ``images/``, ``masks/`` and ``dataset.yaml``.

    The folder appears whole or not at all. A tile is named by its upper left corner:
    ``a_y00448_x00000.png``. An image smaller than a tile is one tile of its own size. Tiles
    without a labeled pixel are dropped.

    Tiles of 8-bit images with one or three channels are JPEG (quality 95) where their image is,
    otherwise PNG. All others are TIFF, or ``.npy`` where their image is, with all channels and
    the type that is stored.

    Args:
        parts: Splits of one source, as `segformer.data.conversion.convert` takes them.
        folder: Where to.
        size: Side of the tiles, in pixels. Default: 512. The tiles of scenes are written as
            ``dataset.yaml`` describes them, as GeoTIFF.
        overlap: Of neighboring tiles, in pixels; the last ones may overlap more. Default: 64.
        overwrite: A folder that an earlier conversion wrote may be replaced.
        on_sample: Called after each image.

    Raises:
        DatasetError: None of the splits or none of the images can be cut.
        OutputExists: The folder holds something.
        ValueError: Size or overlap cannot be used.
    """
    one = next((sample.image for part in parts for sample in part), None)
    if isinstance(one, SceneTile) and (size is not None or overlap is not None):
        raise ValueError(
            "size and overlap of the tiles of scenes are tile_size and tile_overlap in dataset.yaml"
        )
    size, overlap = 512 if size is None else size, 64 if overlap is None else overlap
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"overlap must be from 0 to below size; size {size}, overlap {overlap}")
    folder = Path(folder)
    check_destination(folder, parts[0].root, overwrite=overwrite)
    splits = written_splits(parts)
    done = Tiling()
    with whole_folder(folder) as partial:
        writer = PlainWriter(partial, next(iter(splits.values())).classes)
        for split, dataset in splits.items():
            _tile_split(dataset, split, writer, done, size, overlap, on_sample)
        if not any(done.tiles.values()):
            first = f"; the first error: {done.skipped[0]}" if done.skipped else ""
            raise DatasetError(f"{parts[0].root}: there are no tiles with labeled pixels{first}")
        writer.describe({split: d for split, d in splits.items() if done.tiles[split]})
        write_record(
            partial,
            source=str(parts[0].root.resolve()),
            read_as=parts[0].taken_for,
            tile_size=size,
            overlap=overlap,
            images=done.images,
            tiles=done.tiles,
            unlabeled_tiles=done.unlabeled,
            skipped=done.skipped,
        )
    return done


def _tile_split(
    dataset: Dataset,
    split: str,
    writer: PlainWriter,
    done: Tiling,
    size: int,
    overlap: int,
    on_sample: Callable[[], None] | None,
) -> None:
    def write(
        sample: Sample, path: Path, image: ImageArray, class_ids: NDArray[np.integer] | None
    ) -> tuple[int, int]:
        if isinstance(sample.image, SceneTile):  # cut already
            if class_ids is not None:
                writer.write_mask(path, class_ids, sample.image)
            sample.image.save(path)
            return 1, 0
        written = unlabeled = 0
        suffix = tile_suffix(image, sample.image_files[0])
        for top in tile_starts(image.shape[0], size, overlap):
            for left in tile_starts(image.shape[1], size, overlap):
                window = np.s_[top : top + size, left : left + size]
                tile_path = path.with_name(f"{path.stem}_y{top:05}_x{left:05}{suffix}")
                if class_ids is not None:
                    ids = class_ids[window]
                    if (ids == dataset.classes.ignore_index).all():
                        unlabeled += 1
                        continue
                    writer.write_mask(tile_path, ids)
                write_tile(tile_path, image[window])
                written += 1
        return written, unlabeled

    images = writer.folder / "images" / split
    done.images[split] = done.tiles[split] = 0
    for written, unlabeled in write_pairs(
        dataset, images, write, skipped=done.skipped, on_sample=on_sample
    ):
        done.images[split] += 1
        done.tiles[split] += written
        done.unlabeled += unlabeled


def tile_suffix(image: ImageArray, source: Path) -> str:
    """The suffix of the tiles of an image (H, W, C)."""
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return ".jpg" if source.suffix.lower() in LOSSY_SUFFIXES else ".png"
    return ".npy" if source.suffix.lower() == ".npy" else ".tif"


def write_tile(path: Path, image: ImageArray) -> None:
    """Write an image (H, W, C) in the format of the suffix, all channels and values unchanged.

    JPEG changes values slightly.
    """
    image = np.ascontiguousarray(image)
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".tif":
        photometric = "rgb" if image.shape[2] == 3 else "minisblack"
        shown = image[:, :, 0] if image.shape[2] == 1 else image
        tifffile.imwrite(
            path, shown, photometric=photometric, planarconfig="contig", compression="zlib"
        )
    else:
        pil = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        pil.save(path, quality=95, subsampling=0)  # options that only JPEG has
