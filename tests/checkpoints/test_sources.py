"""What may be given as a model: names of this package, run folders, files in folders."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from conftest import TINY, randomize
from segformer import ClassSet, MixTransformer, Preprocessing, SegFormer, SegFormerClassifier
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.formats import NVLABS
from segformer.checkpoints.opening import open_checkpoint
from segformer.checkpoints.weights import open_tensors
from segformer.config import ORIGINAL_EPS


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    tensors = other.state_dict()
    return all(torch.equal(tensor, tensors[n]) for n, tensor in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "model.", "net.", "module._orig_mod.", "a.b.c."])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_names_of_this_package(
    tmp_path: Path, tiny_model: SegFormer, prefix: str, wrapper: str | None
) -> None:
    tensors = {prefix + name: tensor for name, tensor in tiny_model.state_dict().items()}
    content = (
        {wrapper: tensors | {"loss.weight": torch.ones(5)}, "epoch": 3} if wrapper else tensors
    )
    torch.save(content, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth")
    assert checkpoint.format.title == "segformer (this package)"
    assert checkpoint.unknown == ([] if prefix or not wrapper else ["loss.weight"])
    if checkpoint.unknown:
        return
    model = SegFormer.from_pretrained(tmp_path / "x.pth")
    assert same(model, tiny_model)
    assert model.config == tiny_model.config
    encoder = MixTransformer.from_pretrained(tmp_path / "x.pth")
    assert same(encoder, tiny_model.encoder)


def test_a_lightning_checkpoint_of_a_module_that_holds_the_model(
    tmp_path: Path, tiny_model: SegFormer
) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self, model: SegFormer) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 1e-4, "name": "mine"})
            self.model = model
            self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(5))

    trainer = lightning.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu"
    )
    trainer.strategy.connect(Module(tiny_model))
    trainer.save_checkpoint(tmp_path / "epoch=3.ckpt", weights_only=True)
    assert same(SegFormer.from_pretrained(tmp_path / "epoch=3.ckpt"), tiny_model)


def test_other_models_of_this_package(tmp_path: Path) -> None:
    classifier = randomize(SegFormerClassifier(TINY)).eval()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    assert same(SegFormerClassifier.from_pretrained(tmp_path / "classifier.pth"), classifier)
    torch.save(classifier.encoder.state_dict(), tmp_path / "encoder.pth")
    assert same(MixTransformer.from_pretrained(tmp_path / "encoder.pth"), classifier.encoder)
    openmmlab = randomize(SegFormer(replace(TINY, decoder="openmmlab"))).eval()
    torch.save(openmmlab.state_dict(), tmp_path / "openmmlab.pth")
    assert same(SegFormer.from_pretrained(tmp_path / "openmmlab.pth"), openmmlab)


def test_a_run_folder_stands_for_its_best_model(
    tmp_path: Path, tiny_model: SegFormer, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.yaml").touch()
    state = {"model": {}, "task": {}, "optimizer": {}, "architecture": {}, "state": {}}
    torch.save(state, tmp_path / "resume.ckpt")
    with pytest.raises(CheckpointError, match=r"resume.ckpt: the resume checkpoint of .*best/"):
        SegFormer.from_pretrained(tmp_path)
    SegFormer(TINY).save_pretrained(tmp_path / "last")
    with caplog.at_level(logging.INFO, logger="segformer"):
        assert not same(SegFormer.from_pretrained(tmp_path), tiny_model)
    assert f"the folder of a training run; using {tmp_path / 'last'}" in caplog.text
    tiny_model.save_pretrained(tmp_path / "best")
    with caplog.at_level(logging.INFO, logger="segformer"):
        assert same(SegFormer.from_pretrained(tmp_path), tiny_model)
    assert f"using {tmp_path / 'best'}" in caplog.text


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_in_a_folder_is_described_by_the_folder(
    tmp_path: Path, tiny_model: SegFormer, file: str
) -> None:
    model = SegFormer(
        replace(TINY, eps=ORIGINAL_EPS, num_attention_heads=(2, 4, 4, 8)),
        ClassSet(("a", "b", "c", "d", "e")),
        Preprocessing(size=200, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
    )
    model.save_pretrained(tmp_path)
    if file != "model.safetensors":
        tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
        torch.save(tensors, tmp_path / file)
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    opened = open_checkpoint(tmp_path / file)
    assert (opened.config, opened.classes) == (model.config, model.classes)
    assert opened.preprocessing == model.preprocessing
    assert opened.license == "mit"
    other = tmp_path / f"other{Path(file).suffix}"  # of which config.json may know nothing
    shutil.copy(tmp_path / file, other)
    assert open_checkpoint(other).classes == ClassSet.numbered(5)


class Custom(torch.nn.Module):
    def __init__(self, model: SegFormer) -> None:
        super().__init__()
        self.model = model


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        Custom,
        lambda m: {"model": m, "epoch": 3},
        lambda m: {"state_dict": m.state_dict(), "args": Namespace(lr=1e-4)},
        lambda m: {"args": Namespace(lr=1e-4), "model": dict(m.state_dict())},
    ],
)
def test_the_advice_on_other_objects_works(
    tmp_path: Path, tiny_model: SegFormer, wrap: object, legacy: bool
) -> None:
    path, new = tmp_path / "x.pth", tmp_path / "new.pth"
    torch.save(wrap(tiny_model), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"If you trust the file, \w+ the \w+|its weights"
    ) as e:
        SegFormer.from_pretrained(path)
    code = str(e.value).rpartition(": ")[2]
    assert re.match(r"torch\.(save|load)\(", code)
    exec(code, {"torch": torch, "FILE": path, "NEW": new, "FOLDER": new})
    assert same(SegFormer.from_pretrained(new), tiny_model)


def test_names_from_files_cannot_control_a_terminal(tmp_path: Path, tiny_model: SegFormer) -> None:
    tensors = NVLABS.from_ours(tiny_model.state_dict())
    torch.save({"\x1b[2J\n" + "x" * 10_000: torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        SegFormer.from_pretrained(tmp_path / "x.pth")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600
    evil = {**tensors, "backbone.\x1b[31mred.weight": torch.zeros(1)}
    torch.save(evil, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"backbone.\?\[31mred.weight: not part of a model"):
        SegFormer.from_pretrained(tmp_path / "x.pth")
    tiny_model.save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    entries = json.loads(path.read_text())
    entries["segformer"]["names"] = ["a\x1b[2J", "b", "c", "d", "e"]
    path.write_text(json.dumps(entries))
    (tmp_path / "folder" / "README.md").write_text("---\nlicense: \x1b[2Jmit\n---\n")
    opened = open_checkpoint(tmp_path / "folder")
    assert opened.classes.names[0] == "a?[2J"
    assert opened.license is not None
    assert "\x1b" not in opened.license


def one_tensor(path: Path, dtype: str, shape: list[int], data: bytes) -> Path:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_other_types_beside_the_weights(tmp_path: Path, tiny_model: SegFormer) -> None:
    tensors = NVLABS.from_ours(tiny_model.state_dict())
    extra = {
        "decode_head.conv_seg.weight": torch.zeros(4).to(torch.float8_e4m3fn),
        "auxiliary_head.count": torch.zeros(4, dtype=torch.uint16),
    }
    safetensors.torch.save_file(tensors | extra, tmp_path / "x.safetensors")
    assert same(SegFormer.from_pretrained(tmp_path / "x.safetensors"), tiny_model)
    unknown = open_tensors(one_tensor(tmp_path / "y", "F4", [6], bytes(3)))
    assert unknown.stored["a"].dtype is None


def test_byte_order_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_tensor(tmp_path / "x", "I32", [3], struct.pack("<3i", 1, 2, 1 << 24))
    assert open_tensors(path).take("a").tolist() == [1, 2, 1 << 24]
    monkeypatch.setattr(sys, "byteorder", "big")
    assert open_tensors(path).take("a").tolist() == [1 << 24, 2 << 24, 1]


def test_classes_as_names(tmp_path: Path, tiny_model: SegFormer) -> None:
    tiny_model.save_pretrained(tmp_path)
    expected = ClassSet(("a", "b", "c"))
    for classes in (["a", "b", "c"], {0: "a", 1: "b", 2: "c"}, expected):
        assert SegFormer.from_pretrained(tmp_path, classes=classes).classes == expected
        assert SegFormer.from_variant("b0", classes=classes).classes == expected
        assert SegFormerClassifier.from_variant("b0", classes=classes).classes == expected
        assert SegFormer(replace(TINY, num_classes=3), classes).classes == expected
    with pytest.raises(TypeError, match="classes must be a ClassSet, a list of names or"):
        SegFormer.from_pretrained(tmp_path, classes=3)
