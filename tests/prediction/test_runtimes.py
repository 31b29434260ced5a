"""OpenVINO and ONNX Runtime give what PyTorch gives; models are converted once and kept on disk."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, randomize
from segformer import ClassPredictor, Predictor, SegFormer, SegFormerClassifier
from segformer.model import tracing
from segformer.prediction.config import PredictConfig
from segformer.prediction.runtimes import cache, choice, converted, graphs
from segformer.prediction.runtimes.base import RuntimeUnavailable
from segformer.prediction.runtimes.cache import cached
from segformer.prediction.runtimes.graphs import GraphFile
from segformer.prediction.runtimes.openvino import REPEATS, OpenVINORuntime

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)

INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not (graphs.can_convert(format) and find_spec(name)),
            reason=f"{name} is not installed",
        ),
    )
    for name, format in (("openvino", "openvino"), ("onnxruntime", "onnx"))
]
RUNTIMES = pytest.mark.parametrize("runtime", INSTALLED)
OPENVINO = pytest.mark.skipif(
    not graphs.can_convert("openvino"), reason="openvino is not installed"
)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the module: the model is converted once for each runtime."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, str(folder))
        yield folder


@RUNTIMES
@pytest.mark.parametrize(
    "options",
    [
        {"size": 64},
        {"short_side": 77},
        {"window": 64, "stride": 48, "batch_size": 2},
        {"size": 64, "scales": (0.75, 1.5), "flip": True, "confidence": True},
    ],
)
def test_runtimes_give_what_pytorch_gives(
    tiny_model: SegFormer, runtime: str, options: dict
) -> None:
    expected = Predictor(tiny_model, device="cpu", **options)
    predictor = Predictor(tiny_model, runtime=runtime, **options)
    logits = predictor.logits(IMAGE)
    assert isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits, expected.logits(IMAGE).numpy(), rtol=0, atol=1e-4)
    images = [IMAGE, IMAGE[::-1].copy(), IMAGE[:50]]
    for found, wanted in zip(predictor.stream(images), expected.stream(images), strict=True):
        assert found.label_map.dtype == wanted.label_map.dtype
        assert (found.label_map == wanted.label_map).mean() > 0.999
        if wanted.confidence is not None:
            assert found.confidence is not None
            np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-3)


@OPENVINO
def test_a_tensor_gives_a_tensor(tiny_model: SegFormer) -> None:
    pixels = torch.randn(2, 3, 64, 96)
    found = choice.open_runtime(tiny_model, "openvino")(pixels)
    with torch.no_grad():
        torch.testing.assert_close(found, tiny_model(pixels), rtol=0, atol=1e-4)


@OPENVINO
def test_small_images_before_larger_ones(tiny_model: SegFormer) -> None:
    """The first of them leaves attention a single key, for which OpenVINO prepares it."""
    runtime = OpenVINORuntime(converted.converted(tiny_model, "openvino"))
    runtime._compiled[(0,)] = None  # as if another size were compiled
    for side in (32, 48, 128, 32, 200):
        pixels = torch.randn(1, 3, side, side)
        with torch.no_grad():
            torch.testing.assert_close(runtime(pixels), tiny_model(pixels), rtol=0, atol=1e-4)
    assert set(runtime._compiled) == {(0,)}


@RUNTIMES
def test_a_result_stays_when_others_are_computed(tiny_model: SegFormer, runtime: str) -> None:
    run = choice.open_runtime(tiny_model, runtime)
    first = run(np.zeros((1, 3, 64, 64), np.float32))
    before = first.copy()
    for value in range(1, 4):
        run(np.full((1, 3, 64, 64), value, np.float32))
    np.testing.assert_array_equal(first, before)


@OPENVINO
def test_bfloat16(tiny_model: SegFormer) -> None:
    pixels = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    exact = choice.open_runtime(tiny_model, "openvino")(pixels)
    rounded = choice.open_runtime(tiny_model, "openvino", None, "bfloat16")(pixels)
    assert np.abs(exact - rounded).max() < 0.1


@OPENVINO
@pytest.mark.slow  # converts models of its own
def test_predictions_are_those_of_the_model_as_it_is_now(tiny_model: SegFormer) -> None:
    predictor = Predictor(tiny_model, runtime="openvino", size=64)
    before = predictor.logits(IMAGE)
    with torch.no_grad():
        tiny_model.decoder.classifier.weight.mul_(2)
    after = predictor.logits(IMAGE)
    assert not np.allclose(before, after)
    expected = Predictor(tiny_model, device="cpu", size=64).logits(IMAGE)
    np.testing.assert_allclose(after, expected.numpy(), rtol=0, atol=1e-4)


@OPENVINO
def test_a_model_is_converted_once(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    converted.converted(tiny_model, "openvino")

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(converted, "convert", refuse)
    again = randomize(SegFormer(TINY))  # the same values in another object, in training mode
    again.load_state_dict(tiny_model.state_dict())
    found = converted.converted(again.train(), "openvino")
    assert found.path.is_relative_to(cache_folder)
    with torch.no_grad():
        again.decoder.classifier.bias.add_(1)
    with pytest.raises(AssertionError, match="converted again"):
        converted.converted(again, "openvino")


@OPENVINO
@pytest.mark.slow  # converts models of its own
def test_a_classifier() -> None:
    model = randomize(SegFormerClassifier(TINY)).eval()
    predictor = ClassPredictor(model, PredictConfig(runtime="openvino", flip=True))
    expected = ClassPredictor(model, PredictConfig(flip=True), device="cpu")
    np.testing.assert_allclose(
        predictor(IMAGE).probabilities, expected(IMAGE).probabilities, atol=1e-5
    )


class Compilations:
    """A runtime of OpenVINO whose compilations are counted; nothing is run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, graph: GraphFile) -> None:
        self.shapes: list[tuple[int, ...] | None] = []
        self.runtime = OpenVINORuntime(graph)
        monkeypatch.setattr(self.runtime, "_compile", self._compile)

    def _compile(self, shape: tuple[int, ...] | None) -> object:
        self.shapes.append(shape)
        return shape or "any size"


@pytest.fixture
def compilations(tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch) -> Compilations:
    pytest.importorskip("openvino", reason="openvino is not installed")
    return Compilations(monkeypatch, converted.converted(tiny_model, "openvino"))


def test_one_size_is_compiled_once(compilations: Compilations) -> None:
    shape = (1, 64, 64, 3)
    for _ in range(3):
        assert compilations.runtime._request(shape) == shape
    assert compilations.shapes == [shape]


def test_a_size_that_comes_often_is_compiled(compilations: Compilations) -> None:
    request = compilations.runtime._request
    request((1, 64, 64, 3))
    other = (1, 64, 96, 3)
    assert [request(other) for _ in range(REPEATS + 1)] == [*["any size"] * REPEATS, other]
    assert compilations.shapes == [(1, 64, 64, 3), None, other]


def test_sizes_that_keep_changing_are_not_compiled(compilations: Compilations) -> None:
    for side in range(64, 2064):
        compilations.runtime._request((1, side, 64, 3))
    assert compilations.shapes == [(1, 64, 64, 3), None]
    assert len(compilations.runtime._runs) <= 1024


def test_few_compiled_sizes_are_kept(compilations: Compilations) -> None:
    for side in range(64, 74):
        for _ in range(REPEATS + 1):
            compilations.runtime._request((1, side, 64, 3))
    assert [shape[1] for shape in compilations.runtime._compiled] == [70, 71, 72, 73]


def test_a_converted_model_appears_whole_and_is_written_by_one(cache_folder: Path) -> None:
    written = []

    def write(folder: Path) -> None:
        written.append(folder)
        (folder / "graph").write_text("half")
        time.sleep(0.05)
        (folder / "graph").write_text("whole")

    contents = []
    threads = [
        threading.Thread(target=lambda: contents.append((cached("k", write) / "graph").read_text()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == ["whole"] * 4
    assert len(written) == 1


def test_nothing_is_left_of_a_conversion_that_fails(cache_folder: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "graph").write_text("half")
        raise ValueError("no such operation")

    with pytest.raises(ValueError, match="no such operation"):
        cached("failing", fail)
    left = {path.name for path in (cache_folder / "graphs").iterdir() if path.is_dir()}
    assert not {name for name in left if name.startswith((".", "failing"))}


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))

    def write(folder: Path) -> None:
        (folder / "graph").write_bytes(bytes(1000))

    for i, name in enumerate("abc"):
        os.utime(cached(name, write, limit=3500), (i, i))
    os.utime(cached("a", write, limit=3500))  # used again
    cached("d", write, limit=3500)
    left = {path.name for path in (tmp_path / "graphs").iterdir() if path.is_dir()}
    assert left == {"a", "c", "d"}


def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        folder = cached("key", lambda folder: (folder / "graph").touch())
    assert (folder / "graph").is_file()
    assert cache.CACHE_VARIABLE in caplog.text


@OPENVINO
def test_auto_takes_the_fastest_and_measures_once(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    measured = []

    def measure(_: object, names: list[str], precision: str) -> dict[str, float]:
        measured.append(precision)
        return {
            name: 0.1 if (name == "torch") == (precision == "float32") else 0.2 for name in names
        }

    monkeypatch.setattr(choice, "_measure", measure)
    assert "measured when" in choice.describe_auto(TINY)
    for _ in range(2):
        assert choice._fastest(tiny_model, "float32") == "torch"
        assert choice._fastest(tiny_model, "bfloat16") == "openvino"
    assert measured == ["float32", "bfloat16"]
    assert choice.describe_auto(TINY, "bfloat16").startswith("openvino (torch 200 ms, openvino 100")
    assert type(choice.open_runtime(tiny_model, "auto", "cpu")).__name__ == "TorchRuntime"


@OPENVINO
def test_auto_measures_every_runtime(tiny_model: SegFormer) -> None:
    seconds = choice._measure(tiny_model, ["torch", "openvino"], "float32")
    assert set(seconds) == {"torch", "openvino"}
    assert all(0 < value < 60 for value in seconds.values())


def test_a_model_that_cannot_be_converted(
    tiny_model: SegFormer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One sentence that names the format; "auto" then takes PyTorch."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))

    def fail(*_: object) -> None:
        raise RuntimeError("No conversion rule for aten::strange\nand a long trace")

    monkeypatch.setattr(graphs, "_write_openvino", fail)
    monkeypatch.setattr(tracing, "trace", lambda *_: (None, None))
    with pytest.raises(ValueError, match="written as openvino: No conversion rule .*strange$"):
        Predictor(tiny_model, runtime="openvino")
    runtime = choice.open_runtime(tiny_model, "auto", "cpu")
    assert type(runtime).__name__ == "TorchRuntime"
    assert "only torch can run this model" in caplog.text


def test_auto_without_other_runtimes_is_pytorch(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "can_convert", lambda _: False)
    assert type(choice.open_runtime(tiny_model, "auto", "cpu")).__name__ == "TorchRuntime"
    assert "segformer[openvino]" in choice.describe_auto(TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "openvino", "device": "cuda"}, "runs on the CPU"),
        ({"runtime": "openvino", "compile": True}, "runtime torch"),
        ({"runtime": "onnxruntime", "precision": "bfloat16"}, "does not compute in bfloat16"),
        ({"runtime": "tensorrt"}, "torch, openvino, onnxruntime, auto"),
    ],
)
def test_options_that_a_runtime_does_not_have(
    tiny_model: SegFormer, options: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "converted", lambda *_: GraphFile(Path("x"), "onnx", 3))
    with pytest.raises(ValueError, match=message):
        Predictor(tiny_model, **options)


def test_a_runtime_that_is_not_installed(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'segformer\[openvino\]'"):
        Predictor(tiny_model, runtime="openvino")


@OPENVINO
def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "openvino_model.xml"
    path.write_text("<net")
    with pytest.raises(ValueError, match=r"openvino_model.xml: OpenVINO .* cannot read it"):
        OpenVINORuntime(GraphFile(path, "openvino", 3))


def test_info_names_the_runtime() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "segformer", "info", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(json.loads(result.stdout)["auto_runtime"]) == {"float32", "bfloat16"}
