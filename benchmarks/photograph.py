"""Measure the time from a JPEG file to its label map, and from 1,000 JPEG files to PNG files.

    python benchmarks/photograph.py [--images 1000] [--neighbor] [--quota CPUS]

The files are JPEGs of 1280 x 720 pixels. The model is B0 with 150 classes and random weights, in
float32 at 512 x 512. For one file, compares ``Predictor`` with the code in the documentation of
transformers (Pillow, image processor, model, post_process_semantic_segmentation). For many files,
compares the function behind ``segformer predict`` with a loop over the same transformers code. The
label maps are compared first. The floor is the number of operations of the folded model divided by
the speed of a large matrix product, plus the measured time of decoding and encoding.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import transformers
from forward import peer
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from segformer import Predictor, SegFormer
from segformer.image import read_image
from segformer.prediction.batch import predict_files
from segformer.prediction.listing import find_images

PEER, OURS = "transformers", "segformer"
Run = Callable[[], NDArray[np.integer]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    harness.add_load_options(parser)
    parser.add_argument(harness.PEAK_OF, help="internal: run in a subprocess")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = write_images(Path(folder), 1)[0]
        found = contenders(path)
        if options.peak_of:
            harness.print_peak(found[options.peak_of])
            return
        with harness.load(options.neighbor, options.quota):
            rows = [one(path, found)]
            if options.images:
                rows.append(many(write_images(Path(folder) / "many", options.images)))
    harness.report(harness.loaded_name("photograph", options.neighbor, options.quota), rows)


def write_images(folder: Path, count: int) -> list[Path]:
    """Write different, enlarged crops of one photograph as JPEGs of 1280 x 720 pixels."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:04}.jpg" for i in range(count)]
    photograph = Image.fromarray(data.astronaut())
    for i, path in enumerate(paths):
        left, top = i * 7 % 112, i * 13 % 287
        crop = photograph.crop((left, top, left + 400, top + 225))
        crop.resize((1280, 720), Image.Resampling.LANCZOS).save(path, quality=92)
    return paths


def build() -> tuple[SegFormer, Any, Any]:
    torch.manual_seed(0)
    model = harness.like_trained(SegFormer.from_variant("b0")).eval()
    assert isinstance(model, SegFormer)
    model.preprocessing = replace(model.preprocessing, size=(512, 512))
    return model, peer(model), transformers.SegformerImageProcessor()


def contenders(path: Path) -> dict[str, Run]:
    model, theirs, processor = build()
    predictor = Predictor(model)
    return {
        PEER: partial(documented, theirs, processor, path),
        OURS: lambda: predictor(path).label_map,
    }


def documented(model: Any, processor: Any, path: Path) -> NDArray[np.integer]:
    image = Image.open(path)
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    size = [image.size[::-1]]
    return processor.post_process_semantic_segmentation(outputs, target_sizes=size)[0].numpy()


def one(path: Path, found: dict[str, Run]) -> harness.Row:
    label_maps = {name: run() for name, run in found.items()}
    same = float((label_maps[PEER] == label_maps[OURS]).mean())
    assert same > 0.995, same
    return harness.Row(
        "1280 x 720 JPEG to label map, b0 float32",
        harness.in_turns(found, 5),
        OURS,
        floor(path, label_maps[OURS], written=False),
        harness.peaks([PEER, OURS], "--images", "0"),
        {"pixels with the same class": f"{same:.4%}"},
    )


def floor(path: Path, label_map: NDArray[np.integer], written: bool) -> float:
    """Return a lower bound of the time for one image, in seconds."""
    folded = SegFormer.from_variant("b0").fold()
    with torch.no_grad():
        work = harness.operations(lambda: folded(torch.zeros(1, 3, 512, 512)))
    parts: dict[str, Callable[[], Any]] = {"decode": lambda: read_image(path, 3)}
    if written:
        parts["encode"] = lambda: Image.fromarray(label_map.astype(np.uint8)).save(
            io.BytesIO(), "png"
        )
    rate = harness.product_rate(torch.float32)
    return work / rate + sum(harness.in_turns(parts, 3).values())


def many(paths: list[Path]) -> harness.Row:
    """Run each contender once; with this many images, alternating runs are not needed."""
    model, theirs, processor = build()
    predictor = Predictor(model)
    few = paths[: max(20, len(paths) // 10)]
    seconds, cores = {}, {}
    with tempfile.TemporaryDirectory() as out:

        def peer_files() -> None:
            for path in few:
                ids = documented(theirs, processor, path).astype(np.uint8)
                Image.fromarray(ids).save(Path(out) / f"{path.stem}.png")

        def own_files() -> None:
            result = predict_files(
                predictor, find_images([paths[0].parent]), out, overlay=False, overwrite=True
            )
            assert len(result.images) == len(paths)

        for name, run, count in ((PEER, peer_files, len(few)), (OURS, own_files, len(paths))):
            began, busy = time.perf_counter(), busy_seconds()
            run()
            elapsed = time.perf_counter() - began
            seconds[name] = elapsed * len(paths) / count
            cores[name] = round((busy_seconds() - busy) / elapsed, 2)
        label_map = np.asarray(Image.open(Path(out) / f"{paths[0].stem}.png"))
    least = floor(paths[0], label_map, written=True)
    return harness.Row(
        f"{len(paths)} JPEGs to PNGs of class ids, b0 float32",
        seconds,
        OURS,
        least * len(paths),
        {},
        {
            "cores busy": cores,
            "images per second": {n: round(len(paths) / s, 2) for n, s in seconds.items()},
            "transformers": f"measured on {len(few)} images, scaled to {len(paths)}",
        },
    )


def busy_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
