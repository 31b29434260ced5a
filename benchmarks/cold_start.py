"""Measure the time of ``segformer predict one.jpg`` as a complete process, and of its parts.

    python benchmarks/cold_start.py

Compares the command with a transformers script that does the same. The floor is a process that
only imports torch. All files are already in the page cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from photograph import write_images

from segformer import SegFormer

SCRIPT = """
import sys
from PIL import Image
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor
import torch
model = SegformerForSemanticSegmentation.from_pretrained(sys.argv[1]).eval()
processor = SegformerImageProcessor.from_pretrained(sys.argv[1])
image = Image.open(sys.argv[2])
with torch.no_grad():
    outputs = model(**processor(images=image, return_tensors="pt"))
ids = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
Image.fromarray(ids.byte().numpy()).save(sys.argv[3])
"""
PARTS = """
import time
began = time.perf_counter()
def lap(name):
    global began
    print(f"{name}={time.perf_counter() - began:.2f}", end=" ")
    began = time.perf_counter()
import torch; lap("torch")
import cv2, PIL.Image, tifffile; lap("images")
from segformer import Predictor; import segformer.prediction.batch; lap("segformer")
predictor = Predictor(); lap("model")
import sys
prediction = predictor(sys.argv[1]); lap("predict")
prediction.save(sys.argv[2]); lap("save")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image = str(write_images(folder, 1)[0])
        SegFormer.from_pretrained("human-parsing-b0").save_pretrained(folder / "model")
        command = [str(Path(sys.executable).parent / "segformer"), "predict", image]
        commands = {
            "transformers, as a script": [
                *(sys.executable, "-W", "ignore", "-c", SCRIPT),
                *(str(folder / "model"), image, str(folder / "ids.png")),
            ],
            "segformer predict": [*command, "--out", str(folder / "out")],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        seconds = harness.in_turns(
            {name: lambda w=words: run(w) for name, words in commands.items()},  # type: ignore[misc]
            3,
        )
        parts = run([sys.executable, "-c", PARTS, image, str(folder / "out")])
    row = harness.Row(
        "segformer predict one.jpg, complete process",
        seconds,
        "segformer predict",
        seconds["import torch"],
        {},
        {"seconds of each part": parts.strip()},
    )
    harness.report("cold_start", [row])


def run(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
