"""A model -> a static web page that segments images on the visitor's own machine.

The page is in the folder ``page`` beside this module. ``settings.json`` tells it the model's
classes and preprocessing, ``version.js`` which files its service worker keeps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segformer.checkpoints.opening import Checkpoint, open_checkpoint
from segformer.classes import printable
from segformer.export.check import Check
from segformer.export.config import ExportConfig
from segformer.export.export import export_model
from segformer.export.web_runtime import RUNTIME_FILES, find_runtime_files
from segformer.files import (
    check_replaceable_folder,
    check_writable,
    whole_folder,
    write_json,
    write_text,
)

_PAGE = Path(__file__).parent / "page"

_MODEL = "model"
"""Folder of the exported model in the page's."""

_VERSION = "version.js"
"""File that is written last; folders with it are pages of this package."""

_NOT_LISTED = ("index.html", "sw.js", _VERSION)
"""Files that the service worker does not list: it keeps index.html as the folder's address, and
browsers keep the service worker itself."""

_RUN_FOLDERS = ("best", "last")
"""Names of models in the folder of a training run; the run's name says more."""


def export_web(
    source: str | Path,
    out: str | Path,
    config: ExportConfig,
    *,
    title: str | None = None,
    runtime_files: str | Path | None = None,
    images: Sequence[Path] = (),
    overwrite: bool = False,
) -> list[Check]:
    """Write a static web page with a segmentation model.

    Any static web server serves the folder. The model itself is in its folder ``model``, as
    ``segformer export --format onnx`` writes it.

    Args:
        source: Folder, file or Hub id of a segmentation model of 8-bit RGB or gray images.
        out: Folder to write; it appears whole or not at all.
        config: What is inside the graph: of any size, from normalized values to logits.
        title: Heading of the page. Default: the model's name.
        runtime_files: Folder with the files of ONNX Runtime Web. Default: they are downloaded at
            the first export and then kept.
        images: Files to check the graph with. Default: a photograph that ships with the package.
        overwrite: Replace the folder if this function wrote it.

    Returns:
        What was checked of the graph.

    Raises:
        ValueError: The model cannot be loaded or run in the page, the files of ONNX Runtime Web
            cannot be had, the folder exists, or the graph does not compute what the model does.
        OSError: The folder cannot be written.
    """
    out = Path(out)
    check_replaceable_folder(out, _VERSION, overwrite=overwrite)
    check_writable(out)
    graph = _graph_config(config)
    checkpoint = open_checkpoint(source)
    _check_suitable(checkpoint, source)
    runtime = find_runtime_files(runtime_files)
    with whole_folder(out) as folder:
        shutil.copytree(_PAGE, folder, dirs_exist_ok=True)
        for name in RUNTIME_FILES:
            shutil.copyfile(runtime / name, folder / "runtime" / name)
        checks = export_model(source, folder / _MODEL, graph, images=images).checks
        version = _write_settings(folder, checkpoint, title or _name_of(source))
        _write_version(folder, version)
    return checks


def _graph_config(config: ExportConfig) -> ExportConfig:
    """Options of the ONNX file inside the page.

    Raises:
        ValueError: Options that the page does not support.
    """
    graph = replace(config, format="onnx")
    if graph != ExportConfig("onnx", half=config.half):
        raise ValueError(
            "the page runs the model at any size, from normalized values to logits: --size, "
            "--input, --output and --resolution cannot be used with --format web"
        )
    return graph


def _check_suitable(checkpoint: Checkpoint, source: str | Path) -> None:
    """Refuse models of other images than those that a browser decodes."""
    channels = checkpoint.config.in_channels
    if checkpoint.kind != "segmenter":
        raise ValueError(f"{source}: the page is for segmentation models, not a {checkpoint.kind}")
    if channels not in (1, 3):
        raise ValueError(
            f"{source}: takes {channels} channels; browsers read images of red, green and blue"
        )
    if not checkpoint.preprocessing.expects_8_bit:
        raise ValueError(
            f"{source}: does not expect 8-bit values (rescale is "
            f"{checkpoint.preprocessing.rescale:g}), which is what browsers read"
        )


def _name_of(source: str | Path) -> str:
    path = Path(source)
    if path.name in _RUN_FOLDERS and path.parent.name:
        path = path.parent
    return printable(path.stem if path.is_file() else path.name) or "Image segmentation"


def _write_settings(folder: Path, checkpoint: Checkpoint, title: str) -> str:
    """What the page needs to know of its model; returns the version of the page."""
    classes, preprocessing = checkpoint.classes, checkpoint.preprocessing
    (model,) = (folder / _MODEL).rglob("*.onnx")
    large = [model, *(folder / "runtime").glob("*.wasm")]
    settings: dict[str, Any] = {
        "title": title,
        "model": model.relative_to(folder).as_posix(),
        "classes": [
            {"name": name, "color": color}
            for name, color in zip(classes.names, classes.palette, strict=False)
        ],
        "preprocessing": {
            "size": preprocessing.size,
            "multiple": preprocessing.multiple,
            "rescale": preprocessing.rescale,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "resample": preprocessing.resample,
        },
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in large},
    }
    write_json(folder / "settings.json", settings)
    # The version depends on everything in the folder, the settings included
    settings["version"] = version = _hash_of(folder)
    write_json(folder / "settings.json", settings)
    return version


def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _write_version(folder: Path, version: str) -> None:
    """The version and the small files of the page, for the service worker."""
    small = sorted(
        path.relative_to(folder).as_posix()
        for path in (*folder.glob("*"), *(folder / "runtime").glob("*.mjs"))
        if path.is_file() and path.name not in _NOT_LISTED
    )
    values = {"VERSION": version, "SHELL": ["./", *small]}
    lines = (f"self.{name} = {json.dumps(value, indent=2)};\n" for name, value in values.items())
    write_text(folder / _VERSION, "".join(lines))
