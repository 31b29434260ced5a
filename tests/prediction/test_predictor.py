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
from segformer.prediction.config import PredictConfig


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


def test_windows_average_logits_where_they_overlap(tiny_model: SegFormer) -> None:
    """Against the plain sum and count, window by window."""
    image = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    predictor = Predictor(tiny_model, window=64, stride=48, device="cpu")
    logits = predictor.logits(image)
    assert logits.shape == (5, 23, 38)
    padded = np.pad(predictor._view(image, 1.0), ((0, 2), (0, 2), (0, 0)), mode="edge")
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
    prediction = Predictor(model, size=(64, 64), device="cpu")(image)
    assert set(prediction.class_fractions) <= {"land", "water"}


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

    def endless():
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
        ({"size": (64, 64), "short_side": 64}, "a size or a short side, not both"),
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
    run = predictor.runtime.run

    def small_memory(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 1:
            raise RuntimeError("out of memory")
        return run(pixels)

    monkeypatch.setattr(predictor.runtime, "run", small_memory)
    images = [np.full((70, 80, 3), i, np.uint8) for i in range(3)]
    assert len(list(predictor.stream(images))) == 3
