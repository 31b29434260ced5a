"""A float32 graph -> one that computes in 8-bit integers and loses no more mIoU than is accepted.

NNCF measures the ranges of values, quantizes the layers, and puts layers back into float32 until
the loss of mIoU is within the bound. The mIoU is that of `segformer.evaluation`; the loss is
measured on the written file, as `Predictor` runs it and as other programs do; the lower counts.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.checkpoints.layout import Description
from segformer.data.dataset import Dataset, DatasetError, Sample
from segformer.data.opening import open_dataset
from segformer.evaluation.evaluate import evaluate
from segformer.evaluation.matching import match_classes
from segformer.evaluation.metrics import ConfusionMatrix
from segformer.export.config import ExportConfig
from segformer.export.int8_config import Int8Config
from segformer.export.int8_layers import layers
from segformer.export.int8_report import FloatLayer, Int8Report
from segformer.image import read_image, resize
from segformer.prediction.predictor import Predictor
from segformer.prediction.runtimes.base import Runtime
from segformer.prediction.runtimes.exported import ExportedModel
from segformer.prediction.runtimes.graphs import GRAPH_FILES, GraphFile, first_line, require
from segformer.prediction.runtimes.onnxruntime import ONNXRuntime
from segformer.prediction.runtimes.openvino import OpenVINORuntime
from segformer.progress import ProgressBar

logger = logging.getLogger(__name__)

QUANTIZED_FILE = "model_quantized.onnx"
"""Name under which transformers.js looks for a model in 8-bit integers."""

_RANKED_IMAGES = 8
"""Images on which layers are compared to find the one that costs the most accuracy, at most."""

_ROUNDS = 7
"""Measured runs of each precision, in turns; the fastest counts, as other processes only delay."""

_BY_ACCURACY = "quantized, it costs too much mIoU"
_NOT_SUPPORTED = "NNCF does not quantize it"


class DropTooLarge(ValueError):
    """A graph in 8-bit integers loses more mIoU than is accepted; nothing is written."""


@dataclass(frozen=True)
class CalibrationData:
    """What an int8 graph is measured on.

    Attributes:
        train: Images on which the ranges of values are measured.
        val: Images with masks on which the mIoU is measured.
    """

    train: Dataset
    val: Dataset


def open_calibration(
    config: ExportConfig, int8: Int8Config, description: Description
) -> CalibrationData:
    """Open the data set, and refuse before any work what cannot be quantized or measured.

    Raises:
        RuntimeUnavailable: NNCF is not installed.
        ClassesDiffer: Model and data set have different classes.
        ValueError: The model or the graph cannot be quantized, or the data set does not fit.
    """
    _require_nncf()
    if description.kind != "segmenter":
        raise ValueError(f"int8 is for segmentation models only, not for a {description.kind}")
    if config.half:
        raise ValueError("int8 and half exclude each other")
    if config.input != "float" or config.output != "logits":
        raise ValueError("int8 is for --input float --output logits only")
    assert int8.calibrate is not None
    train, val = (
        _spread(open_dataset(int8.calibrate, split), most)
        for split, most in (("train", int8.calibration_images), ("val", int8.validation_images))
    )
    preprocessing, channels = description.preprocessing, description.config.in_channels
    match_classes(val.classes, description.classes, reduce_labels=preprocessing.reduce_labels)
    if not all(sample.mask is not None for sample in val):
        raise DatasetError(f"{val.root}: split {val.split!r} has images without masks")
    for dataset in (train, val):
        _check_channels(dataset, channels, preprocessing.expects_8_bit)
    return CalibrationData(train, val)


def quantize(
    folder: Path,
    int8: Int8Config,
    data: CalibrationData,
    names: dict[str, str],
) -> Int8Report:
    """Replace the float32 graph in an exported folder by one in 8-bit integers.

    Args:
        folder: The folder; it is changed.
        int8: The options.
        data: The data set.
        names: Names of the modules (`segformer.export.int8_layers.parameter_names`).

    Raises:
        DropTooLarge: The loss of mIoU cannot be kept within the bound.
        ValueError: NNCF cannot quantize the graph, or an image cannot be read.
        OSError: A file cannot be written.
    """
    predictor = Predictor(folder)
    logger.info(f"measuring the mIoU of float32 on {len(data.val)} images")
    before, _ = _score(data.val, predictor)
    if np.isnan(before):
        raise DatasetError(f"{data.val.root}: split {data.val.split!r} has no labeled pixels")
    assert isinstance(predictor.model, ExportedModel)
    graph = predictor.model.graph
    model = _read(graph.path, graph)
    with TemporaryDirectory(prefix="segformer-") as temporary:
        written = shutil.copytree(folder, Path(temporary) / "int8")
        found = first = _run_nncf(model, predictor, int8, data)
        _write(found, written, graph)
        logger.info("measuring the mIoU of int8")
        after = _lowest_score(data.val, written)
        if not 100 * (before - after) <= int8.max_drop:
            logger.info(f"int8 loses {100 * (before - after):.2f} points of mIoU; restoring layers")
            found = _run_nncf(model, predictor, int8, data, Path(temporary))
            _write(found, written, graph)
            after = _lowest_score(data.val, written)
        kept = _float_layers(model, first, found, graph, names)
        report = Int8Report(
            dataset=str(data.val.root),
            calibration_images=len(data.train),
            validation_images=len(data.val),
            max_drop=int8.max_drop,
            miou={"float32": before, "int8": after},
            drop=100 * (before - after),
            file_bytes={"float32": _size(folder), "int8": _size(written)},
            **_times(folder, written, pixels(predictor, data.val.samples[0])),
            int8_layers=len(layers(found, graph.format)) - len(kept),
            float_layers=kept,
        )
        _judge(report)
        for path in graph_files(folder):
            path.unlink()
        for path in graph_files(written):
            shutil.copy2(path, folder / path.relative_to(written))
    return report


def pixels(predictor: Predictor, sample: Sample) -> NDArray[np.float32]:
    """What a predictor gives its runtime for an image, (1, C, H, W)."""
    preprocessing = predictor.preprocessing
    image = read_image(
        sample.image,
        predictor.model.config.in_channels,
        as_8_bit=preprocessing.expects_8_bit,
        nodata=preprocessing.nodata,
    )
    view = resize(image, preprocessing.target_size(*image.shape[:2]), preprocessing.resample)
    return np.ascontiguousarray(preprocessing.normalize(view).transpose(2, 0, 1)[None])


class _Compiled:
    """Runs a model that NNCF compiled with OpenVINO."""

    device = "cpu"

    def __init__(self, compiled: Any):
        self._compiled = compiled

    def __call__(self, pixels: Any) -> Any:
        """(1, C, H, W) float32 -> logits (1, K, h, w) float32."""
        return self._compiled(np.ascontiguousarray(pixels))[0].copy()


def _require_nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use over the network
    nncf = require("nncf", "int8")
    nncf.set_log_level(logging.ERROR)
    return nncf


def _spread(dataset: Dataset, most: int | None) -> Dataset:
    """At most this many samples, evenly from the whole data set."""
    count = len(dataset) if most is None else min(most, len(dataset))
    chosen = [dataset.samples[i * len(dataset) // count] for i in range(count)]
    return replace(dataset, samples=tuple(chosen))


def _check_channels(dataset: Dataset, channels: int, as_8_bit: bool) -> None:
    """Raise ValueError if the images are not what the model takes; the first one stands for all."""
    if dataset.channels not in (3, channels):  # 3 also where nothing is stated
        raise DatasetError(
            f"{dataset.root}: its images have {dataset.channels} channels, "
            f"the model takes {channels}"
        )
    read_image(dataset.samples[0].image, channels, as_8_bit=as_8_bit, nodata=dataset.nodata)


def _run_nncf(
    model: Any,
    predictor: Predictor,
    int8: Int8Config,
    data: CalibrationData,
    scratch: Path | None = None,
) -> Any:
    """Quantize all layers; with a folder for temporary files, only as many as the bound allows."""
    nncf = _require_nncf()
    from nncf.quantization import advanced_parameters as advanced

    assert isinstance(predictor.model, ExportedModel)
    graph = predictor.model.graph
    latest: list[Any] = [None, None]  # what NNCF asked for last, and its predictor

    def score(candidate: Any, samples: Iterable[Sample]) -> tuple[float, list[float]]:
        assert scratch is not None
        if latest[0] is not candidate:
            latest[:] = candidate, _with_runtime(predictor, _candidate(candidate, graph, scratch))
        return _score(replace(data.val, samples=tuple(samples)), latest[1])

    images = nncf.Dataset(
        data.train.samples, lambda sample: {"pixel_values": pixels(predictor, sample)}
    )
    # For each channel, NNCF takes the rows of a depthwise convolution's input for its channels, as
    # it is transposed; the graph then takes one height only
    per_tensor = advanced.AdvancedQuantizationParameters(
        activations_quantization_params=advanced.QuantizationParameters(per_channel=False)
    )
    options = {"subset_size": len(data.train), "model_type": nncf.ModelType.TRANSFORMER}
    logger.info(f"measuring ranges of values on {len(data.train)} images")
    try:
        with _quiet():
            if scratch is None:
                return nncf.quantize(model, images, advanced_parameters=per_tensor, **options)
            return nncf.quantize_with_accuracy_control(
                model,
                images,
                nncf.Dataset(data.val.samples),
                score,
                max_drop=int8.max_drop / 100,
                drop_type=nncf.DropType.ABSOLUTE,
                advanced_quantization_parameters=per_tensor,
                advanced_accuracy_restorer_parameters=advanced.AdvancedAccuracyRestorerParameters(
                    ranking_subset_size=min(len(data.val), _RANKED_IMAGES)
                ),
                **options,
            )
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # NNCF and the runtimes have exceptions of their own
        raise ValueError(f"NNCF cannot quantize the graph: {first_line(error)}") from error


def _candidate(candidate: Any, graph: GraphFile, folder: Path) -> Runtime:
    """What runs a model that NNCF wants to be scored."""
    if graph.format == "openvino":
        return _Compiled(candidate)
    import onnx

    path = folder / "candidate.onnx"
    onnx.save(candidate, path)
    return ONNXRuntime(replace(graph, path=path))


def _with_runtime(predictor: Predictor, runtime: Runtime) -> Predictor:
    """The same predictor with another runtime."""
    other = copy.copy(predictor)
    other.runtime = runtime
    return other


def _score(dataset: Dataset, predictor: Predictor) -> tuple[float, list[float]]:
    """The mIoU of a data set, and those of its images, 0 where there is none."""
    total: ConfusionMatrix | None = None
    each = []
    with ProgressBar("measuring the mIoU", len(dataset), "images") as bar:
        for sample in dataset:
            matrix = evaluate(replace(dataset, samples=(sample,)), predictor)
            each.append(float(np.nan_to_num(matrix.scores().miou)))
            if total is None:
                total = matrix
            else:
                total.counts += matrix.counts
            bar.advance()
    assert total is not None
    return total.scores().miou, each


def _lowest_score(dataset: Dataset, folder: Path) -> float:
    """The mIoU of a written file, as `Predictor` runs it and as other programs do.

    OpenVINO fuses int8 layers in another way when the channels of the input come last, as in
    `Predictor`; the results differ by more than rounding.
    """
    predictor = Predictor(folder)
    miou, _ = _score(dataset, predictor)
    if not isinstance(predictor.runtime, OpenVINORuntime):
        return miou
    import openvino

    path = folder / GRAPH_FILES["openvino"]
    plain = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return min(miou, _score(dataset, _with_runtime(predictor, _Compiled(plain)))[0])


def _float_layers(
    model: Any, first: Any, found: Any, graph: GraphFile, names: dict[str, str]
) -> tuple[FloatLayer, ...]:
    """Layers of the result that are not int8, and why: some were in the first attempt."""
    tried = {layer.name for layer in layers(first, graph.format) if layer.int8}
    weights = {layer.name: layer.weights for layer in layers(model, graph.format)}
    return tuple(
        FloatLayer(
            names.get(weights.get(layer.name) or "", layer.name),
            _BY_ACCURACY if layer.name in tried else _NOT_SUPPORTED,
        )
        for layer in layers(found, graph.format)
        if not layer.int8
    )


def _judge(report: Int8Report) -> None:
    """Raise DropTooLarge if the bound does not hold, or only because nothing is int8."""
    if not report.drop <= report.max_drop:
        raise DropTooLarge(
            f"int8 loses {report.drop:.2f} points of mIoU ({report.miou['float32']:.2%} -> "
            f"{report.miou['int8']:.2%}) with {len(report.float_layers)} layers left in float32; "
            f"at most {report.max_drop:g} are accepted: nothing was written. More images to "
            "calibrate on may help, or a larger --max-drop"
        )
    if not report.int8_layers:
        raise DropTooLarge(
            f"no layer can be int8 within a loss of {report.max_drop:g} points of mIoU: nothing "
            "was written"
        )


def _times(before: Path, after: Path, example: NDArray[np.float32]) -> dict[str, Any]:
    """Seconds of a run of each precision."""
    runtimes = {
        "float32": Predictor(before).runtime,
        "int8": Predictor(after).runtime,
    }
    if runtimes["int8"].__class__ is OpenVINORuntime:
        runtimes["bfloat16"] = Predictor(before, precision="bfloat16").runtime
    seconds = dict.fromkeys(runtimes, float("inf"))
    for measured in range(-1, _ROUNDS):  # the first round compiles
        for name, run in runtimes.items():
            run(example)  # after another runtime, the caches hold its weights
            began = time.perf_counter()
            run(example)
            if measured >= 0:
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return {"seconds": seconds, "timed_shape": example.shape}


def _read(path: Path, graph: GraphFile) -> Any:
    if graph.format == "openvino":
        import openvino

        return openvino.Core().read_model(path)
    import onnx

    return onnx.load(path)


def _write(found: Any, folder: Path, graph: GraphFile) -> None:
    """Write a graph into a copy of the exported folder, in place of the float32 graph."""
    for path in graph_files(folder):
        path.unlink()
    if graph.format == "openvino":
        import openvino

        openvino.save_model(found, folder / GRAPH_FILES["openvino"], compress_to_fp16=False)
        return
    import onnx

    onnx.save(found, folder / "onnx" / QUANTIZED_FILE)


def graph_files(folder: Path) -> list[Path]:
    """The graph in a folder, and the file with its weights."""
    return sorted(
        (path for path in folder.rglob("*") if path.suffix in (".onnx", ".xml", ".bin")),
        key=lambda path: path.suffix,
        reverse=True,  # .xml before .bin
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in graph_files(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what NNCF prints and warns of; errors are exceptions."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
