"""Which mask belongs to which image."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from segformer.data.annotation import Annotation
from segformer.data.errors import DatasetError
from segformer.image import IMAGE_SUFFIXES, MASK_SUFFIXES, ImageFiles, source_files

PLACEHOLDERS = ("stem", "split", "parent")
"""What a pattern of mask names may hold in braces."""

_IGNORED_NAMES = frozenset(("__MACOSX", "@eaDir"))
_LONGEST_SUFFIX = 24


@dataclass(frozen=True)
class Sample:
    """One image and its mask.

    Attributes:
        name: Path of the image inside its split's folder, for messages and reports.
        image: File, the files of the channels, or a tile of a scene.
        mask: File, an annotation to rasterize, or None where there is no mask.
    """

    name: str
    image: ImageFiles
    mask: Path | Annotation | None

    @property
    def image_files(self) -> tuple[Path, ...]:
        """Files of the image: one, or one for each channel."""
        return source_files(self.image)

    @property
    def mask_file(self) -> Path | None:
        """File of the mask or annotation."""
        return self.mask if self.mask is None or isinstance(self.mask, Path) else self.mask.file


@dataclass(frozen=True)
class MaskNames:
    """How the masks of a data set are named.

    Attributes:
        folder: Folder of the masks of a split, which has the same subfolders as the images.
        suffix: What the names of masks have after the name of their image.
        pattern: Path of a mask, relative to ``root``, with ``{stem}``, ``{split}`` and
            ``{parent}`` in it; used instead of ``folder`` and ``suffix`` where it is given.
        root: Folder of the data set.
    """

    folder: Path
    suffix: str = ""
    pattern: str = ""
    root: Path = Path()


def find_samples(
    images: Path,
    names: MaskNames,
    split: str,
    channels: Mapping[Path, tuple[Path, ...]] | None = None,
) -> tuple[tuple[Sample, ...], tuple[Path, ...]]:
    """Pair the images of a split with their masks.

    Args:
        images: Folder of the images, searched with its subfolders.
        names: How masks are named.
        split: "train", "val" or another. A "test" split may be without masks.
        channels: The files of each image by a path in ``images`` that stands for the image, where
            each channel has its own file. Default: each file is an image.

    Returns:
        Samples sorted by name, and the masks that belong to no image.

    Raises:
        DatasetError: There are no images, no masks, or several masks for one image.
    """
    if not images.is_dir():
        raise DatasetError(f"{images}: there is no such folder of images")
    files = visible_files(images, IMAGE_SUFFIXES) if channels is None else list(channels)
    if names.pattern:
        found = {
            file: mask for file in files if (mask := _from_pattern(file, images, names, split))
        }
        masks: dict[Path, list[Path]] = {}
    else:
        masks = _masks_by_stem(images, names, split, files)
        found = {}
        for file in files:
            key = file.relative_to(images).with_suffix("")
            candidates = masks.get(key.with_name(key.name + names.suffix), [])
            if len(candidates) > 1:
                both = " and ".join(str(mask) for mask in candidates)
                raise DatasetError(f"{both}: several masks for the image {file.name}; keep one")
            if candidates:
                found[file] = candidates[0]
    used = set(found.values())
    samples = [
        Sample(
            file.relative_to(images).as_posix(),
            file if channels is None else channels[file],
            found.get(file),
        )
        for file in files
        if file not in used  # masks may lie beside their images
    ]
    if not samples:
        raise DatasetError(f"{images}: there are no images in this folder")
    if not found and split != "test":
        _raise_hint([file.stem for file in files], masks, names)
    stray = [mask for group in masks.values() for mask in group if mask not in used]
    if _same(images, names.folder):
        stray = []
    return tuple(samples), tuple(stray)


def visible_files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files of a folder and its subfolders, sorted, without what systems and tools hide there."""
    wanted = frozenset(suffixes)
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in wanted
        and not any(
            part[0] == "." or part in _IGNORED_NAMES for part in file.relative_to(folder).parts
        )
        and file.is_file()
    ]


def check_pattern(pattern: str) -> str:
    """A pattern of mask names that can be used.

    Raises:
        DatasetError: It names no file for each image.
    """
    try:
        fields = {
            field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None
        }
    except ValueError as error:
        raise DatasetError(f"masks: {pattern!r} is not a pattern ({error})") from None
    if "stem" not in fields or not fields <= set(PLACEHOLDERS):
        raise DatasetError(
            f"masks: {pattern!r} must hold {{stem}}, and may hold {{split}} and {{parent}}: "
            "masks/{split}/{parent}/{stem}_gt.png"
        )
    if Path(pattern).suffix.lower() not in MASK_SUFFIXES:
        raise DatasetError(
            f"masks: {pattern!r} must end with the suffix of the masks, one of "
            f"{', '.join(sorted(MASK_SUFFIXES))}"
        )
    return pattern


def _from_pattern(image: Path, images: Path, names: MaskNames, split: str) -> Path | None:
    parent = image.relative_to(images).parent.as_posix()
    path = names.pattern.format(stem=image.stem, split=split, parent=parent)
    mask = names.root / path
    return mask if mask.is_file() else None


def _masks_by_stem(
    images: Path, names: MaskNames, split: str, files: list[Path]
) -> dict[Path, list[Path]]:
    """Masks by their path inside the folder of masks, without suffix."""
    if not names.suffix and _same(images, names.folder):
        raise DatasetError(
            f"{images}: images and masks would be read from the same folder; set masks_dir, "
            "mask_suffix or masks in dataset.yaml"
        )
    if not names.folder.is_dir():
        if split == "test":
            return {}
        beside = _hint_of_masks_beside(images, names, split, files)
        raise DatasetError(f"{names.folder}: there is no such folder of masks{beside}")
    masks: dict[Path, list[Path]] = {}
    for file in visible_files(names.folder, MASK_SUFFIXES):
        masks.setdefault(file.relative_to(names.folder).with_suffix(""), []).append(file)
    return masks


def _hint_of_masks_beside(images: Path, names: MaskNames, split: str, files: list[Path]) -> str:
    """What to write into dataset.yaml where masks lie in the folder of their images."""
    stems = [file.stem for file in files]
    suffix, mask = _common_suffix(stems, stems)
    if not suffix or not images.resolve().is_relative_to(names.root.resolve()):
        return ""
    parts = images.resolve().relative_to(names.root.resolve()).parts
    folder = "/".join("{split}" if part == split else part for part in parts)
    ending = suffix + next(file.suffix for file in files if file.stem == mask)
    return f'; for masks beside the images write masks: "{folder}/{{parent}}/{{stem}}{ending}"'


def _raise_hint(stems: list[str], masks: dict[Path, list[Path]], names: MaskNames) -> None:
    """Raise a DatasetError where the masks' names show what to write into dataset.yaml."""
    suffix, mask = _common_suffix(stems, [key.name for key in masks])
    if suffix and suffix != names.suffix:
        file = next(group[0] for key, group in masks.items() if key.name == mask)
        raise DatasetError(
            f"{names.folder}: no mask has the name of an image, but there are masks like "
            f"{file.name}; write into dataset.yaml: mask_suffix: {suffix}"
        )


def _common_suffix(stems: list[str], longer: list[str]) -> tuple[str, str]:
    """What at least half of the stems have after them in the longer names, and one of those."""
    known, counts = set(stems), Counter[str]()
    example = dict[str, str]()
    for name in longer:
        for length in range(1, min(_LONGEST_SUFFIX, len(name) - 1) + 1):
            if name[:-length] in known and not name[-length].isalnum():
                counts[name[-length:]] += 1
                example.setdefault(name[-length:], name)
    if not counts:
        return "", ""
    suffix, count = counts.most_common(1)[0]
    masks = sum(name.endswith(suffix) for name in stems)  # where they lie among the images
    return (suffix, example[suffix]) if 2 * count >= len(known) - masks else ("", "")


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()
