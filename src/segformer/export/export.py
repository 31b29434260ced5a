"""A model -> a folder with a graph that other programs load as it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segformer import __version__
from segformer.checkpoints import layout
from segformer.checkpoints.layout import Description
from segformer.checkpoints.opening import Checkpoint, open_checkpoint
from segformer.export.check import Check, check
from segformer.export.config import ExportConfig
from segformer.export.graph_runner import open_runner
from segformer.export.int8_config import Int8Config
from segformer.export.int8_files import graph_files
from segformer.export.int8_layers import parameter_names
from segformer.export.int8_report import Int8Report
from segformer.export.quantize import open_calibration, quantize
from segformer.files import check_replaceable_folder, check_writable, whole_folder, write_json
from segformer.image import Preprocessing
from segformer.model.encoder import MixTransformer
from segformer.model.pretrained import assemble
from segformer.model.segformer import SegFormer, SegFormerClassifier
from segformer.model.tracing import AnyModel, Graph
from segformer.prediction.runtimes.exported import RECORD_FILE
from segformer.prediction.runtimes.graphs import GRAPH_FILES, OPSET, convert, first_line, require

logger = logging.getLogger(__name__)

_HALF_FILE = "model_fp16.onnx"
"""Name under which transformers.js looks for a model in float16."""

_EXTRA = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The runtime with which a format is checked, and the pip extra that brings it."""


@dataclass(frozen=True)
class Exported:
    """What an export found.

    Attributes:
        checks: Comparisons of the float32 or float16 graph with the model.
        int8: What quantization gained and cost, if it was asked for.
    """

    checks: list[Check]
    int8: Int8Report | None


def export_model(
    source: str | Path,
    out: str | Path,
    config: ExportConfig,
    *,
    int8: Int8Config | None = None,
    images: Sequence[Path] = (),
    overwrite: bool = False,
) -> Exported:
    """Write a model as a graph with all that other programs need, and check it on images.

    Args:
        source: Folder, file or Hub id of a model of any kind.
        out: Folder to write; it appears whole or not at all.
        config: What is inside the graph.
        int8: Whether and how the graph is quantized, after the check. Default: it is not.
        images: Files to check the graph with. Default: a photograph that ships with the package.
        overwrite: Replace the folder if this function wrote it.

    Returns:
        What was found; it is also in ``export.json`` in the folder.

    Raises:
        ValueError: The model cannot be loaded or exported with these options, a package is
            missing, the folder exists, the graph does not compute what the model does
            (`segformer.export.check.ExportMismatch`), or int8 loses too much accuracy
            (`segformer.export.quantize.DropTooLarge`).
        OSError: The folder cannot be written.
    """
    if config.format == "web":
        raise ValueError(
            "format 'web' is a page around a graph: use segformer.export.web.export_web"
        )
    out = Path(out)
    check_replaceable_folder(out, RECORD_FILE, overwrite=overwrite)
    check_writable(out)
    runtime = require(_EXTRA[config.format], _EXTRA[config.format])
    checkpoint = open_checkpoint(source)
    data = open_calibration(config, int8, checkpoint.description) if int8 and int8.int8 else None
    model = _load(checkpoint, source)
    preprocessing = _preprocessing(checkpoint.preprocessing, config)
    graph = Graph(model, preprocessing, input=config.input, output=config.output, half=config.half)
    with whole_folder(out) as folder:
        path = folder / _graph_name(config)
        path.parent.mkdir(exist_ok=True)
        logger.info(f"writing the graph ({config.format})")
        convert(graph, model.config.in_channels, path, config.format, config.size)
        description = replace(checkpoint.description, preprocessing=preprocessing)
        if config.format == "onnx":
            _finish_onnx(path, description, config)
        _write_description(folder, description, config)
        logger.info("comparing it with the model")
        try:
            run = open_runner(path, config.format, any_size=config.size is None)
        except Exception as error:  # each runtime has exceptions of its own
            raise OSError(
                f"{out}: {runtime.__name__} cannot read the written graph; is the disk full? "
                f"({first_line(error)})"
            ) from error
        checks = check(run, model, preprocessing, config, images)
        report, versions = None, {}
        if int8 is not None and data is not None:
            report = quantize(folder, int8, data, parameter_names(graph.network))
            (path, *_) = graph_files(folder)
            versions = {"nncf": require("nncf", "int8").__version__}
        record = {
            "written_by": f"segformer {__version__}",
            "model": str(source),
            "license": checkpoint.license,
            **asdict(config),
            "file": path.relative_to(folder).as_posix(),
            "opset": OPSET if config.format == "onnx" else None,
            "versions": {
                "torch": torch.__version__,
                runtime.__name__: runtime.__version__,
                **versions,
            },
            "checked_with": runtime.__name__,
            "checks": [asdict(found) for found in checks],
            "int8": None if report is None else asdict(report),
        }
        write_json(folder / RECORD_FILE, record)
    return Exported(checks, report)


def _load(checkpoint: Checkpoint, source: str | Path) -> AnyModel:
    if checkpoint.kind == "encoder":
        return MixTransformer.from_pretrained(source)
    if checkpoint.kind == "classifier":
        return assemble(SegFormerClassifier, checkpoint)
    return assemble(SegFormer, checkpoint)


def _preprocessing(preprocessing: Preprocessing, config: ExportConfig) -> Preprocessing:
    """With the size that the graph takes, if it takes one only."""
    if config.size is None or preprocessing.crop == config.size:
        return preprocessing
    return replace(preprocessing, size=config.size, multiple=1, crop=None)


def _graph_name(config: ExportConfig) -> Path:
    if config.format == "onnx":
        return Path("onnx") / (_HALF_FILE if config.half else GRAPH_FILES["onnx"])
    return Path(GRAPH_FILES["openvino"])


def _write_description(folder: Path, description: Description, config: ExportConfig) -> None:
    """The two JSON files that transformers.js and optimum read beside the graph."""
    entries = layout.config_to_hub(description, torch.float32)
    entries["model_type"] = "segformer"  # whatever its decoder: it is inside the graph
    write_json(folder / layout.CONFIG_FILE, entries)
    seen = layout.preprocessing_to_hub(description.preprocessing)
    if config.input == "image":
        seen |= {"do_rescale": False, "do_normalize": False}  # the graph does both
    write_json(folder / layout.PREPROCESSING_FILE, seen)


def _finish_onnx(path: Path, description: Description, config: ExportConfig) -> None:
    """Add metadata, and check that the file is valid ONNX."""
    import onnx

    model = onnx.load(path)
    model.producer_name, model.producer_version = "segformer", __version__
    metadata = {"segformer": {"input": config.input, "output": config.output}}
    if config.for_deepness:
        metadata |= _deepness(description, config)
    onnx.helper.set_model_props(model, {key: json.dumps(v) for key, v in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _deepness(description: Description, config: ExportConfig) -> dict[str, Any]:
    """What the Deepness plugin of QGIS reads from an ONNX file, by key."""
    assert config.size is not None
    preprocessing = description.preprocessing
    scale = 255 * preprocessing.rescale  # the plugin divides pixels by 255
    entries: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(i): name for i, name in enumerate(description.classes.names)},
        "standardization_mean": [mean / scale for mean in preprocessing.mean],
        "standardization_std": [std / scale for std in preprocessing.std],
        "tile_size": config.size[0],
        "tiles_overlap": 15,  # percent
        "seg_thresh": 0.0,  # the most probable class, however low its probability
        "seg_small_segment": 0,
    }
    if config.resolution is not None:
        entries["resolution"] = config.resolution
    return entries
