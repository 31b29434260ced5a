"""8-bit graphs: the loss of mIoU stays within its bound, or nothing is written."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import TINY, draw_dataset, randomize
from segformer import ClassSet, Predictor, Preprocessing, SegFormer, evaluate
from segformer.cli import main
from segformer.data.dataset import DatasetError
from segformer.data.opening import open_dataset
from segformer.evaluation.matching import ClassesDiffer
from segformer.export import export as exporting
from segformer.export import quantize as quantizing
from segformer.export.config import ExportConfig
from segformer.export.export import Exported, export_model
from segformer.export.int8_config import Int8Config
from segformer.export.int8_layers import layers, parameter_names
from segformer.export.quantize import DropTooLarge, pixels
from segformer.model.tracing import Graph
from segformer.prediction.runtimes.graphs import GRAPH_FILES, convert

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
openvino = pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytest.importorskip("nncf", reason="nncf is not installed")

FORMATS = ("onnx", "openvino")
ONE_IS_SLOW = (pytest.param("onnx", marks=pytest.mark.slow), "openvino")
"""Converting a model takes seconds, so the quick tests do it once."""
NAMES = ("noise", "box", "disc")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes."""
    root = draw_dataset(tmp_path_factory.mktemp("data") / "shapes", train=4, val=3)
    for kind in ("images", "masks"):
        for split, name in (("train", "01.png"), ("val", "02.png")):
            path = root / kind / split / name
            Image.open(path).resize((90, 50), Image.Resampling.NEAREST).save(path)
    return root


@pytest.fixture(scope="module")
def source(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells the shapes of the data set apart, by a few steps of training."""
    torch.manual_seed(0)
    config = TINY.__class__(**{**TINY.__dict__, "num_classes": 3})
    preprocessing = Preprocessing(size=64)  # the short side, so sizes differ
    model = randomize(SegFormer(config, ClassSet(NAMES), preprocessing))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    opened = open_dataset(dataset, "train")
    pairs = [opened.read(sample) for sample in opened]
    for step in range(60):
        image, mask = pairs[step % len(pairs)]
        seen = torch.from_numpy(preprocessing.normalize(image)).permute(2, 0, 1)[None]
        logits = torch.nn.functional.interpolate(model(seen), mask.shape, mode="bilinear")
        target = torch.from_numpy(mask.astype(np.int64))[None]
        loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("source") / "model"
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The float32 graph in a format; converting takes seconds, so all tests use copies of it."""
    root = tmp_path_factory.mktemp("float32")

    def path(format: str) -> Path:
        found = root / GRAPH_FILES[format]
        if not found.is_file():
            convert(Graph(SegFormer.from_pretrained(source)), 3, found, format, None)
        return found

    return path


@pytest.fixture(scope="module")
def quick_convert(converted: Callable[[str], Path]) -> Iterator[None]:
    def copy(_graph: Graph, _channels: int, path: Path, format: str, _size: object) -> None:
        for suffix in (path.suffix, ".bin"):
            if converted(format).with_suffix(suffix).is_file():
                shutil.copy(converted(format).with_suffix(suffix), path.with_suffix(suffix))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "convert", copy)
        yield


@pytest.fixture(scope="module")
def exported(
    source: Path,
    dataset: Path,
    quick_convert: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, Exported]]:
    root = tmp_path_factory.mktemp("int8")
    int8 = Int8Config(int8=True, calibrate=dataset, max_drop=5)
    return {
        format: (
            root / format,
            export_model(source, root / format, ExportConfig(format=format), int8=int8),
        )
        for format in FORMATS
    }


def read(folder: Path, format: str) -> Any:
    if format == "onnx":
        return onnx.load(folder / "onnx/model_quantized.onnx")
    return openvino.Core().read_model(folder / "openvino_model.xml")


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_bound_holds(
    exported: dict[str, tuple[Path, Exported]], source: Path, dataset: Path, format: str
) -> None:
    """The mIoU of the report is that of the folder, and it is within the bound."""
    folder, found = exported[format]
    report = found.int8
    assert report is not None and report.int8_layers > 0
    before, after = (evaluate(dataset, model).miou for model in (source, folder))
    assert before > 0.5, "the model of this test has learned nothing"
    assert report.miou["float32"] == pytest.approx(before, abs=1e-3)
    assert report.miou["int8"] == pytest.approx(after)
    assert report.drop == pytest.approx(100 * (report.miou["float32"] - report.miou["int8"]))
    assert report.drop <= 5


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_graph_is_int8(exported: dict[str, tuple[Path, Exported]], format: str) -> None:
    folder, found = exported[format]
    written = {path.suffix: path.name for path in folder.rglob("*") if path.suffix != ".json"}
    names = {".onnx": "model_quantized.onnx"} if format == "onnx" else {
        ".xml": "openvino_model.xml", ".bin": "openvino_model.bin"
    }  # fmt: skip
    assert {key: value for key, value in written.items() if key} == names
    all_layers = layers(read(folder, format), format)
    assert found.int8 is not None
    assert sum(layer.int8 for layer in all_layers) == found.int8.int8_layers
    assert len(all_layers) == found.int8.int8_layers + len(found.int8.float_layers)
    if format == "onnx":
        (metadata,) = (e for e in read(folder, format).metadata_props if e.key == "segformer")
        assert json.loads(metadata.value) == {"input": "float", "output": "logits"}
    else:
        stored = [op.data for op in read(folder, format).get_ops()
                  if op.get_type_name() == "Constant"]  # fmt: skip
        assert sum(values.dtype in (np.int8, np.uint8) for values in stored) > 10


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_any_size_still_runs(
    exported: dict[str, tuple[Path, Exported]], source: Path, format: str
) -> None:
    """Quantization is per tensor, so no size of an image is fixed by it."""
    for size in ((64, 64), (77, 131), (200, 90)):
        image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        found = Predictor(exported[format][0])(image).label_map
        assert found.shape == size
        assert (found == Predictor(source, device="cpu")(image).label_map).mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_report(exported: dict[str, tuple[Path, Exported]], dataset: Path, format: str) -> None:
    folder, found = exported[format]
    record = json.loads((folder / "export.json").read_text())
    report = record["int8"]
    assert found.int8 is not None
    assert record["file"] == (
        "onnx/model_quantized.onnx" if format == "onnx" else "openvino_model.xml"
    )
    assert record["versions"].keys() >= {"nncf"}
    assert report["dataset"] == str(dataset) and report["max_drop"] == 5
    assert (report["calibration_images"], report["validation_images"]) == (4, 3)
    precisions = {"float32", "int8"}
    timed = precisions if format == "onnx" else precisions | {"bfloat16"}
    assert report["miou"].keys() == report["file_bytes"].keys() == precisions
    assert report["seconds"].keys() == timed
    assert all(value > 0 for value in report["seconds"].values())
    written = sum(
        f.stat().st_size for f in folder.rglob("*") if f.suffix in (".onnx", ".bin", ".xml")
    )
    assert report["file_bytes"]["int8"] == written
    text = "\n".join(found.int8.lines())
    assert f"{report['int8_layers']} of" in text and "points" in text
    for layer in report["float_layers"]:
        assert layer["reason"] and layer["name"] in text


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_layers_go_back_to_float32(
    source: Path,
    dataset: Path,
    quick_convert: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
) -> None:
    """As if int8 with fewer than three layers in float32 lost half of the mIoU."""
    score = quantizing._score

    def lowered(data: Any, predictor: Predictor) -> float:
        miou = score(data, predictor)
        model = predictor.model.graph.path
        loaded = onnx.load(model) if format == "onnx" else openvino.Core().read_model(model)
        found = [layer.int8 for layer in layers(loaded, format)]
        return miou - 0.5 * (any(found) and found.count(False) < least)

    monkeypatch.setattr(quantizing, "_score", lowered)
    # Convolutions that OpenVINO computes wrongly; products of ONNX that NNCF does not quantize
    others = 3 if format == "openvino" else 5
    least = others + 3
    int8 = Int8Config(int8=True, calibrate=dataset, max_drop=10)
    found = export_model(source, tmp_path / "out", ExportConfig(format=format), int8=int8)
    assert found.int8 is not None and found.int8.int8_layers > 10
    back = [layer.name for layer in found.int8.float_layers if "changes the logits" in layer.reason]
    assert 3 <= len(back) < 10
    assert len(found.int8.float_layers) == len(back) + others
    network = Graph(SegFormer.from_pretrained(source)).network
    assert set(back) & set(parameter_names(network).values())
    assert f"in float32: {back[0]} (" in "\n".join(found.int8.lines())
    assert evaluate(dataset, tmp_path / "out").miou == pytest.approx(found.int8.miou["int8"])


@pytest.fixture
def no_nncf(quick_convert: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of NNCF, which takes long: the float32 graph as it is."""
    monkeypatch.setattr(quantizing, "_run_nncf", lambda model, *_: model)


@pytest.mark.parametrize("format", ONE_IS_SLOW)
def test_a_bound_that_cannot_hold(
    no_nncf: None, source: Path, dataset: Path, tmp_path: Path, format: str
) -> None:
    """Nothing in float32 is called int8."""
    int8 = Int8Config(int8=True, calibrate=dataset, max_drop=5)
    with pytest.raises(DropTooLarge, match="no layer can be int8 within a loss of 5 points"):
        export_model(source, tmp_path / "out", ExportConfig(format=format), int8=int8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ONE_IS_SLOW)
def test_a_disk_that_fills(
    no_nncf: None,
    source: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
) -> None:
    """A limit on the size of files: writes beyond it fail as on a full disk."""
    write = quantizing.write_graph
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*given: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        write(*given)

    monkeypatch.setattr(quantizing, "write_graph", limited)
    int8 = Int8Config(int8=True, calibrate=dataset)
    try:
        with pytest.raises(OSError) as caught:
            export_model(source, tmp_path / "out", ExportConfig(format=format), int8=int8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors come before the model is converted."""

    def fail(*_: object) -> None:
        raise AssertionError("the model was converted")

    monkeypatch.setattr(exporting, "convert", fail)


def words(source: Path, out: Path, *more: object) -> list[str]:
    return ["export", str(source), "--format", "openvino", "--out", str(out), *map(str, more)]


def test_a_data_set_that_does_not_fit(
    source: Path, dataset: Path, tmp_path: Path, no_work: None
) -> None:
    other = draw_dataset(tmp_path / "other")
    description = yaml.safe_load((other / "dataset.yaml").read_text())
    config = ExportConfig(format="openvino")

    def export(**entries: object) -> None:
        (other / "dataset.yaml").write_text(yaml.safe_dump(description | entries))
        int8 = Int8Config(int8=True, calibrate=other)
        export_model(source, tmp_path / "out", config, int8=int8)

    with pytest.raises(ClassesDiffer, match="the data set has 2 classes"):
        export(names={0: "noise", 1: "shape"})
    with pytest.raises(ClassesDiffer, match="cat"):
        export(names={0: "noise", 1: "box", 2: "cat"})
    with pytest.raises(DatasetError, match="its images have 4 channels, the model takes 3"):
        export(channels=4)
    with pytest.raises(ValueError, match="channels"):
        quantizing._check_channels(open_dataset(dataset, "train"), 4, as_8_bit=True)
    with pytest.raises(DatasetError, match="no split 'val'"):
        del description["val"]
        export()
    with pytest.raises(DatasetError, match="no such data set"):
        int8 = Int8Config(int8=True, calibrate=tmp_path / "missing")
        export_model(source, tmp_path / "out", config, int8=int8)
    assert not (tmp_path / "out").exists()


def test_images_without_masks(source: Path, tmp_path: Path, no_work: None) -> None:
    other = draw_dataset(tmp_path / "other")
    (other / "masks/val/00.png").unlink()
    int8 = Int8Config(int8=True, calibrate=other)
    with pytest.raises(DatasetError, match="without masks"):
        export_model(source, tmp_path / "out", ExportConfig(format="onnx"), int8=int8)


@pytest.mark.parametrize("options", [{"half": True}, {"output": "label-map"}, {"input": "image"}])
def test_options_that_exclude_each_other(
    source: Path, dataset: Path, tmp_path: Path, options: dict[str, Any], no_work: None
) -> None:
    int8 = Int8Config(int8=True, calibrate=dataset)
    with pytest.raises(ValueError, match="int8"):
        export_model(source, tmp_path / "out", ExportConfig("onnx", **options), int8=int8)


def test_classes_that_overlap(dataset: Path, tmp_path: Path, no_work: None) -> None:
    config = TINY.__class__(**{**TINY.__dict__, "num_classes": 3, "multilabel": True})
    SegFormer(config, ClassSet(NAMES)).save_pretrained(tmp_path / "model")
    int8 = Int8Config(int8=True, calibrate=dataset)
    with pytest.raises(ValueError, match="one class per pixel"):
        export_model(tmp_path / "model", tmp_path / "out", ExportConfig("openvino"), int8=int8)


def test_a_web_page_is_not_quantized(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", "human-parsing-b0", "--format", "web", "--out", str(tmp_path / "out")]
    assert main([*given, "--int8", "--calibrate", str(dataset)]) == 1
    assert "--int8 is for --format onnx and openvino" in capsys.readouterr().err


def test_values_that_are_not_possible(dataset: Path) -> None:
    with pytest.raises(ValueError, match="--calibrate DATASET"):
        Int8Config(int8=True)
    with pytest.raises(ValueError, match="--int8"):
        Int8Config(calibrate=dataset)
    for options in ({"max_drop": -1}, {"calibration_images": 0}, {"validation_images": 0}):
        with pytest.raises(ValueError):
            Int8Config(int8=True, calibrate=dataset, **options)


def test_nncf_is_not_installed(
    source: Path,
    dataset: Path,
    tmp_path: Path,
    no_work: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert main(words(source, tmp_path / "out", "--int8", "--calibrate", dataset)) == 1
    assert "pip install 'segformer[int8]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(
    source: Path,
    dataset: Path,
    quick_convert: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another folder as a user runs it; NNCF prints nothing between the lines."""
    more = ("--int8", "--calibrate", dataset, "--max-drop", 20, "--calibration-images", 2,
            "--validation-images", 2)  # fmt: skip
    assert main(words(source, tmp_path / "out", *more)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("checked: ", "int8: ", "written: ")) for line in printed)
    assert any("mIoU" in line and "on 2 images" in line for line in printed)
    record = json.loads((tmp_path / "out/export.json").read_text())["int8"]
    assert (record["calibration_images"], record["validation_images"]) == (2, 2)


def test_calibration_sees_what_the_model_sees(source: Path, dataset: Path) -> None:
    predictor = Predictor(source, device="cpu")
    given: list[np.ndarray] = []
    run = predictor.runtime
    predictor.runtime = lambda batch: given.append(np.array(batch)) or run(batch)
    for sample in open_dataset(dataset, "train"):
        predictor(sample.image)
        np.testing.assert_array_equal(pixels(predictor, sample), given[-1])
    assert len({array.shape for array in given}) > 1


@pytest.mark.parametrize("format", ONE_IS_SLOW)
def test_layers_have_the_names_of_modules(
    source: Path, converted: Callable[[str], Path], format: str
) -> None:
    path = converted(format)
    model = onnx.load(path) if format == "onnx" else openvino.Core().read_model(path)
    names = parameter_names(Graph(SegFormer.from_pretrained(source)).network)
    found = [layer for layer in layers(model, format) if layer.weights is not None]
    assert {names[layer.weights] for layer in found if layer.weights in names} >= {
        "encoder.stages.0.blocks.0.attention.query", "encoder.stages.1.blocks.1.ffn.depthwise",
        "encoder.stages.3.merging.projection", "decoder.classifier",
    }  # fmt: skip
    assert not any(layer.int8 for layer in found)
