"""Exported folders: other programs can load them, and the graph computes what the model does."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, randomize
from segformer import (
    ClassPredictor,
    ClassSet,
    MixTransformer,
    Predictor,
    Preprocessing,
    SegFormer,
    SegFormerClassifier,
)
from segformer.checkpoints.errors import CheckpointError
from segformer.cli import main
from segformer.export import export as exporting
from segformer.export.check import ExportMismatch, check
from segformer.export.config import ExportConfig
from segformer.export.export import export_model
from segformer.export.graph_runner import open_runner
from segformer.files import OutputExists
from segformer.image import read_mask
from segformer.model import tracing
from segformer.model.tracing import Graph
from segformer.prediction.runtimes import graphs
from segformer.prediction.runtimes.exported import open_exported
from segformer.prediction.upsample import logits_to_label_map

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
openvino = pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

ROOT = Path(__file__).parent.parent.parent
NAMES = ("background", "hair", "skin", "shoes", "bag")
SHAPES = [(1, 3, 77, 131), (3, 3, 160, 65), (2, 3, 32, 40)]
FORMATS = ("onnx", "openvino")


def tiny() -> SegFormer:
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=(64, 96))
    return randomize(SegFormer(TINY, ClassSet(NAMES), preprocessing)).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in both formats, for any size."""
    root = tmp_path_factory.mktemp("exported")
    for format in FORMATS:
        export_model(source, root / format, ExportConfig(format=format))
    return {format: root / format for format in FORMATS}


def run_file(folder: Path, pixels: np.ndarray) -> np.ndarray:
    """The output of the graph, with the other program's own functions alone."""
    (path,) = [*folder.rglob("*.onnx"), *folder.rglob("*.xml")]
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).run(None, {"pixel_values": pixels})[0]
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", hints)({"pixel_values": pixels})["logits"]


@pytest.mark.parametrize("format", FORMATS)
def test_any_size_and_batch(folders: dict[str, Path], format: str) -> None:
    """Sizes other than the traced one, odd ones, and smaller ones than PyTorch traces."""
    for shape in SHAPES:
        pixels = torch.randn(shape)
        with torch.no_grad():
            expected = tiny()(pixels).numpy()
        found = run_file(folders[format], pixels.numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_folder_is_what_others_read(folders: dict[str, Path]) -> None:
    """Names that transformers.js and optimum look for; transformers reads the two JSON files."""
    transformers = pytest.importorskip("transformers")
    names = {
        format: {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        for format, folder in folders.items()
    }
    described = {"config.json", "preprocessor_config.json", "export.json"}
    assert names["onnx"] == {"onnx/model.onnx", *described}
    assert names["openvino"] == {"openvino_model.xml", "openvino_model.bin", *described}
    for folder in folders.values():
        config = transformers.AutoConfig.from_pretrained(folder)
        assert config.model_type == "segformer"
        assert config.architectures == ["SegformerForSemanticSegmentation"]
        assert list(config.id2label.values()) == list(NAMES)
        entries = json.loads((folder / "preprocessor_config.json").read_text())
        assert entries["image_processor_type"] == "SegformerImageProcessor"


def test_the_onnx_file(folders: dict[str, Path]) -> None:
    model = onnx.load(folders["onnx"] / "onnx/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (imported,) = model.opset_import
    assert imported.domain == "" and imported.version == 18
    axes = [axis.dim_param or axis.dim_value for axis in shape(model.graph.input[0])]
    assert model.graph.input[0].name == "pixel_values" and model.graph.output[0].name == "logits"
    assert axes == ["batch", 3, "height", "width"]
    assert shape(model.graph.output[0])[1].dim_value == 5
    assert "s" not in {word for value in model.graph.value_info for axis in shape(value)
                       for word in re.findall(r"[a-z]+", axis.dim_param)}  # fmt: skip
    assert model.ir_version == 8
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata == {"segformer": {"input": "float", "output": "logits"}}


def test_a_file_for_deepness(tmp_path: Path) -> None:
    """The plugin divides pixels by 255, and normalizes with what it finds in the file."""
    model = tiny()
    model.preprocessing = Preprocessing(mean=(10, 20, 30), std=(5, 6, 7), rescale=0.5)
    model.save_pretrained(tmp_path / "model")
    config = ExportConfig("onnx", size=(64, 64), output="probabilities", resolution=30)
    export_model(tmp_path / "model", tmp_path / "out", config)
    file = onnx.load(tmp_path / "out/onnx/model.onnx")
    metadata = {entry.key: json.loads(entry.value) for entry in file.metadata_props}
    assert metadata["model_type"] == "Segmentor"
    assert metadata["class_names"] == {str(i): name for i, name in enumerate(NAMES)}
    assert (metadata["tile_size"], metadata["tiles_overlap"], metadata["resolution"]) == (
        64,
        15,
        30,
    )
    assert (metadata["seg_thresh"], metadata["seg_small_segment"]) == (0, 0)
    mean, std = metadata["standardization_mean"], metadata["standardization_std"]
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels = ((image / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    found = run_file(tmp_path / "out", pixels)
    expected = Predictor(model, size=(64, 64), device="cpu")(image).label_map
    np.testing.assert_array_equal(found[0].argmax(0), expected)


def test_a_resolution_that_no_program_reads() -> None:
    for options in ({}, {"size": (64, 96), "output": "probabilities"}, {"size": (64, 64)}):
        with pytest.raises(ValueError, match="Deepness.*--size 512 512 --output probabilities"):
            ExportConfig("onnx", resolution=30, **options)


def shape(value: object) -> list:
    return list(value.type.tensor_type.shape.dim)


def test_onnxsim_finds_the_same(folders: dict[str, Path]) -> None:
    onnxsim = pytest.importorskip("onnxsim", reason="onnxsim is not installed")
    model = onnx.load(folders["onnx"] / "onnx/model.onnx")
    simplified, same = onnxsim.simplify(model)
    assert same
    pixels = np.random.default_rng(0).standard_normal((1, 3, 65, 99)).astype(np.float32)
    sessions = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (model, simplified)]
    first, second = (session.run(None, {"pixel_values": pixels})[0] for session in sessions)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)


def test_what_was_checked_is_written(folders: dict[str, Path], source: Path) -> None:
    for format, folder in folders.items():
        record = json.loads((folder / "export.json").read_text())
        assert record["format"] == format and record["model"] == str(source)
        assert record["checked_with"] == ("onnxruntime" if format == "onnx" else "openvino")
        assert [entry["shape"] for entry in record["checks"]] == [[2, 64, 96, 3], [2, 333, 259, 3]]
        for entry in record["checks"]:
            assert 0 <= entry["largest_difference"] < 1e-3
            assert entry["same_class"] >= 0.9999


@pytest.mark.slow  # converts models of its own
@pytest.mark.parametrize("output", ["label-map", "probabilities"])
def test_outputs_at_the_size_of_the_image(tmp_path: Path, output: str, source: Path) -> None:
    """Straight from 8-bit values; and as a fixed size for OpenVINO."""
    folder = tmp_path / "out"
    options = ExportConfig(format="onnx", input="image", output=output)
    export_model(source, folder, options)
    images = np.random.default_rng(0).integers(0, 255, (2, 77, 131, 3), dtype=np.uint8)
    found = run_file(folder, images)
    model = tiny()
    pixels = np.stack([model.preprocessing.normalize(image) for image in images])
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    expected = np.stack([logits_to_label_map([one], (77, 131))[0] for one in logits])
    if output == "label-map":
        assert found.dtype == np.uint8
        assert (found == expected).mean() > 0.9999
    else:
        assert found.shape == (2, 5, 77, 131)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
        assert (found.argmax(1) == expected).mean() > 0.9999
    with pytest.raises(ValueError, match="--input float"):
        open_exported(folder)


def test_half_and_a_fixed_size(tmp_path: Path, source: Path) -> None:
    options = ExportConfig(format="onnx", half=True, size=(64, 96))
    export_model(source, tmp_path / "half", options)
    assert (tmp_path / "half/onnx/model_fp16.onnx").is_file()
    model = onnx.load(tmp_path / "half/onnx/model_fp16.onnx")
    stored = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert stored == {onnx.TensorProto.FLOAT16}
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    predictor = Predictor(tmp_path / "half")
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    expected = Predictor(tiny(), device="cpu")
    np.testing.assert_allclose(
        predictor.logits(image), expected.logits(image).numpy(), rtol=0, atol=0.05
    )
    assert predictor(image).label_map.shape == (70, 90)
    with pytest.raises(ValueError, match="exported for single images of 64 x 96 pixels"):
        Predictor(tmp_path / "half", size=128).logits(image)


@pytest.mark.slow  # converts models of its own
@pytest.mark.parametrize("kind", ["classifier", "encoder"])
def test_classifiers_and_encoders(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = randomize(SegFormerClassifier(TINY, preprocessing=Preprocessing(size=64))).eval()
    if kind == "classifier":
        model.save_pretrained(tmp_path / "model")
    else:
        torch.save(model.encoder.state_dict(), tmp_path / "model.pth")
    source = tmp_path / ("model" if kind == "classifier" else "model.pth")
    export_model(source, tmp_path / "out", ExportConfig(format="openvino"))
    if kind == "classifier":
        image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        found = ClassPredictor(tmp_path / "out")(image).probabilities
        expected = ClassPredictor(model, device="cpu")(image).probabilities
        np.testing.assert_allclose(found, expected, atol=1e-5)
        with pytest.raises(ValueError, match="ClassPredictor"):
            Predictor(tmp_path / "out")
        return
    pixels = torch.randn(1, 3, 77, 131)
    encoder = MixTransformer.from_pretrained(source)
    with torch.no_grad():
        expected = encoder(pixels)
    compiled = openvino.Core().compile_model(
        tmp_path / "out/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = compiled(pixels.numpy())
    for i, maps in enumerate(expected):
        np.testing.assert_allclose(found[f"feature_maps.{i}"], maps, rtol=0, atol=1e-4)


@pytest.fixture
def quick_convert(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the graph that was written already."""

    def copy(_graph: Graph, _channels: int, path: Path, format: str, _size: object) -> None:
        (written,) = [*folders[format].rglob("*.onnx"), *folders[format].rglob("*.xml")]
        shutil.copy(written, path)

    monkeypatch.setattr(exporting, "convert", copy)


@pytest.mark.parametrize("format", ["onnx"])
def test_a_graph_that_differs_is_refused(
    source: Path, tmp_path: Path, format: str, quick_convert: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altered(*args: Any, **options: Any) -> Callable:
        run = open_runner(*args, **options)
        return lambda pixels: [output + 2e-3 for output in run(pixels)]

    monkeypatch.setattr(exporting, "open_runner", altered)
    with pytest.raises(ExportMismatch, match=r"differs from the model by 0\.002"):
        export_model(source, tmp_path / "out", ExportConfig(format=format))
    assert not list(tmp_path.iterdir())


def test_values_too_large_for_float16() -> None:
    model = tiny()

    def overflow(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels)).numpy()
        logits[0, 0, 0, 0] = np.inf
        return [logits]

    config = ExportConfig(format="onnx", half=True)
    with pytest.raises(ExportMismatch, match="do not fit into float16; export without --half"):
        check(overflow, model, model.preprocessing, config)


def test_label_maps_that_differ_are_refused() -> None:
    model = tiny()
    config = ExportConfig(format="onnx", output="label-map")

    def constant(pixels: np.ndarray) -> list[np.ndarray]:
        return [np.zeros((2, *pixels.shape[2:]), np.uint8)]

    with pytest.raises(ExportMismatch, match="of the pixels the same class"):
        check(constant, model, model.preprocessing, config)


def test_nothing_is_replaced(source: Path, tmp_path: Path, quick_convert: None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    with pytest.raises(OutputExists, match="--overwrite"):
        export_model(source, tmp_path / "mine", ExportConfig(format="onnx"))
    assert (tmp_path / "mine/file").read_text() == "kept"
    words = ["export", str(source), "--format", "onnx", "--out", str(tmp_path / "mine")]
    assert main(words) == 1
    assert main([*words, "--overwrite"]) == 1  # it is not an exported model
    assert (tmp_path / "mine/file").read_text() == "kept"
    (tmp_path / "mine/file").unlink()
    assert main(words) == 0
    assert main(words) == 1
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "mine/onnx/model.onnx").is_file()


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_fills(
    source: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    format: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit on the size of files: writes beyond it fail as on a full disk."""

    def write(_program: object, _pixels: object, path: Path) -> None:
        (written,) = [*folders[format].rglob("*.onnx"), *folders[format].rglob("*.xml")]
        if format == "onnx":
            onnx.save(onnx.load(written), path)
        else:
            openvino.save_model(openvino.Core().read_model(written), path)

    monkeypatch.setattr(tracing, "trace", lambda *_: (None, None))  # takes seconds
    monkeypatch.setattr(graphs, f"_write_{format}", write)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises((OSError, ValueError)) as caught:
            export_model(source, tmp_path / "out", ExportConfig(format=format))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_not_installed(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = ["export", str(source), "--format", "openvino", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "pip install 'segformer[openvino]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_runtime_does_not_know(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["onnx"], tmp_path / "out")
    model = onnx.load(tmp_path / "out/onnx/model.onnx")
    model.opset_import[0].version = 999
    onnx.save(model, tmp_path / "out/onnx/model.onnx")
    with pytest.raises(ValueError, match=r"model.onnx: ONNX Runtime [\d.]+ cannot read it"):
        Predictor(tmp_path / "out")


def test_options_that_a_model_does_not_have(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ValueError, match="for segmentation models only"):
        Graph(MixTransformer(TINY), output="label-map")
    with pytest.raises(ValueError, match="8-bit images only"):
        Graph(tiny(), Preprocessing(rescale=1.0), input="image")
    for options in ({"size": (16, 64)}, {"resolution": -1.0}, {"input": "x"}, {"output": "x"}):
        with pytest.raises(ValueError):
            ExportConfig(format="onnx", **options)
    with pytest.raises(CheckpointError):
        export_model(tmp_path / "missing", tmp_path / "out", ExportConfig(format="onnx"))


_BLOCK_TORCH = """\
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is blocked", name=name)
sys.meta_path.insert(0, Block())
"""


def run_without_torch(code: str, folder: Path) -> str:
    """Run code in a process in which torch cannot be imported."""
    code = f"{_BLOCK_TORCH}\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def user_folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """The files that the documentation names."""
    for format, folder in folders.items():
        shutil.copytree(folder, tmp_path / f"mine-{format}")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    return tmp_path


def test_the_examples_of_the_documentation_run_without_torch(user_folder: Path) -> None:
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    alone = [example for example in examples if "import segformer" not in example]
    for example in alone[:2]:
        assert len(example.strip().splitlines()) <= 15
        (user_folder / "ids.png").unlink(missing_ok=True)
        printed = run_without_torch(example, user_folder)
        assert set(eval(printed)) <= set(NAMES)
        assert read_mask(user_folder / "ids.png").shape == (90, 120)
    (ours,) = [example for example in examples if 'Predictor("mine-openvino")' in example]
    run_without_torch(ours, user_folder)


@pytest.mark.parametrize(
    ("format", "options"), [("onnx", {}), ("openvino", {}), ("onnx", {"runtime": "openvino"})]
)
def test_predictor_without_torch(user_folder: Path, format: str, options: dict) -> None:
    """The whole image, and windows, scales, flips and confidence; the same as with PyTorch."""
    every = {"window": 64, "scales": (0.75, 1.0), "flip": True, "confidence": True}
    code = (
        "import numpy as np, segformer\n"
        f"for i, options in enumerate(({options}, {every | options})):\n"
        f"    predictor = segformer.Predictor('mine-{format}', **options)\n"
        "    (found,) = predictor.stream(['photo.jpg'])\n"
        "    assert predictor.model.classes.names[1] == 'hair'\n"
        "    np.save(f'{i}.npy', found.label_map)\n"
    )
    run_without_torch(code, user_folder)
    for i, wanted in enumerate(({}, every)):
        expected = Predictor(tiny(), device="cpu", **wanted)(user_folder / "photo.jpg").label_map
        assert (np.load(user_folder / f"{i}.npy") == expected).mean() > 0.999


def test_commands_take_exported_models_without_torch(user_folder: Path) -> None:
    words = ["predict", "photo.jpg", "--model", "mine-openvino", "--out", "masks", "--no-overlay"]
    run_without_torch(f"from segformer.cli import main; sys.exit(main({words}))", user_folder)
    assert read_mask(user_folder / "masks/photo.png").shape == (90, 120)


def test_evaluation_needs_pytorch_and_says_so(user_folder: Path) -> None:
    words = ["evaluate", "data", "--model", "mine-openvino", "--out", "scores"]
    printed = run_without_torch(
        f"from segformer.cli import main; sys.stderr = sys.stdout; print(main({words}))",
        user_folder,
    )
    assert "PyTorch is not installed" in printed
    assert printed.splitlines()[-1] == "1"


def test_evaluation_of_an_exported_model(folders: dict[str, Path], tmp_path: Path) -> None:
    from conftest import draw_dataset
    from segformer import evaluate

    dataset = draw_dataset(tmp_path / "shapes")
    description = (dataset / "dataset.yaml").read_text()
    description = re.sub(r"names:(\n  .*)+", f"names: {dict(enumerate(NAMES))}", description)
    (dataset / "dataset.yaml").write_text(description)
    found, expected = (evaluate(dataset, model) for model in (folders["openvino"], tiny()))
    np.testing.assert_allclose(found.miou, expected.miou, atol=1e-3)


@pytest.mark.parametrize("format", FORMATS)
def test_info_of_an_exported_model(
    folders: dict[str, Path], format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(folders[format]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["format"]) == ("segmenter", format)
    assert [entry["name"] for entry in found["classes"]] == list(NAMES)
    assert (found["precision"], found["size"], found["output"]) == ("float32", None, "logits")
    assert len(found["checks"]) == 2
    assert main(["info", str(folders[format])]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "largest difference" in text and "hair" in text and "float32" in text
    assert main(["info", str(folders[format]), "--size", "64", "64"]) == 1


def test_weights_come_before_graphs(folders: dict[str, Path], source: Path, tmp_path: Path) -> None:
    """A folder of the Hub often has both."""
    shutil.copytree(source, tmp_path / "both")
    shutil.copytree(folders["onnx"] / "onnx", tmp_path / "both/onnx")
    assert isinstance(Predictor(tmp_path / "both").model, SegFormer)
