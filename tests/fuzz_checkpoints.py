"""Damages checkpoints at random and loads them: only a `CheckpointError` may come out.

    python tests/fuzz_checkpoints.py --count 20000 --seed 1

Every format is damaged: safetensors, archives and old pickles of ``torch.save``, HDF5 files of
Keras where h5py is installed, the JSON files, and the index of shards. The test suite runs a few
hundred cases.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from segformer import SegFormer, SegFormerConfig
from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.formats import HUB, NVLABS
from segformer.checkpoints.writing import convert

KERAS_MODELS = Path(__file__).parent / "checkpoints" / "keras_models.zip"
ALLOWED = (CheckpointError, MemoryError, OSError)
CONFIG = SegFormerConfig(
    hidden_sizes=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    num_attention_heads=(1, 2, 3, 4),
    decoder_hidden_size=16,
    num_classes=3,
)
STRANGE = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "a",
        "9" * 50,
    ),
    *([], [1], [[]], [None], {}, {"a": 1}, {"height": -1, "width": 0}, "\ud800", "\x00"),
)


def write_models(folder: Path) -> list[tuple[Path, Path]]:
    """Whole models in every format: what to load, and the file of it to damage."""
    torch.manual_seed(0)
    model = SegFormer(CONFIG)
    hf = folder / "hf"
    model.save_pretrained(hf)
    cases = [(hf, path) for path in sorted(hf.iterdir())]

    tensors = HUB.from_ours(model.state_dict())
    shards = folder / "shards"
    shutil.copytree(hf, shards)
    (shards / "model.safetensors").unlink()
    names = list(tensors)
    parts = {"1.safetensors": names[::2], "2.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.torch.save_file({name: tensors[name] for name in part}, shards / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    cases += [(shards, path) for path in sorted(shards.iterdir()) if "config" not in path.name]

    archive = folder / "bin"
    shutil.copytree(hf, archive)
    (archive / "model.safetensors").unlink()
    torch.save(tensors, archive / "pytorch_model.bin")
    cases.append((archive, archive / "pytorch_model.bin"))

    content = {
        "meta": {"CLASSES": ["a", "b", "c"]},
        "state_dict": NVLABS.from_ours(model.state_dict()),
    }
    for name, archived in (("archive.pth", True), ("legacy.pth", False)):
        torch.save(content, folder / name, _use_new_zipfile_serialization=archived)
    convert(hf, folder / "described.safetensors", "nvlabs")
    convert(hf, folder / "described.pth", "nvlabs")
    files = ("archive.pth", "legacy.pth", "described.safetensors", "described.pth")
    cases += [(folder / name, folder / name) for name in files]
    return cases + (write_keras_models(folder) if find_spec("h5py") else [])


def write_keras_models(folder: Path) -> list[tuple[Path, Path]]:
    """As `write_models`, the recorded models of KerasHub and of transformers on TensorFlow."""
    with zipfile.ZipFile(KERAS_MODELS) as archive:
        archive.extractall(folder)
    preset = folder / "kerashub_segmenter"
    cases = [(preset, path) for path in sorted(preset.iterdir()) if path.name != "metadata.json"]
    files = ("kerashub_segmenter.keras", "tensorflow_segmenter/tf_model.h5")
    return cases + [(folder / name, folder / name) for name in files]


def damage(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a few places changed, mostly near the ends, where headers and directories are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size = len(data)
        reach = rng.choice((16, 256, 4096, size))
        place = rng.randrange(min(reach, size) or 1)
        if rng.random() < 0.5:
            place = max(size - 1 - place, 0)
        length = rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            data[place : place + length] = rng.choice((b"\xff", b"\x00", b"9", b"[")) * length
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif rng.random() < 0.2:
            del data[place:]
    return bytes(data)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """JSON whose values, at any depth, are replaced by strange ones, removed or renamed."""
    entries = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(entries))
        container, key = rng.choice(places) if places else (entries, None)
        if key is None:
            continue
        if rng.random() < 0.8:
            container[key] = deepcopy(rng.choice(STRANGE))
        elif isinstance(container, dict):
            container[rng.choice(("", "x", "shortest_edge", key))] = container.pop(key)
        else:
            del container[key]
    return json.dumps(entries).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from _places(value[key])


def fuzz(count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Load ``count`` damaged models.

    Returns:
        How often each type of exception came, and the tracebacks of those not allowed.
    """
    rng, outcomes, failures = random.Random(seed), Counter[str](), []
    cases = write_models(folder)
    for number in range(count):
        source, path = cases[number % len(cases)]
        whole = path.read_bytes()
        structural = path.suffix == ".json" and rng.random() < 0.7
        path.write_bytes((damage_json if structural else damage)(whole, rng))
        try:
            SegFormer.from_pretrained(source)
            outcomes["loaded"] += 1
        except ALLOWED as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            outcomes[type(error).__name__] += 1
            failures.append(f"case {number}, {path.name}:\n{traceback.format_exc()}")
        finally:
            path.write_bytes(whole)
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failures = fuzz(options.count, options.seed, Path(folder))
    print("\n".join(failures[:5]))
    print(", ".join(f"{count} {name}" for name, count in outcomes.most_common()))
    raise SystemExit(f"{len(failures)} exceptions that are not allowed" if failures else 0)


if __name__ == "__main__":
    main()
