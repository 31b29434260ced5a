"""Record what segmentation_models.pytorch's own Segformer computes, for `test_parity.py`.

That package imports torchvision, which does not import beside a CPU build of torch, so it cannot
be a dependency of the tests. In an environment of its own:

    python -m venv smp && smp/bin/pip install torch==2.13.0 numpy tqdm safetensors huggingface_hub
    smp/bin/pip install --no-deps timm==1.0.31 segmentation_models_pytorch==0.6.0
    smp/bin/python tests/checkpoints/record_smp.py

This writes `smp_outputs.json` beside it. Weights and input are drawn by name, so that the test
makes the same ones; torchvision's names are stood in for, none of them takes part.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch

OUTPUTS = Path(__file__).with_name("smp_outputs.json")
INPUT_SHAPE = (1, 3, 64, 96)
VARIANTS = {"mit_b0": 256, "mit_b5": 256}
CLASSES = 7


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random float64 values for a tensor, from its name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape)
    if name.endswith("running_var"):
        values = 0.5 + rng.random(shape)
    elif name.endswith(("bias", "running_mean")):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    elif len(shape) > 1:
        values = values / np.sqrt(np.prod(shape[1:]))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    return torch.from_numpy(np.asarray(values))


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A fingerprint of names and shapes."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sample(values: torch.Tensor) -> list[float]:
    """Some values spread over a tensor, and its mean and mean square."""
    flat = values.flatten()
    some = flat[:: max(1, len(flat) // 24)]
    return [float(v) for v in (*some, flat.mean(), flat.square().mean())]


class _Anything(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _StandIn(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("torchvision") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def main() -> None:
    sys.meta_path.insert(0, _Finder())
    import segmentation_models_pytorch as smp
    import timm

    recorded = {
        "versions": f"segmentation_models_pytorch {smp.__version__}, timm {timm.__version__}"
    }
    pixels = draw("pixels", INPUT_SHAPE)
    for name, width in VARIANTS.items():
        model = smp.Segformer(
            name, encoder_weights=None, classes=CLASSES, decoder_segmentation_channels=width
        )
        model = model.double().eval()
        tensors = model.state_dict()
        model.load_state_dict({n: draw(n, tuple(t.shape)) for n, t in tensors.items()})
        with torch.no_grad():
            features = model.encoder(pixels)
            logits = model.segmentation_head[0](model.decoder(features))
        recorded[name] = {
            "names": digest(tensors.items()),
            "features": [sample(maps) for maps in features[2:]],
            "logits": sample(logits),
        }
    OUTPUTS.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
