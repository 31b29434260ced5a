from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import TINY, randomize
from segformer import MixTransformer, SegFormer, SegFormerClassifier
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.formats import FORMATS, HUB, NVLABS, Format, recognize
from segformer.checkpoints.opening import open_checkpoint
from segformer.checkpoints.writing import convert


def equal(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) and tensor.dtype == others[name].dtype
        for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_round_trip_is_bit_exact_and_recognized(format: Format) -> None:
    tensors = randomize(SegFormer(replace(TINY, decoder=format.decoders[-1]))).state_dict()
    theirs = format.from_ours(tensors)
    assert equal(dict(format.to_ours(theirs, theirs.__getitem__)), tensors)
    found = recognize(f"module.{name}" for name in theirs)
    assert found is not None
    assert found[0] is format
    assert found[1] == {name: f"module.{name}" for name in theirs}
    assert found[2] == []
    assert format.unknown(theirs) == []


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_an_encoder_without_its_prefix(format: Format) -> None:
    tensors = {f"encoder.{n}": t for n, t in MixTransformer(TINY).state_dict().items()}
    theirs = format.from_ours(tensors)
    bare = {name.removeprefix(format.encoder): tensor for name, tensor in theirs.items()}
    assert bare.keys() != theirs.keys()
    found = recognize(bare)
    assert found is not None
    again = found[0].to_ours(found[1], lambda name: bare[found[1][name]])
    assert equal(dict(again), tensors)


def test_keys_and_values_are_cut_apart_and_joined(tiny_model: SegFormer) -> None:
    joined = tiny_model.encoder.stages[1].blocks[0].attention.key_value.weight
    theirs = HUB.from_ours(tiny_model.state_dict())
    prefix = "segformer.encoder.block.1.0.attention.self."
    assert torch.equal(theirs[prefix + "key.weight"], joined[:16])
    assert torch.equal(theirs[prefix + "value.weight"], joined[16:])
    # A fork of the original code that stores them apart
    theirs = NVLABS.from_ours(tiny_model.state_dict())
    for name in [name for name in theirs if ".kv." in name]:
        key, value = theirs.pop(name).chunk(2)
        theirs |= {name.replace(".kv.", ".k."): key, name.replace(".kv.", ".v."): value}
    assert equal(dict(NVLABS.to_ours(theirs, theirs.__getitem__)), tiny_model.state_dict())


def test_a_name_without_a_row() -> None:
    with pytest.raises(ValueError, match="encoder.extra.weight: the hf format has no name"):
        HUB.from_ours({"encoder.extra.weight": torch.zeros(1)})


def test_other_models_are_not_recognized(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(
        CheckpointError, match=r"not a SegFormer: none of its 1 tensors.*conv1.weight"
    ):
        SegFormer.from_pretrained(tmp_path / "resnet.pth")


@pytest.mark.parametrize("name", ["hf", "hf.pth", "nvlabs.pth", "smp", "smp.safetensors"])
def test_conversion_there_and_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize(SegFormer.from_variant("b0", num_classes=7)).eval()
    model.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / name, name.partition(".")[0])
    again = SegFormer.from_pretrained(tmp_path / name)
    assert equal(again.state_dict(), model.state_dict())
    assert again.config == model.config  # eps included: it is recorded beside foreign names
    assert again.classes == model.classes
    assert again.preprocessing == model.preprocessing


def test_conversion_of_openmmlab(tmp_path: Path) -> None:
    model = randomize(SegFormer(replace(TINY, decoder="openmmlab"))).eval()
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "x.pth", "mmseg")
    opened = open_checkpoint(tmp_path / "x.pth")
    assert (opened.format.name, opened.kind) == ("mmseg", "segmenter")
    again = SegFormer.from_pretrained(tmp_path / "x.pth")
    assert equal(again.state_dict(), model.state_dict())
    for format in ("hf", "nvlabs", "smp"):
        with pytest.raises(ValueError, match=r"has no decoder of this kind \(openmmlab\)"):
            convert(tmp_path / "x.pth", tmp_path / "out", format)
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="segformer-openmmlab"):  # never loaded in silence
        transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours")


def test_conversion_of_classifiers_and_encoders(tmp_path: Path) -> None:
    model = SegFormerClassifier(TINY)
    model.save_pretrained(tmp_path / "classifier")
    convert(tmp_path / "classifier", tmp_path / "mit.pth", "nvlabs")
    stored = torch.load(tmp_path / "mit.pth", weights_only=True)["state_dict"]
    assert {"patch_embed1.proj.weight", "head.weight"} <= stored.keys()
    again = SegFormerClassifier.from_pretrained(tmp_path / "mit.pth")
    assert equal(again.state_dict(), model.state_dict())
    del stored["head.weight"], stored["head.bias"]
    torch.save(stored, tmp_path / "encoder.pth")
    opened = convert(tmp_path / "encoder.pth", tmp_path / "encoder", "hf")
    assert opened.kind == "encoder"
    encoder = MixTransformer.from_pretrained(tmp_path / "encoder")
    assert equal(encoder.state_dict(), model.encoder.state_dict())


def test_conversion_needs_a_file_for_codes_without_folders(
    tmp_path: Path, tiny_model: SegFormer
) -> None:
    tiny_model.save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"NVlabs stores a segmenter in a file; .* ends in .pth"):
        convert(tmp_path / "source", tmp_path / "folder", "nvlabs")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ValueError, match=r"folder.pth: is a folder; give the name of a file"):
        convert(tmp_path / "source", tmp_path / "folder.pth", "nvlabs")
    with pytest.raises(ValueError, match="no format 'keras'; the formats are hf"):
        convert(tmp_path / "source", tmp_path / "folder", "keras")


def test_classes_of_a_training_code(tmp_path: Path, tiny_model: SegFormer) -> None:
    tensors = NVLABS.from_ours(tiny_model.state_dict())
    tensors["decode_head.conv_seg.weight"] = torch.zeros(5, 128, 1, 1)  # NVlabs' own leftover
    meta = {"CLASSES": ("a", "b", "c", "d", "d"), "PALETTE": [[i, i, i] for i in range(5)]}
    torch.save({"meta": meta, "state_dict": tensors}, tmp_path / "x.pth")
    model = SegFormer.from_pretrained(tmp_path / "x.pth")
    assert model.classes.names == ("a", "b", "c", "d", "d (2)")
    assert model.classes.palette[3] == (3, 3, 3)
    assert open_checkpoint(tmp_path / "x.pth").unused == ["decode_head.conv_seg.weight"]
    new = {"dataset_meta": {"classes": ["v", "w", "x", "y", "z"], "palette": "nonsense"}}
    torch.save({"meta": new, "state_dict": tensors}, tmp_path / "x.pth")
    assert SegFormer.from_pretrained(tmp_path / "x.pth").classes.names == tuple("vwxyz")
