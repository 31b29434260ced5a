"""Predict a large synthetic scene in bounded memory.

    python benchmarks/scenes.py --side 30000
    python benchmarks/scenes.py --peers none --no-seams --loop-windows 200 --memory-plot memory.png

Three contenders run windows of the same scene, with the same B0 and random weights:

- segformer: `segformer.raster.predict_scene`, from the GeoTIFF to the finished Cloud-Optimized one,
- the predictor loop: `Predictor` on as many windows in memory; nothing is read, blended or written,
- rasterio and transformers: the loop that people write: read a window, upsample its logits, take
  the argmax, write it. ``--peers none`` leaves it out.

Times are seconds for a megapixel of the scene, so that the predictor loop may run on a part of the
windows (``--loop-windows``); the output says on how many. Seams: the fraction of pixels that change
between two tilings, of which the second is moved by half a stride, of this package and of the peer.
Each contender runs in a process of its own, whose peak memory is the highest of its whole life;
this package's is compared with ``--max-memory``. The scene is written in rows of 512 pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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
SAMPLE_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--side", type=int, default=30_000, help="pixels of the square scene")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--max-memory", default="2GB")
    parser.add_argument("--folder", type=Path, help="keep the scene and the results here")
    parser.add_argument(
        "--temporary-folder", type=Path, help="without --folder: where the temporary one is made"
    )
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    parser.add_argument(
        "--loop-windows", type=int, help="windows of the predictor loop; default: all"
    )
    parser.add_argument(
        "--seams", action=argparse.BooleanOptionalAction, default=True, help="predict twice"
    )
    parser.add_argument(
        "--memory-plot", type=Path, metavar="FILE", help="image of the memory of each process"
    )
    parser.add_argument("--contender", help="internal: run one contender in a subprocess")
    parser.add_argument("--moved", type=int, default=0, help="internal: move the windows")
    options = parser.parse_args()
    if options.contender:
        measure(options)
        return
    with tempfile.TemporaryDirectory(dir=options.temporary_folder) as temporary:
        options.folder = options.folder or Path(temporary)
        draw(options.folder / "scene.tif", options.side)
        harness.report("scenes", [row(options)])


def row(options: argparse.Namespace) -> harness.Row:
    names = [PLAIN, OURS] if options.peers == "none" else [PEER, PLAIN, OURS]
    half = (options.window - options.overlap) // 8 * 4
    found = {name: run_alone(options, name) for name in names}
    if options.memory_plot:
        plot_memory(options, {name: result.memory for name, result in found.items()})
    windows, used = window_count(options), loop_windows(options)
    per_megapixel = {name: result.seconds / options.side**2 * 1e6 for name, result in found.items()}
    per_megapixel[PLAIN] *= windows / used
    notes: dict[str, Any] = {
        f"megapixels/s, {name}": round(1 / seconds, 3) for name, seconds in per_megapixel.items()
    }
    notes["windows of the predictor loop"] = f"{used} of {windows} ({used / windows:.1%})"
    notes["speed of the predictor loop"] = f"{per_megapixel[PLAIN] / per_megapixel[OURS]:.1%}"
    notes["bound of the memory"] = options.max_memory
    for name in names if options.seams else ():
        if name != PLAIN:
            run_alone(options, name, half)
            fraction = changed(options, name, half)
            notes[f"pixels that another tiling changes, {name}"] = f"{fraction:.3%}"
    return harness.Row(
        f"a megapixel of {options.side} x {options.side}, B0, windows of {options.window} with "
        f"{options.overlap}",
        per_megapixel,
        OURS,
        peak_mib={name: result.peak / harness.MIB for name, result in found.items()},
        notes=notes,
    )


@dataclass
class Run:
    """What is measured of one contender.

    Attributes:
        seconds: From the opened model to the finished result.
        peak: Highest resident memory of its process, in bytes.
        memory: Seconds since its process began, and the resident bytes at that time.
    """

    seconds: float
    peak: float
    memory: list[tuple[float, int]]


def run_alone(options: argparse.Namespace, name: str, moved: int = 0) -> Run:
    """Run one contender in a process of its own, whose memory is looked at twice a second."""
    words = [sys.executable, __file__, "--contender", name, "--moved", str(moved)]
    for option in ("side", "window", "overlap", "max_memory", "folder", "loop_windows"):
        if getattr(options, option) is not None:
            words += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    memory: list[tuple[float, int]] = []
    began = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            resident = resident_memory(process.pid)
            if resident:
                memory.append((time.perf_counter() - began, resident))
            time.sleep(SAMPLE_SECONDS)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    result = json.loads(output.splitlines()[-1])
    return Run(result["seconds"], result["peak"], memory)


def resident_memory(process: int) -> int | None:
    """Resident bytes of a process; None where the system does not say."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) << 10 if found else None


def plot_memory(options: argparse.Namespace, memory: dict[str, list[tuple[float, int]]]) -> None:
    """Draw the memory of each process over time, and the bound of this package's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bound = memory_bytes(options.max_memory) / 1e9
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, samples in memory.items():
        axes.plot([t / 60 for t, _ in samples], [used / 1e9 for _, used in samples], label=name)
    axes.axhline(bound, color="black", linestyle="--", label=f"--max-memory {options.max_memory}")
    axes.set(xlabel="minutes", ylabel="resident memory, GB", ylim=(0, None))
    axes.set_title(f"{options.side} x {options.side} pixels")
    axes.legend()
    figure.savefig(options.memory_plot, dpi=150)
    plt.close(figure)


def window_count(options: argparse.Namespace) -> int:
    """Windows of the whole scene."""
    starts = window_starts(options.side, options.window, options.window - options.overlap)
    return len(starts) ** 2


def loop_windows(options: argparse.Namespace) -> int:
    """Windows that the predictor loop runs."""
    windows = window_count(options)
    return min(windows, options.loop_windows or windows)


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
    for _ in range(loop_windows(options)):
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
