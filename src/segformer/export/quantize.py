"""A float32 graph -> one that computes in 8-bit integers and loses no more mIoU than is accepted.

NNCF measures the ranges of values and quantizes the layers. If that loses too much, the layers that
change the logits most go back to float32, as few as are needed. The mIoU is that of
`segformer.evaluation`, measured on the written file as `Predictor` runs it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from segformer.export.config import ExportConfig
from segformer.export.int8_config import Int8Config
from segformer.export.int8_files import (
    graph_files,
    graph_size,
    open_written,
    read_graph,
    write_graph,
)
from segformer.export.int8_layers import layers, wrong_in_int8
from segformer.export.int8_report import FloatLayer, Int8Report
from segformer.export.int8_restore import restore
from segformer.export.int8_search import fewest, rank
from segformer.image import read_image, resize
from segformer.prediction.predictor import Predictor
from segformer.prediction.runtimes.exported import ExportedModel
from segformer.prediction.runtimes.graphs import GraphFile, first_line, require
from segformer.prediction.runtimes.openvino import OpenVINORuntime
from segformer.progress import ProgressBar

logger = logging.getLogger(__name__)

_RANKED_IMAGES = 4
"""Images on which the changes of the logits are compared, at most."""

_SEARCHED_IMAGES = 100
"""Images on which the mIoU is measured during the search, at most; the result is on all."""

_ROUNDS = 7
"""Measured runs of each precision, in turns; the fastest counts, as other processes only delay."""

_NOT_SUPPORTED = "NNCF does not quantize it"

_WRONG = "OpenVINO computes it wrongly in int8 on processors with AMX"


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
    if description.config.multilabel:
        raise ValueError("int8 is for models of one class per pixel: its bound is one on the mIoU")
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
    val.require_single_labels("int8")
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
    before = _score(data.val, predictor)
    if np.isnan(before):
        raise DatasetError(f"{data.val.root}: split {data.val.split!r} has no labeled pixels")
    assert isinstance(predictor.model, ExportedModel)
    graph = predictor.model.graph
    model = read_graph(graph)
    wrong = wrong_in_int8(model) if graph.format == "openvino" else []
    quantized = _run_nncf(model, predictor, data, wrong)
    with TemporaryDirectory(prefix="segformer-") as temporary:
        written = shutil.copytree(folder, Path(temporary) / "int8")
        candidates = _Candidates(quantized, model, graph, written)
        found, after = candidates.write(()), candidates.score(data.val)
        errors: dict[frozenset[str], float] = {}
        if not _drop(before, after) <= int8.max_drop:
            logger.info(f"int8 loses {_drop(before, after):.2f} points; restoring layers")
            examples = [pixels(predictor, sample) for sample in _spread(data.train, _RANKED_IMAGES)]
            errors = rank(quantized, model, graph.format, examples)
            some = _spread(data.val, _SEARCHED_IMAGES)
            some_before = before if len(some) == len(data.val) else _score(some, predictor)
            found, after = _search(
                candidates, list(errors), (some, some_before), (data.val, before), int8.max_drop
            )
        reasons = dict.fromkeys(wrong, _WRONG) | _reasons(errors)
        kept = _float_layers(model, found, graph, names, reasons)
        int8_layers = len(layers(found, graph.format)) - len(kept)
        if not int8_layers or not _drop(before, after) <= int8.max_drop:
            raise DropTooLarge(
                f"no layer can be int8 within a loss of {int8.max_drop:g} points of mIoU: nothing "
                "was written. More images to calibrate on may help, or a larger --max-drop"
            )
        report = Int8Report(
            dataset=str(data.val.root),
            calibration_images=len(data.train),
            validation_images=len(data.val),
            max_drop=int8.max_drop,
            miou={"float32": before, "int8": after},
            drop=_drop(before, after),
            file_bytes={"float32": graph_size(folder), "int8": graph_size(written)},
            **_times(folder, written, pixels(predictor, data.val.samples[0])),
            int8_layers=int8_layers,
            float_layers=kept,
        )
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


def _require_nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use over the network
    nncf = require("nncf", "int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # set_log_level changes all handlers
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
    model: Any, predictor: Predictor, data: CalibrationData, without: Sequence[str]
) -> Any:
    """Quantize all layers but some."""
    nncf = _require_nncf()
    from nncf.quantization import advanced_parameters as advanced

    images = nncf.Dataset(
        data.train.samples, lambda sample: {"pixel_values": pixels(predictor, sample)}
    )
    options = advanced.AdvancedQuantizationParameters(
        # For each channel, NNCF takes the rows of a depthwise convolution's input for its channels,
        # as it is transposed; the graph then takes one height only
        activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
        # SmoothQuant multiplies each input in float32, and scales weights that are to be restored
        smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
    )
    logger.info(f"measuring ranges of values on {len(data.train)} images")
    try:
        with _quiet():
            return nncf.quantize(
                model,
                images,
                # Symmetric ranges: zero points would be subtracted in float32
                preset=nncf.QuantizationPreset.PERFORMANCE,
                ignored_scope=nncf.IgnoredScope(names=list(without)),
                subset_size=len(data.train),
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=options,
            )
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # NNCF and the runtimes have exceptions of their own
        raise ValueError(f"NNCF cannot quantize the graph: {first_line(error)}") from error


@dataclass(frozen=True)
class _Candidates:
    """Graphs between the quantized one and the float32 one, in turns in one folder.

    Attributes:
        quantized: The graph with all layers in int8, as NNCF returned it.
        model: The float32 graph.
        graph: Its file.
        folder: A copy of the exported folder.
    """

    quantized: Any
    model: Any
    graph: GraphFile
    folder: Path

    def write(self, restored: Sequence[frozenset[str]]) -> Any:
        """Write the graph with these groups of layers in float32, and return it."""
        names = frozenset().union(*restored)
        format = self.graph.format
        found = restore(self.quantized, self.model, names, format) if names else self.quantized
        write_graph(found, self.folder, self.graph)
        return found

    def score(self, dataset: Dataset) -> float:
        """The mIoU of the written file."""
        return _score(dataset, open_written(self.folder))


def _search(
    candidates: _Candidates,
    ranked: Sequence[frozenset[str]],
    some: tuple[Dataset, float],
    all_: tuple[Dataset, float],
    max_drop: float,
) -> tuple[Any, float]:
    """Write the graph with the fewest layers in float32 with which a bound holds.

    Args:
        candidates: The graphs.
        ranked: Groups of layers, those that go back to float32 first.
        some: Images to search on, and the mIoU of float32 on them.
        all_: Images on which the bound must hold, and the mIoU of float32 on them.
        max_drop: The bound, in percentage points.

    Returns:
        The graph, and its mIoU on all images. If the bound holds with no int8 layer only, all are
        in float32.
    """

    def holds(count: int) -> bool:
        candidates.write(ranked[:count])
        drop = _drop(some[1], candidates.score(some[0]))
        logger.info(f"{count} of {len(ranked)} groups of layers in float32: {-drop:+.2f} points")
        return drop <= max_drop

    count = fewest(len(ranked), holds)
    while True:
        found = candidates.write(ranked[:count])
        after = candidates.score(all_[0])
        if _drop(all_[1], after) <= max_drop or count == len(ranked):
            return found, after
        count = min(2 * count, len(ranked))


def _drop(before: float, after: float) -> float:
    """Loss of mIoU in percentage points."""
    return 100 * (before - after)


def _score(dataset: Dataset, predictor: Predictor) -> float:
    """The mIoU of a data set."""
    with ProgressBar("measuring the mIoU", len(dataset), "images") as bar:
        return evaluate(dataset, predictor, on_image=bar.advance).scores().miou


def _reasons(errors: Mapping[frozenset[str], float]) -> dict[str, str]:
    """Why layers went back to float32, by name."""
    return {
        name: f"int8 in it alone changes the logits by {error:.2%}"
        for group, error in errors.items()
        for name in group
    }


def _float_layers(
    model: Any,
    found: Any,
    graph: GraphFile,
    names: dict[str, str],
    reasons: Mapping[str, str],
) -> tuple[FloatLayer, ...]:
    """Layers of the result that are not int8, and why."""
    weights = {layer.name: layer.weights for layer in layers(model, graph.format)}
    return tuple(
        FloatLayer(
            names.get(weights.get(layer.name) or "", layer.name),
            reasons.get(layer.name, _NOT_SUPPORTED),
        )
        for layer in layers(found, graph.format)
        if not layer.int8
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what NNCF prints and warns of; errors are exceptions."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
