"""Files that are broken, hostile or merely strange."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from segformer import SegFormer
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.formats import NVLABS
from segformer.checkpoints.weights import open_tensors


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"GIF89a and so on, far from any weights", "neither safetensors, a PyTorch file nor HDF5"),
        (b"<!DOCTYPE html><html>404</html>", "a text file .a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (header(b'{"a": 1}', 1 << 60), "announces a header of 1,152,921,504,606,846,976 bytes"),
        (header(b"{" + b"[" * 100_000), "its safetensors header cannot be read"),
        (header(b'{"a": {"dtype": "F32", "shape": [1.5e999], "data_offsets": [0, 0]}}'), "header"),
        (header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}'), "damaged"),
        (header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}'), "damaged"),
        (
            header(b'{"a": {"dtype": "F32", "shape": [1000000], "data_offsets": [0, 4000000]}}'),
            "truncated: a ends at byte 4,0",
        ),
        (b"\x80\x02}q\x00.", "cannot be read as a PyTorch file|holds no tensors"),
    ],
)
def test_broken_files_are_named_and_explained(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=words) as caught:
        open_tensors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 4e6


def test_what_the_library_writes_is_read_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(3, 5),
        "half": torch.randn(7).to(torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
    }
    safetensors.torch.save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    file = open_tensors(tmp_path / "x")
    assert file.stored.keys() == tensors.keys()
    assert all(torch.equal(file.take(name), tensor) for name, tensor in tensors.items())
    assert file.metadata == {"format": "pt"}


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match=r"that unpacks to 200,000,000"):
        open_tensors(path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('ran').touch()",))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_no_file_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"a": torch.zeros(1)}, "callback": Bomb()}
    if protocol == "torch":
        torch.save(content, "model.pth")
    else:
        Path("model.pth").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError) as caught:
        open_tensors(tmp_path / "model.pth")
    assert not Path("ran").exists()
    assert "model.pth" in str(caught.value)
    assert "weights_only=True" not in str(caught.value)
    if protocol == "torch":
        assert "holds more than tensors (builtins.exec)" in str(caught.value).replace(
            "(exec)", "(builtins.exec)"
        )


def test_truncated_pickles(tmp_path: Path, tiny_model: SegFormer) -> None:
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save(tiny_model.state_dict(), path, _use_new_zipfile_serialization=not legacy)
        path.write_bytes(path.read_bytes()[:30_000])
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            open_tensors(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {f"module.{k}": v for k, v in t.items()}, "args": {"lr": 1e-4}},
        lambda t: {"model": t, "model_ema": {k: v + 1 for k, v in t.items() if v.ndim}},
        lambda t: {"state_dict": {f"model.{k}": v for k, v in t.items()}, "global_step": 9000},
        lambda t: {"ema": t},
        lambda t: {
            "state_dict": {
                **{f"ema.{k}": v * 0 for k, v in t.items()},
                **{f"net.{k}": v for k, v in t.items()},
                "criterion.weight": torch.ones(3),
            }
        },
    ],
)
def test_wrappers(tmp_path: Path, tiny_model: SegFormer, wrap: object, legacy: bool) -> None:
    tensors = NVLABS.from_ours(tiny_model.state_dict())
    path = tmp_path / "model.pth"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=not legacy)
    model = SegFormer.from_pretrained(path)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2), {"state_dict": None}])
def test_pickles_without_tensors_by_name(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="tensors by name"):
        open_tensors(tmp_path / "x.pth")


def test_shards(tmp_path: Path, tiny_model: SegFormer) -> None:
    tiny_model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = list(tensors)
    files = {"1.safetensors": names[:50], "2.safetensors": names[50:]}
    for file, part in files.items():
        safetensors.torch.save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = SegFormer.from_pretrained(tmp_path)
    assert torch.equal(model.decoder.fuse.weight, tiny_model.decoder.fuse.weight)


FIRST = "backbone.patch_embed1.proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (FIRST, torch.zeros(8, 3, 7, 7, dtype=torch.int32), "int32, not floating-point weights"),
        (FIRST, torch.zeros(8, 3, 7, 7, dtype=torch.complex64), "complex64, not floating-point"),
        (FIRST, torch.zeros(8, 3, 7, 7).to(torch.float8_e4m3fn), "float8_e4m3fn, not floating"),
        (FIRST, torch.zeros(8, 3, 7, 7).to_sparse(), "sparse, quantized or without values"),
        (FIRST, torch.zeros(8, 3, 7, 7, device="meta"), "sparse, quantized or without values"),
        (FIRST, torch.zeros(1).expand(8, 10**9, 7, 7), "but values for less"),
        (FIRST, torch.zeros(8, 70_000, 1, 1), "more than 65536 classes or channels"),
        (FIRST, torch.tensor(1.0), "the encoder is incomplete"),
        (FIRST, torch.zeros(0, 3, 7, 7), "shapes that no SegFormer has"),
        (FIRST, torch.full((8, 3, 7, 7), 1e300, dtype=torch.float64), "values that are not finite"),
        ("decode_head.linear_pred.weight", torch.tensor(1.0), "shapes that no SegFormer has"),
        (
            "decode_head.linear_pred.weight",
            torch.zeros(1).expand(10**9, 16, 1, 1),
            "but values for less",
        ),
        ("decode_head.linear_fuse.bn.running_var", -torch.ones(16), "or negative variances"),
        ("backbone.block1.999999999.norm1.weight", torch.zeros(8), "has 5 blocks in total"),
    ],
)
def test_tensors_that_no_model_has(
    tmp_path: Path, tiny_model: SegFormer, name: str, tensor: torch.Tensor, words: str
) -> None:
    tensors = {**NVLABS.from_ours(tiny_model.state_dict()), name: tensor}
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=words):
        SegFormer.from_pretrained(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {"depths": [10**9, 1, 1, 1]},
        {"decoder_hidden_size": 10**12},
        {"num_channels": 10**9},
        {"mlp_ratios": [10**20] * 4},
        {"id2label": {"0": "a", "999999999": "b"}},
        {"mlp_ratios": [float("inf")]},
        {"semantic_loss_ignore_index": [1]},
        {"drop_path_rate": float("nan")},
        {"segformer": {"eps": {"block": "x"}}},
        {"segformer": {"palette": [[float("inf"), 0, 0]] * 5}},
        {"segformer": {"names": [["a"]] * 5}},
    ],
)
def test_hostile_configurations(tmp_path: Path, tiny_model: SegFormer, changes: dict) -> None:
    tiny_model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError):
        SegFormer.from_pretrained(tmp_path)


def test_tensors_that_lie_over_each_other(tmp_path: Path) -> None:
    entry = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    text = f'{{"a": {entry}, "b": {entry}}}'.encode()
    (tmp_path / "x").write_bytes(header(text) + bytes(8))
    with pytest.raises(CheckpointError, match="its tensors overlap"):
        open_tensors(tmp_path / "x")
    (tmp_path / "x").write_bytes(header(f'{{"a": {entry}, "a": {entry}}}'.encode()) + bytes(8))
    with pytest.raises(CheckpointError, match="a name occurs twice"):
        open_tensors(tmp_path / "x")


def test_tensors_that_share_their_memory_do_not_stay_tied(
    tmp_path: Path, tiny_model: SegFormer
) -> None:
    shared = torch.zeros(8)
    names = ("backbone.block1.0.norm1.bias", "backbone.block1.0.norm2.bias")
    tensors = {**NVLABS.from_ours(tiny_model.state_dict()), **dict.fromkeys(names, shared)}
    torch.save({"best": torch.tensor(0.5), "state_dict": tensors}, tmp_path / "x.pth")
    block = SegFormer.from_pretrained(tmp_path / "x.pth").encoder.stages[0].blocks[0]
    with torch.no_grad():
        block.attention_norm.bias += 1
    assert block.ffn_norm.bias.abs().max() == 0


def test_what_does_not_fit_half_precision_is_not_written(
    tmp_path: Path, tiny_model: SegFormer
) -> None:
    with torch.no_grad():
        tiny_model.decoder.norm.running_var += 1e6
    with pytest.raises(ValueError, match=r"decode_head.batch_norm.running_var: holds values too"):
        tiny_model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half" / "model.safetensors").exists()
