"""Writing the web page, and where the files of ONNX Runtime Web come from."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from segformer import Preprocessing, SegFormer, SegFormerClassifier
from segformer.cli import main
from segformer.export import web, web_runtime
from segformer.export.config import ExportConfig
from segformer.export.export import Exported
from segformer.export.web import export_web
from segformer.export.web_runtime import find_runtime_files
from segformer.files import OutputExists

CONTENT = {"ort.wasm.min.mjs": b"script", "ort.wasm": b"binary"}
WEB = ExportConfig("web")


@pytest.fixture(autouse=True)
def small_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime of two small files, an empty cache, and no registry that answers."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(web_runtime, "RUNTIME_FILES", hashes)
    monkeypatch.setattr(web, "RUNTIME_FILES", hashes)
    monkeypatch.setenv("SEGFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web_runtime.shutil, "which", lambda _: None)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry that serves files of a folder; returns the folder."""
    folder = tmp_path / "registry"
    folder.mkdir()
    handler = partial(_Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def publish(registry: Path, content: dict[str, bytes]) -> Path:
    """Put the package into the registry."""
    path = registry / "onnxruntime-web/-" / f"onnxruntime-web-{web_runtime.VERSION}.tgz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {**content, "../../outside": b"never unpacked"}.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_download_once(registry: Path, tmp_path: Path) -> None:
    package = publish(registry, CONTENT)
    folder = find_runtime_files()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert folder.is_relative_to(tmp_path / "cache")
    package.unlink()
    assert find_runtime_files() == folder


def test_damaged_cache_is_replaced(registry: Path) -> None:
    publish(registry, CONTENT)
    folder = find_runtime_files()
    (folder / "ort.wasm").write_bytes(b"damaged")
    assert (find_runtime_files() / "ort.wasm").read_bytes() == CONTENT["ort.wasm"]


def test_registry_of_the_npm_settings(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, CONTENT)
    settings = tmp_path / "npmrc"
    settings.write_text(f"# company\nregistry = {web_runtime.os.environ['npm_config_registry']}/\n")
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(settings))
    assert find_runtime_files().is_dir()


@pytest.mark.parametrize("content", [{**CONTENT, "ort.wasm": b"other"}, {"ort.wasm": b"binary"}])
def test_wrong_download_is_not_kept(
    registry: Path, tmp_path: Path, content: dict[str, bytes]
) -> None:
    publish(registry, content)
    with pytest.raises(ValueError, match="--runtime-files"):
        find_runtime_files()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/", "http://127.0.0.1:9/a b"])
def test_no_network(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", address)
    with pytest.raises(ValueError, match=r"cannot be downloaded .*npm pack.*--runtime-files"):
        find_runtime_files()


def test_given_files_are_checked(runtime: Path) -> None:
    assert find_runtime_files(runtime) == runtime
    (runtime / "ort.wasm").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"ort\.wasm: not the file of onnxruntime-web"):
        find_runtime_files(runtime)
    (runtime / "ort.wasm").unlink()
    with pytest.raises(ValueError, match=r"ort\.wasm: no such file of onnxruntime-web"):
        find_runtime_files(runtime)


def test_exported_folder(
    tiny_model: SegFormer, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the graph, which takes long to write and has tests of its own."""

    def export_model(source: Path, out: Path, config: ExportConfig, **_: object) -> Exported:
        assert config == ExportConfig("onnx", half=True)
        (out / "onnx").mkdir(parents=True)
        (out / "onnx/model_fp16.onnx").write_bytes(b"graph")
        return Exported([], None)

    monkeypatch.setattr(web, "export_model", export_model)
    model = tmp_path / "street" / "best"
    tiny_model.save_pretrained(model)
    out = tmp_path / "page"
    words = ["export", str(model), "--format", "web", "--half", "--out", str(out)]
    assert main([*words, "--runtime-files", str(runtime)]) == 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings["title"] == "street"
    assert [entry["name"] for entry in settings["classes"]] == list(tiny_model.classes.names)
    assert settings["preprocessing"]["size"] == list(tiny_model.preprocessing.size)
    assert settings["model"] == "model/onnx/model_fp16.onnx"
    assert settings["files"] == {"model/onnx/model_fp16.onnx": 5, "runtime/ort.wasm": 6}
    script = (out / "version.js").read_text()
    assert settings["version"] in script
    kept = json.loads(script.partition("self.SHELL = ")[2].rstrip(";\n"))
    assert kept[0] == "./"
    for path in kept[1:]:
        assert (out / path).is_file()
    large = {"model", "sw.js", "version.js", "index.html"}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    left = {name for name in files - set(kept) if name.partition("/")[0] not in large}
    assert left == {"runtime/ort.wasm", "runtime/LICENSE.txt"}

    before = sorted(files)
    assert main([*words, "--runtime-files", str(runtime)]) == 1  # never over what is there
    assert main([*words, "--runtime-files", str(runtime), "--title", "Road", "--overwrite"]) == 0
    changed = json.loads((out / "settings.json").read_text())
    assert changed["title"] == "Road"
    assert changed["version"] != settings["version"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == before


def test_models_that_a_browser_cannot_run(
    tiny_model: SegFormer, tmp_path: Path, runtime: Path
) -> None:
    def refused(match: str, model: SegFormer | SegFormerClassifier, config: ExportConfig) -> None:
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(ValueError, match=match):
            export_web(tmp_path / "model", tmp_path / "page", config, runtime_files=runtime)
        assert not (tmp_path / "page").exists()

    refused("--size, --input", tiny_model, replace(WEB, size=(64, 64)))
    refused("--size, --input", tiny_model, replace(WEB, output="label-map"))
    many = SegFormer(replace(tiny_model.config, in_channels=4))
    refused("takes 4 channels", many, WEB)
    tiny_model.preprocessing = Preprocessing(rescale=1e-4)
    refused("8-bit", tiny_model, WEB)
    refused("classifier", SegFormerClassifier(tiny_model.config), WEB)


def test_existing_folder_is_kept(tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page/mine.html").write_text("kept")
    with pytest.raises(OutputExists, match="--overwrite"):
        export_web("anything", tmp_path / "page", WEB, runtime_files=runtime)


def test_options_of_the_page_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "model", "--format", "onnx", "--out", str(tmp_path / "x"), "--title", "a"]
    assert main(words) == 1
    assert "--title and --runtime-files are for --format web" in capsys.readouterr().err
