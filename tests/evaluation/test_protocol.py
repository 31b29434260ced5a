"""The paper's protocol against a plain transcription of the original evaluation.

`Original` states the procedure of NVlabs' released code (mmcv 1.x, mmsegmentation 0.x) with OpenCV
and PyTorch alone: reading, resizing, windows, the two resizes of the logits, the average over
views, and the scores at the size of the annotation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import segformer
from conftest import draw_dataset, randomize
from segformer import ClassSet, PredictConfig, Predictor, SegFormer, SegFormerConfig
from segformer.cli import main
from segformer.data.opening import open_dataset
from segformer.evaluation.evaluate import evaluate
from segformer.evaluation.protocol import PaperPredictor, open_predictor
from segformer.prediction.windows import window_starts


@dataclass
class Original:
    """The original evaluation.

    Attributes:
        model: Pixels -> logits at a quarter of their size.
        scale: Limits of the long and the short side.
        ratios: Factors on both limits.
        flip: Also run the mirror image.
        windows: Side and stride of windows; None runs the whole image, its sides aligned to 32.
    """

    model: SegFormer
    scale: tuple[int, int]
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    windows: tuple[int, int] | None = None

    def confusion(
        self, pairs: list[tuple[Path, Path]], classes: int, *, reduce_zero_label: bool = False
    ) -> NDArray[np.int64]:
        counts = np.zeros((classes, classes), np.int64)
        for image, annotation in pairs:
            truth = cv2.imread(str(annotation), cv2.IMREAD_UNCHANGED)
            if reduce_zero_label:
                truth[truth == 0] = 255
                truth = truth - 1
                truth[truth == 254] = 255
            predicted = self.label_map(image)
            counted = truth != 255
            np.add.at(counts, (truth[counted], predicted[counted]), 1)
        return counts

    @torch.no_grad()
    def label_map(self, file: Path) -> NDArray[np.int64]:
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        total, views = torch.zeros(()), 0
        for ratio in self.ratios:
            limits = int(self.scale[0] * ratio), int(self.scale[1] * ratio)
            resized = self.resize(image, limits)
            for flip in (False, True) if self.flip else (False,):
                pixels = normalize(cv2.flip(resized, 1) if flip else resized)
                logits = self.whole(pixels) if self.windows is None else self.slide(pixels)
                logits = upsample(logits, image.shape[:2])
                probabilities = logits.softmax(1)
                total = total + (probabilities.flip(3) if flip else probabilities)
                views += 1
        return (total / views).argmax(1)[0].numpy()

    def resize(self, image: NDArray[np.uint8], limits: tuple[int, int]) -> NDArray[np.uint8]:
        h, w = image.shape[:2]
        factor = min(max(limits) / max(h, w), min(limits) / min(h, w))
        image = cv2.resize(image, (int(w * factor + 0.5), int(h * factor + 0.5)))
        if self.windows is not None:
            return image
        h, w = image.shape[:2]
        return cv2.resize(image, (int(np.ceil(w / 32)) * 32, int(np.ceil(h / 32)) * 32))

    def whole(self, pixels: Tensor) -> Tensor:
        return upsample(self.model(pixels), pixels.shape[2:])

    def slide(self, pixels: Tensor) -> Tensor:
        assert self.windows is not None
        side, stride = self.windows
        height, width = pixels.shape[2:]
        rows = max(height - side + stride - 1, 0) // stride + 1
        columns = max(width - side + stride - 1, 0) // stride + 1
        total, count = torch.zeros(()), torch.zeros(height, width)
        for row in range(rows):
            for column in range(columns):
                bottom, right = min(row * stride + side, height), min(column * stride + side, width)
                top, left = max(bottom - side, 0), max(right - side, 0)
                logits = self.whole(pixels[:, :, top:bottom, left:right])
                total = total + F.pad(logits, (left, width - right, top, height - bottom))
                count[top:bottom, left:right] += 1
        return total / count


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def normalize(image: NDArray[np.uint8]) -> Tensor:
    """BGR (H, W, 3) -> RGB (1, 3, H, W)."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    normalized = (image[:, :, ::-1].astype(np.float32) - mean) / std
    return torch.from_numpy(normalized.astype(np.float32)).permute(2, 0, 1)[None]


def random_model(config: SegFormerConfig, names: tuple[str, ...]) -> SegFormer:
    torch.manual_seed(0)
    model = SegFormer(replace(config, num_classes=len(names)), ClassSet(names))
    randomize(model)
    return model.eval()


def pairs_of(root: Path) -> list[tuple[Path, Path]]:
    images = sorted((root / "images/val").iterdir())
    return [(image, root / "masks/val" / image.name) for image in images]


def assert_same(ours: NDArray[np.int64], original: NDArray[np.int64]) -> None:
    """Equal, but for a pixel or two whose best classes differ by rounding errors."""
    assert ours.sum() == original.sum()
    assert (original.sum(0) > 0).sum() > 1, "a constant prediction would prove little"
    assert np.abs(ours - original).sum() <= max(4, 2e-5 * ours.sum())


SHAPES = ("noise", "box", "disc")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Images of 90 x 133 pixels, so that nothing is a multiple of 4 or 32 by chance."""
    return draw_dataset(tmp_path / "shapes", train=1, val=3, size=(90, 133))


@pytest.mark.parametrize(
    ("options", "original"),
    [
        ({"short_side": 64}, {"scale": (2048, 64)}),
        ({"short_side": 150}, {"scale": (2048, 150)}),
        (
            {"short_side": 64, "scales": (0.75, 0.875, 1, 1.125, 1.25), "flip": True},
            {"scale": (2048, 64), "ratios": (0.75, 0.875, 1, 1.125, 1.25), "flip": True},
        ),
        ({"window": 64, "stride": 48}, {"scale": (133, 90), "windows": (64, 48)}),
        (
            {"short_side": 100, "window": 64, "stride": 48, "batch_size": 3},
            {"scale": (2048, 100), "windows": (64, 48)},
        ),
        (
            {"window": 64, "stride": 48, "scales": (0.5, 1, 1.25), "flip": True},
            {
                "scale": (133, 90),
                "ratios": (0.5, 1, 1.25),
                "flip": True,
                "windows": (64, 48),
            },
        ),
    ],
    ids=["whole", "enlarged", "scales", "windows", "resized windows", "scales in windows"],
)
def test_same_confusion_matrix_as_the_original(
    shapes: Path,
    tiny_config: SegFormerConfig,
    options: dict[str, object],
    original: dict[str, object],
) -> None:
    model = random_model(tiny_config, SHAPES)
    ours = evaluate(open_dataset(shapes, "val"), PaperPredictor(model, device="cpu", **options))
    assert_same(ours.counts, Original(model, **original).confusion(pairs_of(shapes), 3))


def test_the_default_protocol_is_another(shapes: Path, tiny_config: SegFormerConfig) -> None:
    model = random_model(tiny_config, SHAPES)
    default = evaluate(open_dataset(shapes, "val"), Predictor(model, device="cpu", short_side=64))
    original = Original(model, (2048, 64)).confusion(pairs_of(shapes), 3)
    assert np.abs(default.counts - original).sum() > 100


def test_reduced_labels(shapes: Path, tiny_config: SegFormerConfig) -> None:
    """Masks of 0 (unlabeled), 1, 2, 3 against a model that was trained without class 0."""
    for mask in (shapes / "masks").rglob("*.png"):
        values = np.array(Image.open(mask))
        values = np.where(values == 255, 255, values + 1).astype(np.uint8)
        values[:7] = 0
        Image.fromarray(values).save(mask)
    (shapes / "dataset.yaml").unlink()
    model = random_model(tiny_config, SHAPES)
    model.preprocessing = replace(model.preprocessing, size=64, reduce_labels=True)
    ours = evaluate(open_dataset(shapes, "val"), PaperPredictor(model, device="cpu"))
    original = Original(model, (2048, 64))
    assert_same(ours.counts, original.confusion(pairs_of(shapes), 3, reduce_zero_label=True))


@pytest.mark.parametrize("size", [64, (64, 96)], ids=str)
def test_sizes_of_the_model(
    shapes: Path, tiny_config: SegFormerConfig, size: int | tuple[int, int]
) -> None:
    """Checkpoints of the Hub say 512 x 512, and were trained with a short side of 512."""
    model = random_model(tiny_config, SHAPES)
    model.preprocessing = replace(model.preprocessing, size=size)
    ours = evaluate(open_dataset(shapes, "val"), PaperPredictor(model, device="cpu"))
    assert_same(ours.counts, Original(model, (2048, 64)).confusion(pairs_of(shapes), 3))


def test_ade20k(shared_data: Path) -> None:
    """JPEG photographs, 150 classes, masks with 0 for unlabeled pixels."""
    root = shared_data / "layouts/ADEChallengeData2016"
    dataset = open_dataset(root, "val")
    model = random_model(SegFormerConfig.from_variant("b0"), dataset.classes.names)
    ours = evaluate(dataset, PaperPredictor(model, device="cpu", short_side=256))
    pairs = [
        (image, root / "annotations/validation" / f"{image.stem}.png")
        for image in sorted((root / "images/validation").glob("*.jpg"))
    ]
    original = Original(model, (2048, 256)).confusion(pairs, 150, reduce_zero_label=True)
    assert_same(ours.counts, original)


def test_windows_of_cityscapes() -> None:
    """1024 with stride 768, at the seven scales of 1024 x 2048 pixels."""
    starts = {side: window_starts(side, 1024, 768) for side in (512, 1024, 1280, 2048, 4096)}
    assert starts == {
        512: [0],
        1024: [0],
        1280: [0, 256],
        2048: [0, 768, 1024],
        4096: [0, 768, 1536, 2304, 3072],
    }
    for side in range(1, 5000, 7):
        count = max(side - 1024 + 768 - 1, 0) // 768 + 1  # the published number of windows
        published = [max(min(i * 768 + 1024, side) - 1024, 0) for i in range(count)]
        assert window_starts(side, 1024, 768) == published


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((683, 512), (704, 512)),
        ((512, 683), (512, 704)),
        ((1200, 1600), (512, 704)),
        ((300, 3000), (224, 2048)),  # the long side ends at 2048
        ((256, 256), (512, 512)),
    ],
)
def test_sizes_of_ade20k(
    tiny_model: SegFormer, image: tuple[int, int], expected: tuple[int, int]
) -> None:
    predictor = PaperPredictor(tiny_model, device="cpu", short_side=512)
    pixels = np.zeros((*image, 3), np.uint8)
    assert predictor._resize(pixels, 1.0).shape[:2] == expected


def test_what_the_protocol_refuses(tiny_model: SegFormer) -> None:
    with pytest.raises(ValueError, match="give short_side, not size"):
        PaperPredictor(tiny_model, device="cpu", size=(64, 64))
    with pytest.raises(ValueError, match="protocol must be 'default' or 'paper', not 'papers'"):
        open_predictor(tiny_model, PredictConfig(device="cpu"), "papers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="its own config and protocol"):
        segformer.evaluate("x", PaperPredictor(tiny_model, device="cpu"), protocol="paper")


def test_command(
    shapes: Path, tmp_path: Path, tiny_config: SegFormerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(tiny_config, SHAPES)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    words = ["evaluate", str(shapes), "--model", str(tmp_path / "model"), "--out", str(out)]
    assert main([*words, "--protocol", "paper", "--short-side", "64", "--device", "cpu"]) == 0
    scores = segformer.evaluate(
        shapes,
        model,
        config=PredictConfig(short_side=64, device="cpu"),
        protocol="paper",
    )
    report = (out / "report.json").read_text()
    assert '"name": "paper"' in report
    assert f"mIoU {scores.miou:.2%}" in capsys.readouterr().out
    original = Original(model, (2048, 64)).confusion(pairs_of(shapes), 3)
    assert_same(scores.confusion, original)
