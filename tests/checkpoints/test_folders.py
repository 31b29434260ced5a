import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from conftest import randomize
from segformer import ClassSet, Preprocessing, SegFormer
from segformer.checkpoints.errors import CheckpointError
from segformer.config import ORIGINAL_EPS

transformers = pytest.importorskip("transformers")


def photo_like(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_a_folder_written_here_loads_in_transformers(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = ClassSet(tuple(f"thing {i}" for i in range(19)))
    model = randomize(SegFormer.from_variant(variant, classes=classes)).eval()
    model.save_pretrained(tmp_path)
    theirs, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report.get(kind), (kind, report[kind])
    assert theirs.config.id2label == dict(enumerate(classes.names))
    pixels = photo_like(1, 3, 128, 160)
    with torch.no_grad():
        expected = theirs.eval()(pixels).logits
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model.fold()(pixels), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_a_folder_written_by_transformers_loads_here(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = SegFormer.from_variant(variant).config
    config = transformers.SegformerConfig(
        hidden_sizes=list(ours.hidden_sizes),
        depths=list(ours.depths),
        decoder_hidden_size=ours.decoder_hidden_size,
        num_labels=150,
    )
    theirs = randomize(transformers.SegformerForSemanticSegmentation(config)).eval()
    theirs.save_pretrained(tmp_path)
    model = SegFormer.from_pretrained(tmp_path)
    assert model.config.variant == variant
    assert not model.training
    pixels = photo_like(2, 3, 97, 131)
    with torch.no_grad():
        expected = theirs(pixels).logits
        torch.testing.assert_close(model(pixels), expected, rtol=0, atol=1e-4)
        double = model.double()(pixels.double())
        torch.testing.assert_close(
            double, theirs.double()(pixels.double()).logits, rtol=0, atol=1e-9
        )


def test_round_trip_keeps_everything(tmp_path: Path, tiny_model: SegFormer) -> None:
    tiny_model.classes = ClassSet(
        ("a", "b", "c", "d", "e"), palette=tuple((i, 2 * i, 255 - i) for i in range(5))
    )
    tiny_model.preprocessing = Preprocessing(size=200, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    tiny_model.save_pretrained(tmp_path / "deep" / "model")
    again = SegFormer.from_pretrained(tmp_path / "deep" / "model")
    assert again.classes == tiny_model.classes
    assert again.config == tiny_model.config
    assert again.preprocessing == tiny_model.preprocessing
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert sorted(p.name for p in (tmp_path / "deep" / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_binary_model_and_own_eps_round_trip(tmp_path: Path) -> None:
    model = SegFormer.from_variant(
        "b0", classes=ClassSet(("land", "water")), num_classes=1, in_channels=4, eps=ORIGINAL_EPS
    )
    model.save_pretrained(tmp_path)
    again = SegFormer.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.classes.names == ("land", "water")
    entries = json.loads((tmp_path / "config.json").read_text())
    assert entries["id2label"] == {"0": "water"}  # one output: what transformers counts


@pytest.mark.parametrize("classes", [255, 256, 300])
def test_many_classes_round_trip(tmp_path: Path, classes: int) -> None:
    model = SegFormer.from_variant("b0", num_classes=classes)
    model.save_pretrained(tmp_path)
    assert SegFormer.from_pretrained(tmp_path).classes == model.classes


def test_two_classes_of_one_name_are_told_apart(tmp_path: Path, tiny_model: SegFormer) -> None:
    tiny_model.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    del entries["segformer"]
    entries["id2label"] = {"0": "a", "1": "screen", "2": "b", "3": "screen", "4": "c"}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    names = SegFormer.from_pretrained(tmp_path).classes.names
    assert names == ("a", "screen", "b", "screen (2)", "c")


def test_half_precision_is_stored_and_read_back(tmp_path: Path, tiny_model: SegFormer) -> None:
    tiny_model.save_pretrained(tmp_path, dtype=torch.float16)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16, torch.int64}
    again = SegFormer.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.config == tiny_model.config


def test_a_broken_write_leaves_the_old_file(
    tmp_path: Path, tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"size": 640}, (640, 640)),
        ({"size": {"height": 512, "width": 1024}}, (512, 1024)),
        ({"size": {"shortest_edge": 320}}, 320),
        ({"do_resize": False, "size": 512}, None),
    ],
)
def test_preprocessing_of_every_age(
    tmp_path: Path, tiny_model: SegFormer, entries: dict, size: object
) -> None:
    tiny_model.save_pretrained(tmp_path)
    entries = {**entries, "feature_extractor_type": "SegformerFeatureExtractor", "reduce_labels": 1}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(entries))
    preprocessing = SegFormer.from_pretrained(tmp_path).preprocessing
    assert preprocessing.size == size
    assert preprocessing.reduce_labels


class TestErrors:
    def test_no_such_folder(self) -> None:
        with pytest.raises(CheckpointError, match="nowhere: no such model: it is neither a folder"):
            SegFormer.from_pretrained("nowhere")

    def test_truncated_weights(self, tmp_path: Path, tiny_model: SegFormer) -> None:
        tiny_model.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(CheckpointError, match="truncated or not safetensors"):
            SegFormer.from_pretrained(tmp_path)

    def test_another_number_of_classes(self, tmp_path: Path, tiny_model: SegFormer) -> None:
        tiny_model.save_pretrained(tmp_path)
        entries = json.loads((tmp_path / "config.json").read_text())
        del entries["segformer"]
        entries["id2label"] = {"0": "a", "1": "b"}
        (tmp_path / "config.json").write_text(json.dumps(entries))
        with pytest.raises(
            CheckpointError, match=r"decoder.classifier.weight: expected \(2, .*found \(5, "
        ):
            SegFormer.from_pretrained(tmp_path)

    def test_missing_extra_and_nan_tensors(self, tmp_path: Path, tiny_model: SegFormer) -> None:
        tiny_model.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        tensors["decode_head.classifier.bias"][2] = torch.nan
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(
            CheckpointError, match=r"values that are not finite, .*: decoder.classifier.bias"
        ):
            SegFormer.from_pretrained(tmp_path)
        del tensors["segformer.encoder.block.0.0.attention.self.key.weight"]
        tensors["auxiliary.weight"] = torch.zeros(1)
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(CheckpointError) as caught:
            SegFormer.from_pretrained(tmp_path)
        assert "blocks.0.attention.key_value.weight: missing" in str(caught.value)
        assert "auxiliary.weight: not part of a model of this configuration" in str(caught.value)

    def test_weights_of_a_deeper_model(self, tmp_path: Path, tiny_model: SegFormer) -> None:
        tiny_model.save_pretrained(tmp_path)
        entries = json.loads((tmp_path / "config.json").read_text())
        entries["depths"] = [1, 1, 1, 1]
        (tmp_path / "config.json").write_text(json.dumps(entries))
        with pytest.raises(CheckpointError, match=r"blocks.1.* not part of a model of this conf"):
            SegFormer.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("file", "changes"),
        [
            ("config.json", {"id2label": []}),
            ("config.json", {"segformer": None}),
            ("config.json", {"decoder_hidden_size": 16.5}),
            ("config.json", {"depths": "many"}),
            ("preprocessor_config.json", {"image_mean": "abc"}),
            ("preprocessor_config.json", {"rescale_factor": None}),
            ("preprocessor_config.json", {"size": {"width": 3}}),
            ("preprocessor_config.json", {"resample": 99}),
        ],
    )
    def test_nonsense_is_a_sentence(
        self, tmp_path: Path, tiny_model: SegFormer, file: str, changes: dict
    ) -> None:
        tiny_model.save_pretrained(tmp_path)
        entries = json.loads((tmp_path / file).read_text()) | changes
        (tmp_path / file).write_text(json.dumps(entries))
        with pytest.raises(CheckpointError, match=file):
            SegFormer.from_pretrained(tmp_path)

    def test_another_kind_of_model(self, tmp_path: Path, tiny_model: SegFormer) -> None:
        tiny_model.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        with pytest.raises(CheckpointError, match="a model of type 'vit', not a SegFormer"):
            SegFormer.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="config.json: cannot be read"):
            SegFormer.from_pretrained(tmp_path)

    def test_a_pickle_that_runs_code_is_refused(
        self, tmp_path: Path, tiny_model: SegFormer
    ) -> None:
        tiny_model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save({"x": print}, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"holds more than tensors \(print\)"):
            SegFormer.from_pretrained(tmp_path)


def test_missing_data_and_channel_names_are_kept(tmp_path: Path, tiny_model: SegFormer) -> None:
    names = ("red", "green", "nir")
    tiny_model.preprocessing = Preprocessing(nodata=-9999.0, channel_names=names)
    tiny_model.save_pretrained(tmp_path)
    assert SegFormer.from_pretrained(tmp_path).preprocessing == tiny_model.preprocessing
    processors = pytest.importorskip("transformers.models.segformer.image_processing_pil_segformer")
    theirs = processors.SegformerImageProcessorPil.from_pretrained(tmp_path)
    assert tuple(theirs.image_mean) == tiny_model.preprocessing.mean
    file = tmp_path / "preprocessor_config.json"
    entries = json.loads(file.read_text())
    for wrong in ({"nodata": "low"}, {"nodata": "nan"}, {"channel_names": ["red"]}, []):
        file.write_text(json.dumps({**entries, "segformer": wrong}))
        with pytest.raises(CheckpointError):
            SegFormer.from_pretrained(tmp_path)
