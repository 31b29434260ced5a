"""Measure prediction on a Ray cluster: throughput, overhead, start, and lists of a million names.

    python benchmarks/cluster.py --images 200      # a plain loop, then 1 and 2 workers
    python benchmarks/cluster.py --names 1000000   # the list and the driver alone
    python benchmarks/cluster.py --scene 4096      # one scene of so many pixels high and wide

Each worker has one thread, and so has the plain loop. The rate of the workers is measured from the
first unit that is done, so that it does not contain the start, which is given on its own. Scenes
are timed with workers that have started, and their label maps are compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch

from segformer import Predictor
from segformer.cluster.manifest import Unit, find_parts, remaining_units, write_parts
from segformer.cluster.options import ClusterOptions
from segformer.cluster.pool import Pool
from segformer.cluster.prediction import ClusterResult, predict_on_cluster
from segformer.cluster.scene_work import SceneRequest
from segformer.cluster.scenes import SceneWorkers
from segformer.cluster.work import Outputs, UnitResult
from segformer.prediction.batch import predict_files
from segformer.prediction.config import PredictConfig
from segformer.prediction.listing import find_images
from segformer.raster.predicting import predict_scene


def main() -> None:
    parser = argparse.ArgumentParser(description="Prediction on a Ray cluster of this machine")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--names", type=int, help="measure the list and the driver instead")
    parser.add_argument("--scene", type=int, help="measure a scene of this side in pixels instead")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.scene:
            rows = scene(options, folder)
        else:
            rows = names(options.names, folder) if options.names else work(options, folder)
        for row in rows:
            print(json.dumps(row), flush=True)


def work(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    from photograph import write_images

    album = folder / "album"
    album.mkdir()
    (first, *_) = write_images(folder, 1)
    for number in range(options.images):
        shutil.copy(first, album / f"{number:06}.jpg")
    torch.set_num_threads(1)
    config = PredictConfig(device="cpu")
    predictor = Predictor(None, config)
    predictor(first)
    for turn in range(2):
        began = time.perf_counter()
        predict_files(predictor, find_images([album]), folder / f"loop{turn}", overlay=False)
        yield {"loop": turn, "images_per_s": options.images / (time.perf_counter() - began)}
        for workers in options.workers:
            yield cluster(predictor.model, album, folder / f"out{turn}-{workers}", workers, config)


def cluster(
    model: Any, album: Path, out: Path, workers: int, config: PredictConfig
) -> dict[str, Any]:
    first: list[float] = []

    def note(result: ClusterResult) -> None:
        first.extend([time.perf_counter(), result.done])

    began = time.perf_counter()
    result = predict_on_cluster(
        model,
        model.classes.names,
        [str(album)],
        Outputs(str(out), overlay=False, confidence=False, multilabel=False),
        config,
        ClusterOptions("local", workers=workers, images_per_unit=10),
        on_progress=note,
    )
    rate = (first[-1] - first[1]) / (first[-2] - first[0])
    return {
        "workers": workers,
        "images_per_s": rate,
        "first_unit_s": first[0] - began,
        "done": result.done,
    }


def scene(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    import numpy as np
    import rasterio

    side = options.scene
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (3, side // 64, side // 64), np.uint8)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 500_000, 0, -1, 5_300_000)}
    with rasterio.open(folder / "scene.tif", "w", tiled=True, **profile, **place) as dataset:
        dataset.write(small.repeat(64, 1).repeat(64, 2)[:, :side, :side])
    torch.set_num_threads(1)
    predictor = Predictor(None, device="cpu")
    request = SceneRequest(str(folder / "scene.tif"))

    def seconds(name: str, workers: SceneWorkers | None = None) -> tuple[float, bytes]:
        with request.open() as opened:
            compute = None if workers is None else workers.computer(request, opened)
            began = time.perf_counter()
            result = predict_scene(predictor, opened, folder / name, compute=compute)
            return time.perf_counter() - began, result.label_map.read_bytes()

    for count in options.workers:
        cluster = ClusterOptions("local", workers=count)
        with SceneWorkers(predictor.model, predictor.config, cluster) as workers:
            seconds(f"start{count}", workers)
            for turn in range(2):
                plain, expected = seconds(f"plain{count}-{turn}")
                found, label_map = seconds(f"many{count}-{turn}", workers)
                assert label_map == expected
                yield {"workers": count, "plain_s": plain, "s": found, "ratio": found / plain}


class Nothing:
    """A worker that takes units and does nothing."""

    def ready(self) -> None:
        """Return at once."""

    def run(self, unit: Unit) -> UnitResult:
        """Say that all images are done."""
        return UnitResult(unit, done=len(unit))


def names(count: int, folder: Path) -> Iterator[dict[str, Any]]:
    out = str(folder / "out")
    images = ((f"s3://bucket/photos/{i:09}.jpg", f"{i:09}") for i in range(count))
    before = _peak_mib()
    began = time.perf_counter()
    first = 0.0
    for _ in write_parts(images, out):
        first = first or time.perf_counter() - began
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in Path(out).rglob("*.parquet"))
    yield {
        "names": count,
        "written_per_s": round(count / seconds),
        "first_part_s": round(first, 2),
        "bytes_per_name": round(size / count, 1),
        "added_peak_mib": round(_peak_mib() - before, 1),
    }
    before, began = _peak_mib(), time.perf_counter()
    units = [unit for part in find_parts(out) for unit in remaining_units(part, (), 1000)]
    yield {"units": len(units), "planned_s": round(time.perf_counter() - began, 3)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    actor = ray.remote(Nothing).options(num_cpus=1)
    began = time.perf_counter()
    with Pool[Unit, UnitResult](actor.remote, 2) as pool:
        done = [result.done for result in pool.results(iter(units), lambda *_: None)]
    seconds = time.perf_counter() - began
    ray.shutdown()
    assert sum(done) == count
    yield {
        "units_per_s": round(len(units) / seconds, 1),
        "seconds": round(seconds, 2),
        "added_peak_mib": round(_peak_mib() - before, 1),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
