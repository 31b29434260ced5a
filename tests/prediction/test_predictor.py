from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import TINY, randomize
from segformer import ClassSet, Predictor, Preprocessing, SegFormer, SegFormerConfig
from segformer.image import UnreadableImage
from segformer.prediction.config import PredictConfig, PredictOptions
from segformer.prediction.runtimes.pytorch import TorchRuntime


@pytest.mark.parametrize(
    "size", [{"height": 512, "width": 512}, {"height": 160, "width": 224}, {"shortest_edge": 200}]
)
def test_labels_equal_those_of_transformers(
    tmp_path: Path, photograph: np.ndarray, size: dict[str, int]
) -> None:
    """The same folder, the same photograph, their processor, model and post-processing."""
    transformers = pytest.importorskip("transformers")
    processors = pytest.importorskip("transformers.models.segformer.image_processing_pil_segformer")
    torch.manual_seed(0)
    theirs = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(num_labels=19)
    )
    theirs = randomize(theirs).eval()
    theirs.save_pretrained(tmp_path)
    processors.SegformerImageProcessorPil(size=size).save_pretrained(tmp_path)
    processor = processors.SegformerImageProcessorPil.from_pretrained(tmp_path)
    photograph = photograph[40:400]  # 360 x 512
    inputs = processor(Image.fromarray(photograph), return_tensors="pt")
    with torch.no_grad():
        outputs = theirs(**inputs)
    expected = processor.post_process_semantic_segmentation(outputs, [photograph.shape[:2]])[0]

    predictor = Predictor(tmp_path, device="cpu")
    view = predictor._view(photograph, 1.0)
    assert view.shape[:2] == tuple(inputs["pixel_values"].shape[2:])
    np.testing.assert_allclose(
        view.transpose(2, 0, 1), inputs["pixel_values"][0].numpy(), atol=1e-4
    )
    label_map = predictor(photograph).label_map
    assert len(np.unique(label_map)) > 3
    assert (label_map == expected.numpy()).mean() > 0.999


def test_a_model_saved_here_is_processed_alike_by_transformers(
    tmp_path: Path, photograph: np.ndarray, tiny_model: SegFormer
) -> None:
    processors = pytest.importorskip("transformers.models.segformer.image_processing_pil_segformer")
    for size in ((96, 128), 100):
        tiny_model.preprocessing = Preprocessing(size=size)
        tiny_model.save_pretrained(tmp_path)
        processor = processors.SegformerImageProcessorPil.from_pretrained(tmp_path)
        theirs = processor(Image.fromarray(photograph[:300]), return_tensors="np")["pixel_values"]
        ours = Predictor(tiny_model, device="cpu")._view(photograph[:300], 1.0)
        np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs[0], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (33, 47), (500, 29)])
@pytest.mark.parametrize("options", [{}, {"short_side": 64}, {"window": 64}, {"size": (64, 96)}])
def test_any_size(tiny_model: SegFormer, shape: tuple[int, int], options: dict) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    tiny_model.preprocessing = Preprocessing(size=(64, 64))
    assert Predictor(tiny_model, device="cpu", **options)(image).label_map.shape == shape


def test_logits_of_a_file(tiny_model: SegFormer, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    predictor = Predictor(tiny_model, size=64, device="cpu")
    assert torch.equal(predictor.logits(tmp_path / "image.png"), predictor.logits(image))
    with pytest.raises(UnreadableImage, match="missing.png"):
        predictor.logits(tmp_path / "missing.png")


def test_windows_average_logits_where_they_overlap(tiny_model: SegFormer) -> None:
    """Against the plain sum and count, window by window."""
    image = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    predictor = Predictor(tiny_model, window=64, stride=48, device="cpu")
    logits = predictor.logits(image)
    assert logits.shape == (5, 23, 38)
    padded = np.pad(predictor.preprocessing.normalize(image), ((0, 2), (0, 2), (0, 0)), mode="edge")
    pixels = torch.from_numpy(padded).permute(2, 0, 1)[None]
    total, count = torch.zeros(5, 23, 38), torch.zeros(23, 38)
    for top in (0, 28):
        for left in (0, 48, 88):
            with torch.no_grad():
                part = tiny_model(pixels[:, :, top : top + 64, left : left + 64])[0]
            where = np.s_[..., top // 4 : top // 4 + 16, left // 4 : left // 4 + 16]
            total[where] += part
            count[where] += 1
    torch.testing.assert_close(logits, total / count, rtol=0, atol=1e-4)
    assert count.unique().tolist() == [1, 2, 4]


def test_one_window_is_the_whole_image(tiny_model: SegFormer) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    tiny_model.preprocessing = Preprocessing(size=None)
    whole = Predictor(tiny_model, device="cpu")(image).label_map
    assert np.array_equal(Predictor(tiny_model, window=96, device="cpu")(image).label_map, whole)


def test_scales_and_flips_average_probabilities(tiny_model: SegFormer) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    tiny_model.preprocessing = Preprocessing(size=(64, 96))
    predictor = Predictor(
        tiny_model, scales=(0.75, 1, 1.25), flip=True, confidence=True, device="cpu"
    )
    prediction = predictor(image)
    mean = torch.zeros(1, 5, 64, 96)
    for scale in (0.75, 1, 1.25):
        pixels = torch.from_numpy(predictor._view(image, scale)).permute(2, 0, 1)[None]
        assert pixels.shape[2:] == (round(64 * scale), round(96 * scale))
        for mirrored in (False, True):
            with torch.no_grad():
                logits = tiny_model(pixels.flip(-1) if mirrored else pixels)
            logits = logits.flip(-1) if mirrored else logits
            full = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)
            mean += full.softmax(1) / 6
    np.testing.assert_allclose(prediction.confidence, mean[0].amax(0), atol=1e-4)
    assert (prediction.label_map == mean[0].argmax(0).numpy()).mean() > 0.999


def test_binary_model(tiny_config: SegFormerConfig) -> None:
    config = SegFormerConfig(**{**vars(tiny_config), "num_classes": 1})
    model = randomize(SegFormer(config, ClassSet(("land", "water")))).eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    model.preprocessing = Preprocessing(size=(64, 64))
    predictor = Predictor(model, confidence=True, device="cpu")
    bias = model.decoder.classifier.get_parameter("bias")
    with torch.no_grad():
        bias -= predictor.logits(image).median()  # so that both classes occur
        logits = model(torch.from_numpy(predictor._view(image, 1.0)).permute(2, 0, 1)[None])
    full = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)[0, 0]
    prediction = predictor(image)
    water = (full.sigmoid() > 0.5).numpy()
    assert 0.2 < water.mean() < 0.8
    assert (prediction.mask("water") == water).mean() > 0.999
    assert prediction.mask("land").sum() == (~prediction.mask("water")).sum()
    certainty = torch.maximum(full.sigmoid(), 1 - full.sigmoid()).numpy()
    np.testing.assert_allclose(prediction.confidence, certainty, atol=1e-5)


def test_stream_keeps_order_and_reports_broken_files(tmp_path: Path, tiny_model: SegFormer) -> None:
    paths = []
    for i in range(12):
        paths.append(tmp_path / f"{i:02}.png")
        Image.new("RGB", (40 + i, 40), (20 * i, 0, 0)).save(paths[-1])
    paths[5].write_bytes(b"broken")
    predictor = Predictor(tiny_model, size=(32, 32), device="cpu")
    failed = []
    predictions = list(predictor.stream(iter(paths), on_error=lambda s, e: failed.append((s, e))))
    assert [p.label_map.shape[1] for p in predictions] == [40 + i for i in range(12) if i != 5]
    assert [source for source, _ in failed] == [paths[5]]
    with pytest.raises(UnreadableImage, match="05.png"):
        list(predictor.stream(paths))


def test_stream_reads_no_further_ahead_than_it_must(tiny_model: SegFormer) -> None:
    taken = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(1)
            yield np.zeros((32, 32, 3), np.uint8)

    stream = Predictor(tiny_model, size=(32, 32), device="cpu").stream(endless(), readers=2)
    for _ in range(3):
        next(stream)
    stream.close()
    assert len(taken) <= 3 + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (64, 64), "short_side": 64}, "size or short_side, not both"),
        ({"short_side": 8}, "8 pixels is below 32"),
        ({"stride": 64}, "a stride needs a window"),
        ({"window": 64, "stride": 96}, "leaves gaps"),
        ({"window": 66}, "multiples of 4"),
        ({"scales": ()}, "scales must be ratios"),
        ({"scales": (1, 0)}, "scales must be ratios"),
        ({"precision": "int3"}, "neither float32 nor bfloat16"),
        ({"flips": True}, "no such options: flips"),
    ],
)
def test_impossible_options(tiny_model: SegFormer, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(tiny_model, **options)


def test_default_stride_is_three_quarters() -> None:
    assert PredictConfig(window=1024).stride == 768


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (1.0, 0.5)}, {"window": 64}])
def test_batches_change_nothing(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = randomize(SegFormer(TINY)).eval()
    rng = np.random.default_rng(0)
    shapes = [(90, 120), (90, 120), (90, 120), (120, 90), (90, 120)]
    images = [rng.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]
    images[1:1] = [np.zeros((0, 5, 3), np.uint8)]  # no image
    failed: list[object] = []
    singly = Predictor(model, short_side=64, **options, batch_size=1)
    batched = Predictor(model, short_side=64, **options, batch_size=3)
    expected = [singly(image).label_map for image in images if image.size]
    found = list(batched.stream(images, on_error=lambda source, _: failed.append(source)))
    assert len(failed) == 1
    for prediction, label_map in zip(found, expected, strict=True):
        assert (prediction.label_map == label_map).mean() > 0.999


def test_a_batch_that_does_not_fit_is_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(SegFormer(TINY).eval(), short_side=64, batch_size=4)
    run, sizes = TorchRuntime.__call__, []

    def small_memory(runtime: TorchRuntime, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return run(runtime, pixels)

    monkeypatch.setattr(TorchRuntime, "__call__", small_memory)
    images = [np.full((70, 80, 3), i, np.uint8) for i in range(3)]
    assert len(list(predictor.stream(images))) == 3
    assert sizes == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "run it in windows, such as window=1024"),
        ({"window": 1024, "batch_size": 4}, "run fewer windows at once"),
        ({"window": 1024, "flip": True}, "without confidence, flip and scales"),
        ({"window": 1024}, "smaller windows, such as window=512"),
        ({"window": 512}, "$"),
    ],
)
def test_the_advice_when_memory_runs_out_fits_the_options(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch, options: dict, advice: str
) -> None:
    def exhausted(runtime: TorchRuntime, pixels: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own error

    monkeypatch.setattr(TorchRuntime, "__call__", exhausted)
    with pytest.raises(MemoryError, match=f"80 x 70 pixels do not fit into memory(; .*)?{advice}"):
        Predictor(tiny_model, device="cpu", **options)(np.zeros((70, 80, 3), np.uint8))


def test_errors_that_mention_memory_are_not_taken_for_exhausted_memory(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(runtime: TorchRuntime, pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(TorchRuntime, "__call__", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Predictor(tiny_model, device="cpu")(np.zeros((70, 80, 3), np.uint8))


def test_one_number_is_a_square_or_one_scale() -> None:
    config = PredictConfig(size=512, scales=0.5)  # type: ignore[arg-type]
    assert config.size == (512, 512)
    assert config.scales == (0.5,)
    assert PredictConfig(size=[64, 96], scales=[1, np.float32(0.5)]).scales == (1.0, 0.5)  # type: ignore[arg-type]
    assert PredictConfig(short_side=np.int64(64)).short_side == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "512"}, "size must be a whole number of pixels, not '512'"),
        ({"size": (64, 64, 3)}, "size must be height and width"),
        ({"short_side": 64.5}, "short_side must be a whole number of pixels, not 64.5"),
        ({"window": True}, "window must be a whole number"),
        ({"batch_size": "8"}, "batch_size must be a whole number of images"),
        ({"scales": "1"}, "scales must be a ratio or several"),
        ({"scales": None}, "scales must be a ratio or several"),
        ({"scales": (1, float("nan"))}, "scales must be ratios"),
        ({"flip": 1}, "flip must be True or False, not 1"),
        ({"device": 3.5}, "no device 3.5"),
    ],
)
def test_values_of_the_wrong_type_are_refused_in_words(
    tiny_model: SegFormer, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(tiny_model, **options)


def test_keyword_options_are_the_fields_of_the_config() -> None:
    """So that editors complete them and type checkers know them."""
    assert PredictOptions.__annotations__.keys() == PredictConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.25), "flip": True}])
def test_windows_are_normalized_like_whole_images(
    tiny_config: SegFormerConfig, kind: type, options: dict
) -> None:
    """One window over all of the image gives what the model gives for the image."""
    channels = 3 if kind is np.uint8 else 4
    config = SegFormerConfig(**{**vars(tiny_config), "in_channels": channels})
    model = randomize(SegFormer(config)).eval()
    values = np.random.default_rng(0).integers(0, 255, (61, 96, channels)).astype(kind)
    model.preprocessing = replace(model.preprocessing, size=None)
    padded = np.pad(values, ((0, 3), (0, 0), (0, 0)), mode="edge")
    whole = Predictor(model, device="cpu").logits(padded)
    windowed = Predictor(model, device="cpu", window=256).logits(values)
    torch.testing.assert_close(windowed, whole, rtol=0, atol=1e-5)
    predictors = [Predictor(model, device="cpu", **options, window=w) for w in (None, 256)]
    first, second = (predictor(padded).label_map for predictor in predictors)
    assert (first == second).mean() > 0.95


def test_windows_are_counted(tiny_model: SegFormer) -> None:
    predictor = Predictor(
        tiny_model, window=64, stride=48, scales=(1, 0.5), flip=True, device="cpu"
    )
    seen: list[tuple[int, int]] = []
    image = np.zeros((90, 150, 3), np.uint8)
    list(predictor.stream([image], on_windows=lambda done, count: seen.append((done, count))))
    assert seen == [(i + 1, 16) for i in range(16)]  # 2 x 3 at full size, 1 x 2 at half, mirrored


def test_large_images_are_not_read_ahead(
    tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segformer.prediction.reading_ahead._LARGE_IMAGE", 1000)
    taken = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(1)
            yield np.zeros((40, 40, 3), np.uint8)

    stream = Predictor(tiny_model, window=32, device="cpu").stream(endless(), readers=4)
    for _ in range(8):
        next(stream)
    stream.close()
    assert len(taken) <= 8 + 2
