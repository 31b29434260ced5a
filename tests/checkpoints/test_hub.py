"""The Hub's own client against a local server that answers as the Hub does."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import constants

from checkpoints.hub_server import HubServer, Repository
from segformer import SegFormer
from segformer.checkpoints.card import model_card
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.layout import Description
from segformer.checkpoints.opening import open_checkpoint

NAME = "somebody/shapes-b0"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    yield server
    server.close()


def files_of(model: SegFormer, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def published(hub: HubServer, tiny_model: SegFormer, tmp_path: Path) -> Repository:
    repository = hub.repositories[NAME] = Repository()
    card = b"---\nlicense: other\nlicense_name: nobody-1.0\n---\n# Shapes\n"
    repository.commit({**files_of(tiny_model, tmp_path / "model"), "README.md": card})
    return repository


def same(model: SegFormer, other: SegFormer) -> bool:
    tensors = other.state_dict()
    return all(torch.equal(tensor, tensors[n]) for n, tensor in model.state_dict().items())


def test_download_and_cache(
    caplog: pytest.LogCaptureFixture,
    hub: HubServer,
    published: Repository,
    tiny_model: SegFormer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with caplog.at_level(logging.INFO, logger="segformer"):
        model = SegFormer.from_pretrained(NAME)
    assert same(model, tiny_model)
    assert model.classes == tiny_model.classes
    assert "license nobody-1.0" in caplog.text
    fetched = [line for line in hub.requests if line.startswith("GET") and "resolve" in line]
    assert len(fetched) == 4
    hub.requests.clear()
    assert same(SegFormer.from_pretrained(NAME), tiny_model)
    assert not any("GET" in line and "resolve" in line for line in hub.requests)  # cached
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert same(SegFormer.from_pretrained(NAME), tiny_model)
    assert hub.requests == []


def test_revisions_are_pinned(
    hub: HubServer, published: Repository, tiny_model: SegFormer, tmp_path: Path
) -> None:
    first = published.branches["main"]
    changed = SegFormer(tiny_model.config)
    published.commit(files_of(changed, tmp_path / "changed"))
    assert same(SegFormer.from_pretrained(NAME), changed)
    assert same(SegFormer.from_pretrained(NAME, revision=first), tiny_model)
    assert same(SegFormer.from_pretrained(f"{NAME}@{first}"), tiny_model)
    hub.requests.clear()
    SegFormer.from_pretrained(NAME, revision=first)
    assert not any(line.startswith("GET") for line in hub.requests)
    with pytest.raises(CheckpointError, match=f"{NAME}: this model has no revision 'v9'"):
        SegFormer.from_pretrained(NAME, revision="v9")


def test_an_interrupted_download_continues(
    hub: HubServer, published: Repository, tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut_after = [20_000]
    assert same(SegFormer.from_pretrained(NAME), tiny_model)
    ranges = [line.split("=")[1] for line in hub.requests if "bytes=" in line]
    assert ranges == ["20000-"]


def test_private_and_gated_models(
    hub: HubServer, published: Repository, tiny_model: SegFormer
) -> None:
    published.token = "secret"
    with pytest.raises(CheckpointError, match="private, does not exist, or the token is not valid"):
        SegFormer.from_pretrained(NAME)
    with pytest.raises(CheckpointError, match="401: Invalid credentials"):
        SegFormer.from_pretrained(NAME, token="wrong")
    assert same(SegFormer.from_pretrained(NAME, token="secret"), tiny_model)
    hub.repositories["somebody/gated"] = Repository(gated=True)
    with pytest.raises(CheckpointError, match="grants access on request"):
        SegFormer.from_pretrained("somebody/gated")


def test_missing_models(hub: HubServer, published: Repository) -> None:
    with pytest.raises(CheckpointError, match=r"nobody/nothing: no such model, .*\(404\)"):
        SegFormer.from_pretrained("nobody/nothing")
    hub.repositories["somebody/empty"] = Repository()
    hub.repositories["somebody/empty"].commit({"README.md": b"# Empty"})
    with pytest.raises(CheckpointError, match="no weights that can be read in this model"):
        SegFormer.from_pretrained("somebody/empty")
    hub.repositories["somebody/two"] = Repository()
    hub.repositories["somebody/two"].commit({"a.pth": b"", "b.pth": b""})
    with pytest.raises(CheckpointError, match=r"several files of weights; .*a.pth, b.pth"):
        SegFormer.from_pretrained("somebody/two")


@pytest.mark.parametrize("name", ["kerashub_segmenter", "tensorflow_segmenter"])
def test_models_of_keras(name: str, hub: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="HDF5 files are read with h5py")
    with zipfile.ZipFile(Path(__file__).with_name("keras_models.zip")) as archive:
        archive.extractall(tmp_path)
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    fetched, local = SegFormer.from_pretrained(NAME), SegFormer.from_pretrained(tmp_path / name)
    assert same(fetched, local)
    assert fetched.config == local.config
    assert fetched.preprocessing == local.preprocessing


def test_a_single_file_of_weights(hub: HubServer, tiny_model: SegFormer, tmp_path: Path) -> None:
    from segformer.checkpoints.writing import convert

    tiny_model.save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "x.pth", "nvlabs")
    hub.repositories["somebody/old"] = Repository()
    hub.repositories["somebody/old"].commit({"old.pth": (tmp_path / "x.pth").read_bytes()})
    assert same(SegFormer.from_pretrained("somebody/old"), tiny_model)


def test_weights_in_a_subfolder(hub: HubServer, tiny_model: SegFormer, tmp_path: Path) -> None:
    files = files_of(tiny_model, tmp_path / "model")
    repository = hub.repositories["somebody/deep"] = Repository()
    card = {"README.md": b"---\nlicense: mit\n---\n", "a/b/.cache.pth": b""}
    repository.commit({**{f"a/b/{name}": content for name, content in files.items()}, **card})
    opened = open_checkpoint("somebody/deep")
    assert (opened.config, opened.classes) == (tiny_model.config, tiny_model.classes)
    assert same(SegFormer.from_pretrained("somebody/deep"), tiny_model)
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        SegFormer.from_pretrained("somebody/deep", revision="v9")


def test_shards(hub: HubServer, tiny_model: SegFormer, tmp_path: Path) -> None:
    files = files_of(tiny_model, tmp_path / "model")
    tensors = safetensors.torch.load(files.pop("model.safetensors"))
    names = list(tensors)
    parts = {"1.safetensors": names[::2], "2.safetensors": names[1::2]}
    index: dict[str, dict[str, str]] = {"weight_map": {}}
    for file, part in parts.items():
        files[file] = safetensors.torch.save({name: tensors[name] for name in part})
        index["weight_map"] |= dict.fromkeys(part, file)
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    repository = hub.repositories["somebody/large"] = Repository()
    repository.commit(files)
    assert same(SegFormer.from_pretrained("somebody/large"), tiny_model)
    index["weight_map"][names[0]] = "../../secret"
    repository.commit({"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(CheckpointError, match=r"'../../secret' is not a file name"):
        SegFormer.from_pretrained("somebody/large")


def test_a_local_folder_of_the_owner_hides_no_model(
    hub: HubServer,
    published: Repository,
    tiny_model: SegFormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "somebody").mkdir()
    monkeypatch.chdir(tmp_path)
    assert same(SegFormer.from_pretrained(NAME), tiny_model)
    with pytest.raises(CheckpointError, match=r"other.pth: no such model: it is neither a folder"):
        SegFormer.from_pretrained("somebody/other.pth")  # a typing error, not a Hub id


def test_errors_of_the_http_client(
    hub: HubServer, published: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import HTTPError

    def fail(*_: object, **__: object) -> None:
        raise HTTPError("the connection was reset\x1b[2J")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"the download failed: the connection was reset\?"):
        SegFormer.from_pretrained(NAME)


def test_a_corrupt_file(hub: HubServer, published: Repository) -> None:
    published.commit({"model.safetensors": b"\x10\0\0\0\0\0\0\0{not json at all"})
    with pytest.raises(CheckpointError, match=r"model.safetensors: its safetensors header cannot"):
        SegFormer.from_pretrained(NAME)


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    with pytest.raises(CheckpointError, match=r"the Hub cannot be reached .*Check the connection"):
        SegFormer.from_pretrained(NAME)
    with pytest.raises(CheckpointError, match="nor in the cache .* and local_files_only forbids"):
        SegFormer.from_pretrained(NAME, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids"):
        SegFormer.from_pretrained(NAME)


def write_run(folder: Path) -> Path:
    folder.mkdir()
    row = {"iou": 0.5, "accuracy": 0.6, "dice": 0.67, "frequency": 0.2}
    report = {
        "dataset": "/data/shapes",
        "split": "val",
        "images": 20,
        "steps": 100,
        "minutes": 3.5,
        "training_images": 80,
        "miou": 0.456,
        "mean_accuracy": 0.5,
        "mean_dice": 0.6,
        "pixel_accuracy": 0.9,
        "classes": {f"class {i}": row for i in range(4)} | {"class 4": {**row, "iou": None}},
    }
    (folder / "report.json").write_text(json.dumps(report))
    recipe = {"dataset": "/data/shapes", "variant": "b0", "lr": 6e-4, "pretrained": "/models/base"}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
def test_push_to_hub(hub: HubServer, tiny_model: SegFormer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="401"):
        tiny_model.push_to_hub(NAME, token="wrong")
    url = tiny_model.push_to_hub(NAME, run=run, license="apache-2.0", token="secret")
    assert url.startswith(f"{hub.address}/{NAME}/commit/")
    files = hub.repositories[NAME].commits[hub.repositories[NAME].branches["main"]]
    assert sorted(files) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert same(SegFormer.from_pretrained(NAME), tiny_model)
    text = files["README.md"].decode()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["model-index"][0]["results"][0]["metrics"][0] == {
        "type": "mean_iou",
        "name": "miou",
        "value": 45.6,
    }
    assert "| **mean** | 45.6 | 50.0 | 60.0 |" in text
    assert "| class 4 | - | 60.0 | 67.0 |" in text
    assert "80 images, 3.5 minutes" in text
    assert "pretrained: base" in text
    assert "/models" not in text  # paths of the machine are not published


def test_a_card_without_a_run_says_so(tiny_model: SegFormer) -> None:
    facts = (tiny_model.config, tiny_model.classes, tiny_model.preprocessing)
    assert "Not stated." in model_card(Description("segmenter", *facts), NAME)
    assert "image-classification" in model_card(Description("classifier", *facts), NAME)
    with pytest.raises(CheckpointError, match="not the folder of a finished training run"):
        tiny_model.push_to_hub(NAME, run="nowhere")
