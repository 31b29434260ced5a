"""Predict a large synthetic scene in bounded memory.

    python benchmarks/scenes.py --side 30000

Three contenders run the same windows of the same scene, with the same B0 and random weights:

- segformer: `segformer.raster.predict_scene`, from the GeoTIFF to the finished Cloud-Optimized one,
- the predictor loop: `Predictor` on as many windows in memory; nothing is read, blended or written,
- rasterio and transformers: the loop that people write: read a window, upsample its logits, take
  the argmax, write it. It is left out where transformers is not installed.

Seams: the fraction of pixels that change between two tilings, of which the second is moved by half
a stride, of this package and of the loop. Each contender runs in a process of its own, whose peak
memory is the highest of its whole life; this package's is compared with ``--max-memory``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import rasterio
import torch
from rasterio.windows import Window as Rectangle

from segformer import Predictor, SegFormer
from segformer.image.scene import open_scene
from segformer.prediction.windows import window_starts
from segformer.raster.config import memory_bytes
from segformer.raster.memory import peak_memory
from segformer.raster.predicting import predict_scene

OURS, PLAIN, PEER = "segformer", "predictor loop", "rasterio + transformers"
CLASSES = 19


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--side", type=int, default=30_000, help="pixels of the square scene")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--max-memory", default="2GB")
    parser.add_argument("--folder", type=Path, help="keep the scene and the results here")
    parser.add_argument("--contender", help="internal: run one contender in a subprocess")
    parser.add_argument("--moved", type=int, default=0, help="internal: move the windows")
    options = parser.parse_args()
    if options.contender:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        draw(options.folder / "scene.tif", options.side)
        harness.report("scenes", [row(options)])


def row(options: argparse.Namespace) -> harness.Row:
    names = [PEER, PLAIN, OURS]
    half = (options.window - options.overlap) // 8 * 4
    found = {name: run_alone(options, name) for name in names}
    megapixels = options.side**2 / 1e6
    notes: dict[str, Any] = {
        f"megapixels/s, {name}": round(megapixels / found[name]["seconds"], 3) for name in names
    }
    notes["speed of the predictor loop"] = f"{found[PLAIN]['seconds'] / found[OURS]['seconds']:.1%}"
    notes["bound of the memory"] = options.max_memory
    for name in (PEER, OURS):
        run_alone(options, name, half)
        notes[f"pixels that another tiling changes, {name}"] = f"{changed(options, name, half):.3%}"
    return harness.Row(
        f"{options.side} x {options.side}, B0, windows of {options.window} with {options.overlap}",
        {name: found[name]["seconds"] for name in names},
        OURS,
        peak_mib={name: found[name]["peak"] / harness.MIB for name in names},
        notes=notes,
    )


def run_alone(options: argparse.Namespace, name: str, moved: int = 0) -> dict[str, float]:
    words = [sys.executable, __file__, "--contender", name, "--moved", str(moved)]
    for option in ("side", "window", "overlap", "max_memory", "folder"):
        words += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(options: argparse.Namespace) -> None:
    """Run one contender; print its seconds and its peak memory in bytes."""
    torch.manual_seed(0)
    model = SegFormer.from_variant("b0", num_classes=CLASSES)
    harness.like_trained(model).eval()
    run: Callable[[], None] = {
        OURS: lambda: run_ours(options, model),
        PLAIN: lambda: run_plain(options, model),
        PEER: lambda: run_peer(options, model),
    }[options.contender]
    began = time.perf_counter()
    run()
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_memory()}))


def result_path(options: argparse.Namespace, name: str, moved: int) -> Path:
    folder: Path = options.folder
    return folder / f"{name.partition(' ')[0]}_{moved}.tif"


def run_ours(options: argparse.Namespace, model: SegFormer) -> None:
    path = scene_path(options)
    with open_scene(path) as scene:
        predict_scene(
            Predictor(model),
            scene,
            options.folder,
            name=result_path(options, OURS, options.moved).stem,
            window=options.window,
            overlap=options.overlap,
            max_memory=memory_bytes(options.max_memory),
            overwrite=True,
        )


def run_plain(options: argparse.Namespace, model: SegFormer) -> None:
    predictor = Predictor(model, size=(options.window, options.window))
    with rasterio.open(options.folder / "scene.tif") as dataset:
        place = Rectangle(0, 0, options.window, options.window)
        pixels = np.ascontiguousarray(dataset.read(window=place).transpose(1, 2, 0))
    starts = window_starts(options.side, options.window, options.window - options.overlap)
    for _ in range(len(starts) ** 2):
        predictor(pixels)


def run_peer(options: argparse.Namespace, model: SegFormer) -> None:
    from transformers import SegformerForSemanticSegmentation

    folder = options.folder / "model"
    if not folder.exists():
        model.save_pretrained(folder)
    peer = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    window, side = options.window, options.side
    starts = window_starts(side, window, window - options.overlap)
    mean, std = (
        torch.tensor(values)[:, None, None] * 255
        for values in (model.preprocessing.mean, model.preprocessing.std)
    )
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8"}
    with (
        rasterio.open(scene_path(options)) as scene,
        rasterio.open(
            result_path(options, PEER, options.moved),
            "w",
            **profile,
            crs=scene.crs,
            transform=scene.transform,
            tiled=True,
            compress="deflate",
        ) as result,
        torch.inference_mode(),
    ):
        for top in starts:
            for left in starts:
                place = Rectangle(left, top, window, window)
                pixels = torch.from_numpy(scene.read(window=place)).float()
                logits = peer(((pixels - mean) / std)[None]).logits
                full = torch.nn.functional.interpolate(logits, (window, window), mode="bilinear")
                result.write(full.argmax(1)[0].byte().numpy(), 1, window=place)


def scene_path(options: argparse.Namespace) -> Path:
    """The scene; a VRT with a margin at the top and left moves the windows over it."""
    path: Path = options.folder / "scene.tif"
    if not options.moved:
        return path
    moved = options.folder / f"moved_{options.moved}.vrt"
    side, inside = options.side, options.side - options.moved
    sources = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">scene.tif</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SrcRect xOff="0" yOff="0" xSize="{inside}" ySize="{inside}"/>'
        f'<DstRect xOff="{options.moved}" yOff="{options.moved}" '
        f'xSize="{inside}" ySize="{inside}"/></SimpleSource></VRTRasterBand>'
        for band in (1, 2, 3)
    )
    moved.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32632</SRS>'
        f"<GeoTransform>0, 10, 0, 0, 0, -10</GeoTransform>{sources}</VRTDataset>"
    )
    return moved


def changed(options: argparse.Namespace, name: str, moved: int) -> float:
    """Fraction of pixels, away from the scene's borders, whose class another tiling changes."""
    side, border = options.side, options.window
    different = total = 0
    with (
        rasterio.open(result_path(options, name, 0)) as first,
        rasterio.open(result_path(options, name, moved)) as second,
    ):
        for top in range(border, side - border - moved, 512):
            height = min(512, side - border - moved - top)
            width = side - 2 * border - moved
            a = first.read(1, window=Rectangle(border, top, width, height))
            b = second.read(1, window=Rectangle(border + moved, top + moved, width, height))
            different += int((a != b).sum())
            total += a.size
    return different / max(1, total)


def draw(path: Path, side: int) -> None:
    """Fields, streets and noise, written row of tiles by row of tiles."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        path,
        "w",
        **profile,
        crs="EPSG:32632",
        transform=rasterio.transform.from_origin(500_000, 5_300_000, 10, 10),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="deflate",
        zlevel=1,
        BIGTIFF="IF_SAFER",
    ) as dataset:
        fields = rng.integers(30, 220, (3, side // 100 + 2, side // 100 + 2), dtype=np.uint8)
        columns = np.arange(side)
        for top in range(0, side, 512):
            rows = np.arange(top, min(top + 512, side))
            pixels = fields[:, rows[:, None] // 100, columns // 100]
            pixels = pixels + rng.integers(0, 30, pixels.shape, dtype=np.uint8)
            pixels[:, (rows % 700 < 12)[:, None] | (columns % 900 < 12)] = 90
            dataset.write(pixels, window=Rectangle(0, top, side, len(rows)))


if __name__ == "__main__":
    main()
