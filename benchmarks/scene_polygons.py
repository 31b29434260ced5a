"""Time and memory of polygons of a large label map.

    python benchmarks/scene_polygons.py --side 30000
    python benchmarks/scene_polygons.py --side 30000 --simplify 30

A label map of smooth regions of four classes is drawn in rows of 512 pixels, and its polygons are
written in a process of its own. Its memory is looked at a hundred times a second: resident memory
without pages of files, which the system can drop.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window as Rectangle

from segformer.classes import ClassSet
from segformer.raster.polygons import write_polygons

CLASSES = ClassSet(("a", "b", "c", "d"))
GRID = 4.0
"""Standard deviation, in points of a coarse grid, of the filter that makes the regions smooth."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--side", type=int, default=4000, help="pixels of the square label map")
    parser.add_argument("--smoothness", type=float, default=30, help="about the size of details")
    parser.add_argument("--simplify", type=float, default=0, help="meters; a pixel is 10 m wide")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--polygons-of", type=Path, help="internal: write them in this process")
    options = parser.parse_args()
    if options.polygons_of:
        polygons = options.polygons_of.with_suffix(".gpkg")
        simplify = options.simplify
        print(write_polygons(options.polygons_of, polygons, classes=CLASSES, simplify=simplify))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "labels.tif"
        draw(path, options.side, options.smoothness)
        words = [sys.executable, __file__, "--polygons-of", str(path)]
        began, peak = time.perf_counter(), 0
        with subprocess.Popen(
            [*words, "--simplify", str(options.simplify)], stdout=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None:
                peak = max(peak, own_memory(process.pid))
                time.sleep(0.01)
            assert process.stdout is not None
            count = int(process.stdout.read())
        print(
            f"{options.side} x {options.side} pixels, simplify {options.simplify:g} m: {count} "
            f"polygons, {time.perf_counter() - began:.0f} s, peak {peak / 1e6:.0f} MB, file of "
            f"{path.with_suffix('.gpkg').stat().st_size / 1e6:.0f} MB"
        )


def own_memory(process: int) -> int:
    """Resident bytes of a process that are not pages of files."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def draw(path: Path, side: int, smoothness: float) -> None:
    """The class of the highest of four smooth fields."""
    rng = np.random.default_rng(0)
    step = GRID / smoothness
    points = int(side * step) + 9
    fields = [
        cv2.GaussianBlur(rng.standard_normal((points, points)).astype(np.float32), (0, 0), GRID)
        for _ in CLASSES.names
    ]
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8"}
    with rasterio.open(
        path,
        "w",
        **profile,
        crs="EPSG:32632",
        transform=from_origin(500_000, 5_300_000, 10, 10),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="deflate",
        zlevel=1,
    ) as dataset:
        for top in range(0, side, 512):
            height = min(512, side - top)
            place = np.array([[step, 0, 4], [0, step, 4 + top * step]])
            how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
            parts = [cv2.warpAffine(field, place, (side, height), flags=how) for field in fields]
            labels = np.argmax(parts, axis=0).astype(np.uint8)
            dataset.write(labels, 1, window=Rectangle(0, top, side, height))


if __name__ == "__main__":
    main()
