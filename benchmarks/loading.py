"""Measure loading a B5 from each checkpoint format: size on disk, time, peak memory.

    python benchmarks/loading.py

Writes a SegFormer-B5 with random weights in every format, then loads each file in its own process,
and one of them with transformers too. The peak memory is the highest memory use while loading minus
the memory use before. It is also printed as a ratio to the size of the weights in float32. First
checks that all files give the same logits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from segformer import SegFormer
from segformer.checkpoints.writing import convert

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="b5")
    parser.add_argument(
        "--load", nargs=2, metavar=("CODE", "FILE"), help="internal: run in a subprocess"
    )
    options = parser.parse_args()
    if options.load is not None:
        print(json.dumps(load(*options.load)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        files = write(options.variant, Path(temporary))
        print(
            "code          file                      MiB on disk  seconds  peak MiB  peak / weights"
        )
        for code, path in files:
            words = [sys.executable, __file__, "--load", code, str(path)]
            runs = [
                json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
                for _ in range(3)
            ]
            best = min(runs, key=lambda row: row["seconds"])
            size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir()))
            peak, weights = min(row["peak"] for row in runs), best["weights"]
            print(
                f"{code:13} {path.name:24}  {size / MIB:11.1f}  {best['seconds']:7.2f}  "
                f"{peak / MIB:8.1f}  {peak / weights:14.2f}"
            )


def write(variant: str, folder: Path) -> list[tuple[str, Path]]:
    """Write the same weights in every format (OpenMMLab with its own decoder) and check them."""
    torch.manual_seed(0)
    model = SegFormer.from_variant(variant).eval()
    model.save_pretrained(folder / "hf")
    other = SegFormer(replace(model.config, decoder="openmmlab", decoder_hidden_size=256)).eval()
    other.save_pretrained(folder / "own")
    pixels = torch.randn(1, 3, 64, 64)
    files = [folder / name for name in ("hf", "nvlabs.pth", "smp", "mmseg.pth", "hf.bin")]
    for path in files[1:]:
        source = folder / ("own" if path.stem == "mmseg" else "hf")
        convert(source, path, path.stem)
        expected = other if path.stem == "mmseg" else model
        with torch.no_grad():
            assert torch.equal(SegFormer.from_pretrained(path)(pixels), expected(pixels))
    half = folder / "hf-float16"
    model.save_pretrained(half, dtype=torch.float16)
    return [("segformer", path) for path in (*files, half)] + [("transformers", files[0])]


def load(code: str, path: str) -> dict[str, float]:
    """Load a model and measure it; imports and a first load are not included."""
    whole: Any = SegFormer
    if code == "transformers":
        from transformers import SegformerForSemanticSegmentation

        whole = SegformerForSemanticSegmentation
    else:
        SegFormer.from_pretrained("human-parsing-b0")
    before = peak_bytes()
    began = time.perf_counter()
    model = whole.from_pretrained(path)
    seconds = time.perf_counter() - began
    peak = peak_bytes() - before
    weights = sum(p.numel() * 4 for p in model.parameters())
    return {"seconds": seconds, "peak": peak, "weights": weights}


def peak_bytes() -> int:
    """Return the peak memory of this process so far, in bytes. Requires Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()
