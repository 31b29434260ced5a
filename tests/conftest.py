"""What several rooms' tests need: small models, a small data set, the real data where present."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from segformer import SegFormer, SegFormerConfig
from segformer.config import VARIANTS

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"

TINY = SegFormerConfig(
    hidden_sizes=(8, 16, 24, 32),
    depths=(1, 2, 1, 1),
    num_attention_heads=(1, 2, 3, 4),
    decoder_hidden_size=16,
    num_classes=5,
)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, where nothing has been imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random, not default, biases, norms and BatchNorm statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("bias", "running_mean")):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * torch.randn(tensor.shape, generator=generator))
            elif name.endswith("classifier.weight"):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture
def tiny_config() -> SegFormerConfig:
    return TINY


@pytest.fixture
def tiny_model() -> SegFormer:
    torch.manual_seed(0)
    return randomize(SegFormer(TINY)).eval()


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real data is not beside this checkout")
    return SHARED_DATA


@pytest.fixture
def tiny_variant(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variant for quick trainings."""
    row = {
        "hidden_sizes": (8, 16, 24, 32),
        "depths": (1, 1, 1, 1),
        "num_attention_heads": (1, 2, 3, 4),
    }
    monkeypatch.setitem(VARIANTS, "tiny", {**row, "decoder_hidden_size": 16})
    return "tiny"


def draw_dataset(
    root: Path, *, train: int = 6, val: int = 2, size: tuple[int, int] = (48, 64)
) -> Path:
    """Rectangles (class 1) and discs (class 2) on noise (class 0), a chunk of 255 below."""
    rng = np.random.default_rng(0)
    height, width = size
    y, x = np.mgrid[:height, :width]
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            image = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
            mask = np.zeros((height, width), np.uint8)
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            box = np.s_[top : top + height // 3, left : left + width // 3]
            image[box], mask[box] = (200, 60, 60), 1
            center_y, center_x = rng.integers(height // 2, height), rng.integers(0, width)
            disc = (y - center_y) ** 2 + (x - center_x) ** 2 < (height // 5) ** 2
            image[disc], mask[disc] = (60, 60, 220), 2
            mask[-3:] = 255
            for kind, array in (("images", image), ("masks", mask)):
                path = root / kind / split / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    description = {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "masks_dir": "masks",
        "ignore_index": 255,
        "names": {0: "noise", 1: "box", 2: "disc"},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    return root


@pytest.fixture
def small_dataset(tmp_path: Path) -> Path:
    return draw_dataset(tmp_path / "shapes")


@pytest.fixture
def photograph() -> np.ndarray:
    """(512, 512, 3) uint8: scikit-image's astronaut."""
    return pytest.importorskip("skimage.data").astronaut()
