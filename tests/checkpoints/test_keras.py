"""Models of KerasHub and of transformers 4 on TensorFlow, recorded by `record_keras.py`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import TINY
from segformer import MixTransformer, SegFormer, SegFormerClassifier
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.opening import open_checkpoint
from segformer.checkpoints.writing import convert
from segformer.cli import main
from segformer.config import KERASHUB_EPS, SegFormerConfig

h5py = pytest.importorskip("h5py", reason="HDF5 files are read with h5py")

ARCHIVE = Path(__file__).with_name("keras_models.zip")
SKIPPED = 13
"""Of the logits at the size of the image, each row of this step is recorded."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the models; that of a real size where the environment names one."""
    if "SEGFORMER_KERAS_MODELS" in os.environ:
        return Path(os.environ["SEGFORMER_KERAS_MODELS"])
    folder = tmp_path_factory.mktemp("keras")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def preset(recorded: Path, tmp_path: Path) -> Path:
    """A preset that a test may change."""
    return shutil.copytree(recorded / "kerashub_segmenter", tmp_path / "preset")


@pytest.fixture(scope="module")
def outputs(recorded: Path) -> dict[str, Any]:
    return json.loads((recorded / "outputs.json").read_text())


@pytest.fixture(scope="module")
def pixels(outputs: dict[str, Any]) -> Tensor:
    """(1, 3, H, W) float64, as `record_keras.pixels` draws them."""
    side = 4 * len(outputs["kerashub_segmenter"][0][0])
    values = np.random.default_rng(7).standard_normal((1, side, side, 3))
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def assert_close(values: Tensor, expected: list[Any], tolerance: float = 1e-5) -> None:
    """Differences are at most ``tolerance`` times the largest value."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    assert values.shape == wanted.shape
    assert (values - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name",
    [
        "kerashub_segmenter",
        "kerashub_segmenter.keras",
        "kerashub_segmenter/model.weights.h5",
        "tensorflow_segmenter",
    ],
)
def test_segmenters(
    recorded: Path, outputs: dict[str, Any], pixels: Tensor, name: str, dtype: torch.dtype
) -> None:
    model = SegFormer.from_pretrained(recorded / name).to(dtype)
    expected = outputs[name.removesuffix(".keras").removesuffix("/model.weights.h5")]
    # The other form of GELU would differ by 2e-4; kernels of float32 differ between processors
    tolerance = 1e-5 if dtype == torch.float64 else 3e-5
    with torch.no_grad():
        assert_close(model(pixels.to(dtype)), expected, tolerance)
        assert_close(model.fold()(pixels.to(dtype)), expected, tolerance)
    trained = model(pixels.to(dtype)).detach()  # with gradients, so without chunks
    assert_close(trained, expected, tolerance)


@pytest.mark.parametrize("name", ["kerashub_classifier", "tensorflow_classifier"])
def test_classifiers(recorded: Path, outputs: dict[str, Any], pixels: Tensor, name: str) -> None:
    model = SegFormerClassifier.from_pretrained(recorded / name)
    with torch.no_grad():
        assert_close(model(pixels.float()), outputs[name], tolerance=3e-5)


def test_kerashub_encoder_and_its_eps(
    recorded: Path, outputs: dict[str, Any], pixels: Tensor
) -> None:
    encoder = MixTransformer.from_pretrained(recorded / "kerashub_encoder").double()
    assert encoder.config.eps == KERASHUB_EPS
    with torch.no_grad():
        # Another eps at the ends of the stages would differ by 2e-6 to 4e-6
        for maps, expected in zip(encoder(pixels), outputs["kerashub_features"], strict=True):
            assert_close(maps, expected, tolerance=1e-6)


def test_kerashub_upsamples_as_this_package(
    recorded: Path, outputs: dict[str, Any], pixels: Tensor
) -> None:
    model = SegFormer.from_pretrained(recorded / "kerashub_segmenter").double()
    with torch.no_grad():
        logits = F.interpolate(
            model(pixels), size=pixels.shape[2:], mode="bilinear", align_corners=False
        )
    assert_close(logits[0, :, ::SKIPPED], outputs["kerashub_segmenter_rows"])


def test_a_preset_describes_its_model(preset: Path) -> None:
    checkpoint = open_checkpoint(preset)
    assert checkpoint.kind == "segmenter"
    assert checkpoint.config.hidden_act == "gelu_pytorch_tanh"
    assert checkpoint.preprocessing.size == 64
    scale = checkpoint.preprocessing.rescale / np.array(checkpoint.preprocessing.std)
    offset = -np.array(checkpoint.preprocessing.mean) / np.array(checkpoint.preprocessing.std)
    np.testing.assert_allclose(scale, [0.017, 0.0175, 0.0174])
    np.testing.assert_allclose(offset, [-2.1, -2.0, -1.8])
    without = SegFormerConfig(
        **{**vars(checkpoint.config), "num_attention_heads": (1, 2, 3, 4)}
    )  # which the shapes alone give too
    (preset / "config.json").unlink()
    assert open_checkpoint(preset).config == without


def test_input_of_older_presets(preset: Path) -> None:
    """They state the mean, the variance and one scale, and another size than the model's."""
    path = preset / "preprocessor.json"
    entries = json.loads(path.read_text())
    converter = entries["config"]["image_converter"]["config"]
    for name in ("image_size", "offset"):
        del converter[name]
    converter |= {"height": 224, "width": 224, "scale": 1 / 255}
    converter |= {"mean": [0.4, 0.5, 0.6], "variance": [0.04, 0.09, 0.16]}
    path.write_text(json.dumps(entries))
    preprocessing = open_checkpoint(preset).preprocessing
    assert preprocessing.mean == (0.4, 0.5, 0.6)
    assert preprocessing.std == pytest.approx((0.2, 0.3, 0.4))
    assert (preprocessing.size, preprocessing.multiple) == (64, 32)
    assert preprocessing.expects_8_bit


def test_a_backbone_alone(preset: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("task.json", "task.weights.h5", "preprocessor.json", "image_converter.json"):
        (preset / name).unlink()
    assert open_checkpoint(preset).kind == "encoder"
    with caplog.at_level(logging.INFO, logger="segformer"):
        model = SegFormer.from_pretrained(preset, num_classes=2)
    assert "it has no decoder; the decoder is re-initialized" in caplog.text
    assert model.config.num_classes == 2


def test_converted_to_the_hub_layout(
    recorded: Path, outputs: dict[str, Any], pixels: Tensor, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    convert(recorded / "kerashub_segmenter", tmp_path / "hub", "hf")
    assert json.loads((tmp_path / "hub/config.json").read_text())["hidden_act"] == (
        "gelu_pytorch_tanh"
    )
    with torch.no_grad():
        model = SegFormer.from_pretrained(tmp_path / "hub").double()
        assert_close(model(pixels), outputs["kerashub_segmenter"])
        theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "hub")
        # transformers takes the activation from the file, but has its own eps
        assert_close(theirs(pixels.float()).logits, outputs["kerashub_segmenter"], 1e-4)


def test_formats_without_the_activation(
    recorded: Path,
    outputs: dict[str, Any],
    pixels: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    convert(recorded / "kerashub_segmenter", tmp_path / "nvlabs.pth", "nvlabs")
    assert "NVlabs computes another activation (gelu, not gelu_pytorch_tanh)" in caplog.text
    with torch.no_grad():
        model = SegFormer.from_pretrained(tmp_path / "nvlabs.pth").double()
        assert_close(model(pixels), outputs["kerashub_segmenter"])
    caplog.clear()
    convert(recorded / "tensorflow_segmenter", tmp_path / "plain.pth", "nvlabs")
    assert caplog.text == ""
    with pytest.raises(ValueError, match="no format 'kerashub'"):
        convert(recorded / "kerashub_segmenter", tmp_path / "x.pth", "kerashub")
    with pytest.raises(ValueError, match=r"in a file; give a name that ends in .pth"):
        convert(recorded / "kerashub_segmenter", tmp_path / "x.h5", "nvlabs")


def test_info(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(recorded / "kerashub_segmenter.keras"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["kind"]) == ("KerasHub", "segmenter")
    assert found["hidden_act"] == "gelu_pytorch_tanh"
    assert found["unused_tensors"] == ["optimizer/vars/0", "optimizer/vars/1"]


def refusal(source: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SegFormer.from_pretrained(source)
    return str(caught.value)


def test_other_models_of_keras(preset: Path) -> None:
    path = preset / "task.json"
    entries = json.loads(path.read_text())
    for key, value, words in (
        ("class_name", "DeepLabV3ImageSegmenter", "a DeepLabV3ImageSegmenter of Keras, not a"),
        ("config", None, "value of the wrong type"),
        ("config", {}, "'backbone' is missing"),
    ):
        path.write_text(json.dumps({**entries, key: value}))
        assert words in refusal(preset)


def test_missing_h5py(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'pip install "segformer[keras]"' in refusal(preset)


BIAS = "layers/dense/vars/1"


def replaced(preset: Path, **options: Any) -> None:
    """One dataset of the preset, created again with other options."""
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        del file[BIAS]
        file.create_dataset(BIAS, **options)


def test_values_in_other_files(preset: Path) -> None:
    """No other file is opened: there is none of these names."""
    weights = preset / "model.weights.h5"
    for link in (h5py.ExternalLink("nowhere.h5", "x"), h5py.SoftLink("/layers/dense_1/vars/1")):
        with h5py.File(weights, "r+") as file:
            del file[BIAS]
            file[BIAS] = link
        assert "dense/vars/1: a link to another place or file" in refusal(preset)
    replaced(preset, shape=(8,), dtype="f4", external=[("nowhere.bin", 0, 32)])
    assert "dense/vars/1: its values lie in another file" in refusal(preset)
    layout = h5py.VirtualLayout((8,), dtype="f4")
    layout[:] = h5py.VirtualSource("nowhere.h5", "x", (8,))
    with h5py.File(weights, "r+") as file:
        del file[BIAS]
        file.create_virtual_dataset(BIAS, layout)
    assert "dense/vars/1: its values lie in another file" in refusal(preset)


def test_datasets_that_keras_does_not_write(preset: Path) -> None:
    replaced(preset, data=np.zeros(8, "f4"), compression="gzip")
    assert "dense/vars/1: stored compressed or in pieces" in refusal(preset)
    replaced(preset, shape=(1 << 40,), dtype="f4")
    assert "dense/vars/1: has the shape [1099511627776], but no values" in refusal(preset)
    replaced(preset, data=["text"] * 8, dtype=h5py.string_dtype())
    assert "stored in a type that PyTorch does not have" in refusal(preset)
    replaced(preset, data=np.zeros(8, ">f4"))
    assert "stored in a type that PyTorch does not have" in refusal(preset)
    replaced(preset, data=np.zeros(8, "i4"))
    assert "of type torch.int32, not floating-point weights" in refusal(preset)
    replaced(preset, data=h5py.Empty("f4"))
    assert "dense/vars/1: not an array of numbers" in refusal(preset)
    replaced(preset, data=np.zeros(9, "f4"))
    assert "decoder.projections.3.bias: expected (8,), found (9,)" in refusal(preset)
    replaced(preset, data=np.full(8, np.nan, "f4"))
    assert "values that are not finite" in refusal(preset)
    replaced(preset, data=np.zeros(8, "f8"))  # another floating-point type is read
    assert SegFormer.from_pretrained(preset).decoder.projections[3].bias.abs().sum() == 0


def test_trees_that_keras_does_not_write(preset: Path, tmp_path: Path) -> None:
    weights = preset / "model.weights.h5"
    whole = weights.read_bytes()
    with h5py.File(weights, "r+") as file:
        file["layers/again"] = file["layers"]  # a group in itself
    assert "nested deeper than 24" in refusal(preset)
    weights.write_bytes(whole)
    with h5py.File(weights, "r+") as file:
        file["layers/dense/vars/2"] = file[BIAS]
    assert "its tensors overlap" in refusal(preset)
    weights.write_bytes(whole)
    with h5py.File(weights, "r+") as file:
        file["other/overlapping_patching_and_embedding/norm/vars/0"] = np.zeros(4, "f4")
    assert "holds several models" in refusal(preset)
    weights.write_bytes(whole)
    with h5py.File(weights, "r+") as file:
        file["unexpected"] = np.zeros(4, "f4")
    assert "unexpected: not part of a model of this configuration" in refusal(preset)
    for size in (12, 5000, len(whole) - 1):
        weights.write_bytes(whole[:size])
        assert "it may be truncated" in refusal(preset)
    many = tmp_path / "many.h5"
    with h5py.File(many, "w") as file:
        level = file
        for _ in range(20):  # 2 ** 20 paths to the same group
            below = level.create_group("a")
            level["b"] = below
            level = below
    assert "more than 20,000 objects" in refusal(many)


def test_stages_of_the_same_width(preset: Path) -> None:
    name = "layers/functional/layers/overlapping_patching_and_embedding_1/norm/vars/0"
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        del file[name]
        file[name] = np.zeros(4, "f4")
    assert "stages of the same width, [4, 4, 12, 16]" in refusal(preset)


def test_archives(recorded: Path, tmp_path: Path) -> None:
    source, copy = recorded / "kerashub_segmenter.keras", tmp_path / "copy.keras"
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert open_checkpoint(tmp_path / "unpacked").config == open_checkpoint(source).config
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "unpacked").iterdir():
            archive.write(path, path.name)
    assert "is compressed, which Keras does not do; unpack" in refusal(copy)
    copy.write_bytes(source.read_bytes()[:-100])
    assert "damaged archive" in refusal(copy)
    with zipfile.ZipFile(copy, "w") as archive:
        archive.write(tmp_path / "unpacked/model.weights.h5", "model.weights.h5")
    assert "There is no item named 'config.json'" in refusal(copy)


def test_other_hdf5_files(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    assert "not a SegFormer: none of its 1 tensors" in refusal(path)


def test_the_activation_is_checked_and_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hidden_act must be one of gelu, gelu_pytorch_tanh"):
        SegFormerConfig(hidden_act="relu")
    model = SegFormer(SegFormerConfig(**{**vars(TINY), "hidden_act": "gelu_pytorch_tanh"}))
    model.save_pretrained(tmp_path)
    assert SegFormer.from_pretrained(tmp_path).config == model.config
    entries = json.loads((tmp_path / "config.json").read_text())
    del entries["segformer"]["eps"]["stage"]  # as written before it was a setting of its own
    entries["segformer"]["eps"]["block"] = 1e-6
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert SegFormer.from_pretrained(tmp_path).config.eps.stage == 1e-6
