"""The images that files, folders and patterns stand for, and the names of their results."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from segformer.data.channel_files import channel_files
from segformer.data.layouts.base import WHOLE
from segformer.image import IMAGE_SUFFIXES
from segformer.prediction.names import result_names
from segformer.prediction.outputs import Job, results_in
from segformer.prediction.summary_lines import find_lines, is_lines

logger = logging.getLogger(__name__)


def list_images(sources: Sequence[str | Path], *, out: str | Path | None = None) -> Iterable[Job]:
    """Images named by files, folders and patterns; those of a single folder while it is searched.

    See `find_images`, which has the same arguments, names and order. The images of a folder are
    given before its subfolders are searched, and only the names in one folder are held at a time.

    Raises:
        ValueError: As `find_images`; for a single folder without images, when it has been searched.
    """
    if len(sources) == 1 and Path(sources[0]).is_dir():
        return _FolderSearch(Path(sources[0]), out).jobs()
    return find_images(sources, out=out)


def find_images(sources: Sequence[str | Path], *, out: str | Path | None = None) -> list[Job]:
    """Images named by files, folders (with their subfolders) and patterns.

    Results of a folder's images keep their folders. Where two images would get the same results,
    ``a.jpg`` and ``a.png``, the suffix is kept in the name: ``a.jpg.png``, ``a.png.png``.

    The images of a folder are in alphabetical order, followed by those of its subfolders. Hidden
    files, results of earlier predictions, and the output folder inside of a folder are skipped,
    unless they are named as files.

    Args:
        sources: Files, folders, patterns.
        out: Output folder.

    Raises:
        ValueError: A folder or pattern has no images.
    """
    found: dict[Path, Path] = {}
    results: dict[Path, set[Path]] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = [job.image for job in _FolderSearch(path, out).jobs()]
            found.update({file: file.relative_to(path) for file in inside})
        elif path.exists():
            found.setdefault(path, Path(path.name))
        else:
            # A pattern that the shell did not expand: on Windows, or in quotes
            matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
            images = _without_results(matches, results)
            if not images and glob.has_magic(str(source)):
                other = "" if not matches else " other than results of earlier predictions"
                raise ValueError(f"{source}: no image{other} matches this pattern")
            # A file that does not exist is reported with the other failures
            found.update({match: Path(match.name) for match in images or [path]})
    stems = Counter(relative.with_suffix("").as_posix().lower() for relative in found.values())
    names = {}
    for file, relative in found.items():
        stem = relative.with_suffix("").as_posix()
        names[file] = stem if stems[stem.lower()] == 1 else relative.as_posix()
    return [Job(file, name) for file, name in _distinct(names).items()]


def find_channel_files(folders: Sequence[str | Path], patterns: Sequence[str]) -> list[Job]:
    """Images with one file per channel.

    Args:
        folders: Where they are.
        patterns: For each channel, in the model's order, the path of its file relative to a
            folder, with ``{stem}``, the image's name, and where there are subfolders ``{parent}/``
            in it: ``{parent}/{stem}_B04.tif``.

    Raises:
        ValueError: A pattern is not valid, or a folder has no such images.
    """
    names, files = {}, {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder}: images with one file per channel are given as a folder")
        channels = {f"channel {number}": pattern for number, pattern in enumerate(patterns, 1)}
        found = channel_files(channels, folder).find(WHOLE)
        if not found:
            raise ValueError(f"{folder}: no files like {patterns[0]}")
        for path, parts in found.items():
            names[parts[0]] = path.relative_to(folder).with_suffix("").as_posix()
            files[parts[0]] = parts
    return [Job(file, name, files[file]) for file, name in _distinct(names).items()]


def _distinct(names: Mapping[Path, str]) -> dict[Path, str]:
    """The names of files; those that occurred before get a number, also where case differs."""
    taken: Counter[str] = Counter()
    distinct = {}
    for file, name in names.items():
        taken[name.lower()] += 1
        number = taken[name.lower()]
        distinct[file] = name if number == 1 else f"{name}-{number}"
    return distinct


class _FolderSearch:
    """The images of a folder and its subfolders, without results of predictions.

    Args:
        root: The folder.
        out: Output folder of this run; if it lies in the folder, it is not searched.
    """

    def __init__(self, root: Path, out: str | Path | None) -> None:
        self.root = root
        self.out = None if out is None else Path(out).resolve()
        self.skipped = 0
        self.folders: list[Path] = []  # of results, which are skipped as a whole

    def jobs(self) -> Iterator[Job]:
        """The images; raises a ValueError at the end if there were none."""
        results = {file for folder in self.root.resolve().parents for file in results_in(folder)}
        # Folders to search, the next one last, each with the earlier results in it
        waiting, count = [("", results)], 0
        while waiting:
            folder, results = waiting.pop()
            path = self.root / folder if folder else self.root
            files, inside, has_lines = self._contents(path)
            if has_lines and find_lines(path):
                self.folders.append(path)
                continue
            if here := results_in(path):
                results = results | here
            files = self._without(results, path, files)
            for file, name in zip(files, result_names(files), strict=True):
                count += 1
                yield Job(path / file, folder + name)
            waiting += [(f"{folder}{name}/", results) for name in reversed(inside)]
        if self.skipped:
            logger.info(f"{self.root}: {self.skipped} results of predictions are skipped")
        for skipped in self.folders:
            logger.info(f"{skipped}: results of predictions; the folder is skipped")
        if not count:
            earlier = self.skipped or self.folders
            other = " other than results of earlier predictions" if earlier else ""
            raise ValueError(f"{self.root}: there are no images in this folder{other}")

    def _contents(self, path: Path) -> tuple[list[str], list[str], bool]:
        """Names of the visible images and folders in a folder, each in alphabetical order.

        The last value is whether the folder may be the output folder of an earlier run.
        """
        files, folders, has_lines = [], [], False
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if self.out is None or self.out != Path(entry.path).resolve():
                            folders.append(name)
                    elif name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and entry.is_file():
                        files.append(name)
                    elif is_lines(name):
                        has_lines = True
        except PermissionError:
            logger.warning(f"{path}: cannot be read; the images in this folder are skipped")
        files.sort()
        folders.sort()
        return files, folders, has_lines

    def _without(self, results: set[Path], path: Path, files: list[str]) -> list[str]:
        """The files that are not results of earlier predictions."""
        if not results:
            return files
        resolved = path.resolve()
        kept = [file for file in files if (resolved / file).resolve() not in results]
        self.skipped += len(files) - len(kept)
        return kept


def _without_results(files: Iterable[Path], results: dict[Path, set[Path]]) -> list[Path]:
    """The files that are not results of predictions, with a message about the others.

    Args:
        files: Found by a pattern.
        results: Results of earlier predictions by folder, extended here.
    """
    kept, skipped = [], Counter[Path]()
    for file in files:
        resolved = file.resolve()
        for folder in resolved.parents:
            if folder not in results:
                results[folder] = results_in(folder)
            if resolved in results[folder]:
                skipped[folder] += 1
                break
        else:
            kept.append(file)
    for folder, count in skipped.items():
        logger.info(f"{folder}: {count} results of predictions are skipped")
    return kept
