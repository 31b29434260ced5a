"""Scenes to label maps: windows, blending, no-data, memory, resuming, output files."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("rasterio", reason="scenes need the extra geo")
pytest.importorskip("pyogrio", reason="areas need the extra geo")

import rasterio
from rasterio.transform import from_origin

from scene_samples import UTM, draw_pixels, write_scene
from segformer import Predictor, SegFormer
from segformer.files import OutputExists
from segformer.image import Preprocessing, UnreadableImage, WrongChannels, read_image
from segformer.image.scene import Scene, open_scene
from segformer.image.scene_grid import Window
from segformer.prediction.windows import window_starts
from segformer.raster import geotiff, memory, predicting
from segformer.raster.journal import Journal
from segformer.raster.predicting import ScenePrediction, predict_scene

Draw = Callable[..., Path]


def labels(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1))


def predict(model: SegFormer, path: Any, out: Path, **options: Any) -> ScenePrediction:
    """Predict with windows of 64 pixels that overlap by 16; options of `open_scene` too."""
    names = ("bands", "resolution", "area", "where", "nodata", "scaled")
    opening = {name: options.pop(name) for name in names if name in options}
    config = {
        name: options.pop(name)
        for name in ("confidence", "flip", "batch_size", "value_range")
        if name in options
    }
    settings = {"window": 64, "overlap": 16, "max_memory": 10**12, **options}
    with open_scene(path, **opening) as scene:
        return predict_scene(Predictor(model, device="cpu", **config), scene, out, **settings)


def use_small_blocks(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    def plan(*_: Any) -> memory.MemoryPlan:
        return memory.MemoryPlan((rows, columns), 1 << 24, 0)

    monkeypatch.setattr(predicting, "plan_memory", plan)


def reference(model: SegFormer, image: np.ndarray, window: int, overlap: int) -> np.ndarray:
    """(H, W) class ids by the plain formulas in float64: whole logits, weighted and upsampled."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy(model.preprocessing.normalize(image)).permute(2, 0, 1)
    total = torch.zeros(model.config.num_classes, height // 4, width // 4, dtype=torch.float64)
    weights = torch.zeros(height // 4, width // 4, dtype=torch.float64)
    inward = torch.arange(window // 4, dtype=torch.float64) + 0.5
    ramp = (torch.minimum(inward, inward.flip(0)) * 4 / overlap).clamp(max=1)
    with torch.no_grad():
        for top in window_starts(height, window, window - overlap):
            for left in window_starts(width, window, window - overlap):
                logits = model(pixels[None, :, top : top + window, left : left + window])[0]
                here = np.s_[..., top // 4 : (top + window) // 4, left // 4 : (left + window) // 4]
                total[here] += logits.double() * ramp[:, None] * ramp
                weights[here[1:]] += ramp[:, None] * ramp
    full = F.interpolate((total / weights)[None], size=(height, width), mode="bilinear")[0]
    return full.argmax(0).numpy()


def test_the_label_map_is_that_of_the_plain_formulas(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    path = draw_scene(200, 232)
    found = labels(predict(scene_model, path, tmp_path / "out").label_map)
    expected = reference(scene_model, read_image(path), 64, 16)
    assert len(np.unique(expected)) > 2
    assert (found != expected).mean() < 1e-4  # float32 against float64


def test_a_scene_of_one_window_is_what_the_predictor_gives(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    path = draw_scene(60, 64)
    plain = Predictor(scene_model, window=64, device="cpu")(path)
    assert (labels(predict(scene_model, path, tmp_path / "out").label_map) == plain.label_map).all()


@pytest.mark.parametrize("cells", [(1, 1), (2, 3), (9, 9)])
def test_blocks_do_not_change_the_result(
    scene_model: SegFormer,
    draw_scene: Draw,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cells: tuple[int, int],
) -> None:
    path = draw_scene(203, 258)
    expected = predict(scene_model, path, tmp_path / "a", confidence=True)
    use_small_blocks(monkeypatch, *cells)
    found = predict(scene_model, path, tmp_path / "b", confidence=True)
    assert (labels(found.label_map) == labels(expected.label_map)).all()
    assert found.confidence is not None and expected.confidence is not None
    assert (labels(found.confidence) == labels(expected.confidence)).all()
    assert labels(found.confidence).min() > 0


def test_a_part_is_predicted_as_in_the_whole_scene(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    path = draw_scene(203, 258)
    whole = labels(predict(scene_model, path, tmp_path / "whole").label_map)
    result = predict(scene_model, path, tmp_path / "part", where=(37, 51, 99, 106))
    assert (labels(result.label_map) == whole[51:157, 37:136]).all()
    with rasterio.open(result.label_map) as dataset:
        assert dataset.transform[2] == 500_370
        assert dataset.crs.to_string() == UTM


def test_an_area_is_predicted_as_in_the_whole_scene(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    path = draw_scene(203, 258)
    whole = labels(predict(scene_model, path, tmp_path / "whole").label_map)
    x, y = 500_000, 5_300_000
    ring = [(x + 400, y - 300), (x + 2000, y - 900), (x + 900, y - 1900), (x + 400, y - 300)]
    area = tmp_path / "field.geojson"
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    shape = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": shape}
    area.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    result = predict(scene_model, path, tmp_path / "part", area=area)
    with open_scene(path, area=area) as scene:
        inside = scene.read(scene.grid.window)[1]
        window = scene.window
    found = labels(result.label_map)
    assert (found[inside] == whole[window.slices][inside]).all()
    assert (found[~inside] == 255).all()
    assert result.nodata_fraction == pytest.approx((~inside).mean())


def test_two_tilings_agree_away_from_the_windows_borders(
    draw_scene: Draw, tmp_path: Path, scene_model: SegFormer
) -> None:
    """With a model that sees 3 x 3 tokens only, the tiling cannot be seen at all."""

    class Local:
        device = "cpu"

        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            tokens = F.avg_pool2d(torch.from_numpy(pixels), 4)
            mixed = F.avg_pool2d(tokens, 3, 1, 1, count_include_pad=False)
            return torch.cat([mixed, -mixed[:, :2]], 1).numpy()

    path = draw_scene(232, 300)
    maps = []
    for window, overlap in ((64, 16), (96, 32), (128, 12)):
        predictor = Predictor(scene_model, device="cpu")
        predictor.runtime = Local()  # type: ignore[assignment]
        with open_scene(path) as scene:
            settings = {"window": window, "overlap": overlap, "max_memory": 10**12}
            result = predict_scene(predictor, scene, tmp_path / f"{window}", **settings)
        maps.append(labels(result.label_map))
    for other in maps[1:]:
        # Within the blend, a window's border has little but not no weight
        assert (maps[0] != other).mean() < 0.05
        assert (maps[0][:48, :48] == other[:48, :48]).all()


def test_no_data_in_is_no_data_out_and_costs_nothing(
    scene_model: SegFormer, tmp_path: Path
) -> None:
    pixels = draw_pixels(200, 256)
    pixels[:, 100:] = 0
    pixels[20:30, 20:30] = 0
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=0)
    predictor = Predictor(scene_model, device="cpu")
    seen: list[np.ndarray] = []
    run = predictor.runtime
    predictor.runtime = lambda batch: (seen.append(batch), run(batch))[1]  # type: ignore[assignment]
    predictor.runtime.device = "cpu"  # type: ignore[attr-defined]
    with open_scene(path) as scene:
        settings = {"window": 64, "overlap": 16, "max_memory": 10**12}
        result = predict_scene(predictor, scene, tmp_path / "out", **settings)
    found = labels(result.label_map)
    missing = (pixels == 0).all(2)
    assert (found[missing] == 255).all()
    assert (found[~missing] < 5).all()
    starts = window_starts(256, 64, 48)
    with_data = sum(start < 100 for start in starts)
    assert len(seen) - 1 == with_data * len(window_starts(200, 64, 48))  # one is to measure memory
    first = seen[1][0].transpose(1, 2, 0)
    assert (first[20:30, 20:30] == 0).all()  # the mean
    assert result.nodata_fraction == pytest.approx(missing.mean())
    assert sum(result.class_fractions.values()) == pytest.approx(1)


def test_a_scene_without_any_data(scene_model: SegFormer, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", np.zeros((90, 90, 3), np.uint8), nodata=0)
    result = predict(scene_model, path, tmp_path / "out", confidence=True)
    assert (labels(result.label_map) == 255).all()
    assert result.class_fractions == {}


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_values_are_scaled_as_in_images_that_are_read_whole(
    scene_model: SegFormer, tmp_path: Path, dtype: type
) -> None:
    pixels = draw_pixels(64, 64).astype(np.float64) / 255
    pixels = (pixels * 65535 if dtype is np.uint16 else pixels).astype(dtype)
    path = write_scene(tmp_path / "s.tif", pixels)
    plain = Predictor(scene_model, window=64, device="cpu")(path)
    assert (labels(predict(scene_model, path, tmp_path / "out").label_map) == plain.label_map).all()


def test_many_bands_are_normalized_as_in_images_that_are_read_whole(
    scene_model: SegFormer, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = SegFormer(replace(scene_model.config, in_channels=6)).eval()
    model.preprocessing = Preprocessing(
        size=(64, 64), mean=(900.0,) * 6, std=(300.0,) * 6, rescale=1.0
    )
    pixels = draw_pixels(64, 60, 6).astype(np.int16) * 9
    pixels[5, 5, 2] = pixels[40:50, 10] = -99
    path = write_scene(tmp_path / "s.tif", pixels, nodata=-99)
    plain = Predictor(model, window=64, device="cpu")(path).label_map
    found = labels(predict(model, path, tmp_path / "out").label_map)
    missing = (pixels == -99).any(2)
    assert (found[~missing] == plain[~missing]).all()
    assert (found[missing] == 255).all()


def test_bands_and_own_statistics(scene_model: SegFormer, tmp_path: Path) -> None:
    pixels = draw_pixels(64, 64, 4)
    path = write_scene(tmp_path / "s.tif", pixels)
    with pytest.raises(WrongChannels, match="takes 3 channels, this has 4 bands"):
        predict(scene_model, path, tmp_path / "out")
    found = predict(scene_model, path, tmp_path / "chosen", bands=[3, 2, 1])
    plain = Predictor(scene_model, window=64, device="cpu")(pixels[:, :, [2, 1, 0]])
    assert (labels(found.label_map) == plain.label_map).all()
    found = predict(scene_model, path, tmp_path / "own", bands=[3, 2, 1], own_statistics=True)
    chosen = pixels[:, :, [2, 1, 0]].astype(np.float64)
    means, stds = chosen.mean((0, 1)), chosen.std((0, 1))
    scene_model.preprocessing = replace(
        scene_model.preprocessing, mean=tuple(means), std=tuple(stds), rescale=1.0
    )
    plain = Predictor(scene_model, window=64, device="cpu")(chosen)
    assert (labels(found.label_map) == plain.label_map).mean() > 0.999


def test_mirrored_views_are_averaged(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    path = draw_scene(64, 64)
    plain = Predictor(scene_model, window=64, flip=True, device="cpu")(path)
    found = predict(scene_model, path, tmp_path / "out", flip=True)
    assert (labels(found.label_map) == plain.label_map).mean() > 0.999


def test_a_binary_model(scene_model: SegFormer, draw_scene: Draw, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = SegFormer(replace(scene_model.config, num_classes=1)).eval()
    model.preprocessing = scene_model.preprocessing
    path = draw_scene(64, 64)
    plain = Predictor(model, window=64, device="cpu")(path)
    found = predict(model, path, tmp_path / "out")
    assert (labels(found.label_map) == plain.label_map).all()


def test_the_result_is_what_gis_programs_read(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    path = draw_scene(700, 1100)
    result = predict(scene_model, path, tmp_path / "out", window=256, confidence=True)
    with rasterio.open(result.label_map) as dataset:
        assert dataset.driver == "GTiff"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.crs.to_string() == UTM
        assert dataset.transform[:6] == (10, 0, 500_000, 0, -10, 5_300_000)
        assert (dataset.dtypes, dataset.nodata) == (("uint8",), 255)
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.overviews(1) == [2, 4]
        assert dataset.descriptions == ("class",)
        colors = dataset.colormap(1)
        classes = scene_model.classes
        assert [colors[i][:3] for i in range(5)] == list(classes.palette)
        assert json.loads(dataset.tags()["CLASS_NAMES"]) == list(classes.names)
        full = dataset.read(1)
        small = dataset.read(1, out_shape=(350, 550))
        assert set(np.unique(small)) <= set(np.unique(full))
        # The most frequent value, where it is clear which one it is
        cells = full.reshape(350, 2, 550, 2).transpose(0, 2, 1, 3).reshape(350, 550, 4)
        same = (cells == cells[..., :1]).all(2)
        assert (small[same] == cells[..., 0][same]).all()
    sidecar = ElementTree.parse(f"{result.label_map}.aux.xml")
    names = [category.text for category in sidecar.iter("Category")]
    assert names == list(classes.names)
    style = ElementTree.parse(result.label_map.with_suffix(".qml"))
    entries = [entry.attrib for entry in style.iter("paletteEntry")]
    assert [entry["label"] for entry in entries] == list(classes.names)
    assert [int(entry["value"]) for entry in entries] == list(range(5))
    assert [entry["color"] for entry in entries] == [
        "#{:02x}{:02x}{:02x}".format(*color) for color in classes.palette
    ]
    assert result.confidence is not None
    with rasterio.open(result.confidence) as dataset:
        assert dataset.scales == (pytest.approx(1 / 255),)
        assert dataset.nodata == 0
    written = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert written == ["scene.qml", "scene.tif", "scene.tif.aux.xml", "scene_confidence.tif"]
    assert sorted(file.name for file in result.files) == written


@pytest.mark.parametrize("name", ["scene.tif", "scene.tif.aux.xml", "scene.qml"])
def test_no_file_of_others_is_replaced(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("of somebody")
    with pytest.raises(OutputExists, match=re.escape(name)):
        predict(scene_model, draw_scene(90, 90), out)
    assert [file.name for file in out.iterdir()] == [name]
    assert (out / name).read_text() == "of somebody"


def test_more_than_255_classes(scene_model: SegFormer, draw_scene: Draw, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SegFormer(replace(scene_model.config, num_classes=300)).eval()
    model.preprocessing = scene_model.preprocessing
    path = draw_scene(64, 64)
    result = predict(model, path, tmp_path / "out")
    with rasterio.open(result.label_map) as dataset:
        assert (dataset.dtypes, dataset.nodata) == (("uint16",), 65535)
        plain = Predictor(model, window=64, device="cpu")(path)
        assert (dataset.read(1) == plain.label_map).all()


def test_an_interrupted_run_is_continued_at_the_last_block(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw_scene(203, 258)
    expected = labels(predict(scene_model, path, tmp_path / "whole").label_map)
    use_small_blocks(monkeypatch, 1, 2)
    out = tmp_path / "out"
    added: list[Window] = []
    add = Journal.add

    def fail_at_the_fifth(journal: Journal, result: Any) -> None:
        if len(added) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(journal, result)
        added.append(result.pixels)

    monkeypatch.setattr(Journal, "add", fail_at_the_fifth)
    with pytest.raises(OSError, match=r"No space left on device; what is done is kept in .*same"):
        predict(scene_model, path, out)
    assert [file.name for file in out.iterdir()] == ["scene.unfinished"]

    first = set(added)
    monkeypatch.setattr(
        Journal,
        "add",
        lambda self, result: (add(self, result), added.append(result.pixels))[0],
    )
    with pytest.raises(OutputExists, match=r"another overlap \(16, now 32\)"):
        predict(scene_model, path, out, overlap=32)
    result = predict(scene_model, path, out)
    assert len(added) == len(set(added))
    assert set(added) > first
    assert (labels(result.label_map) == expected).all()
    assert not (out / "scene.unfinished").exists()
    with pytest.raises(OutputExists, match=r"scene\.tif.* already exist"):
        predict(scene_model, path, out)


def test_another_memory_bound_continues_too(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw_scene(300, 258)
    expected = labels(predict(scene_model, path, tmp_path / "whole").label_map)
    use_small_blocks(monkeypatch, 1, 9)
    counts: list[int] = []

    def stop(done: int, total: int) -> None:
        counts.append(done)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(scene_model, path, tmp_path / "out", on_pixels=stop)
    use_small_blocks(monkeypatch, 1, 2)
    again: list[int] = []
    result = predict(
        scene_model, path, tmp_path / "out", on_pixels=lambda done, _: again.append(done)
    )
    assert (labels(result.label_map) == expected).all()
    assert again[-1] == 300 * 258


def test_a_broken_file_says_how_to_continue(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw_scene(203, 258)
    use_small_blocks(monkeypatch, 1, 2)
    read = Scene.read
    reads: list[Window] = []

    def break_later(scene: Scene, window: Window, **options: Any) -> Any:
        reads.append(window)
        if len(reads) > 3:
            raise UnreadableImage("scene.tif: cannot be read")
        return read(scene, window, **options)

    monkeypatch.setattr(Scene, "read", break_later)
    with pytest.raises(UnreadableImage, match=r"cannot be read; what is done is kept in .*"):
        predict(scene_model, path, tmp_path / "out")
    monkeypatch.setattr(Scene, "read", read)
    predict(scene_model, path, tmp_path / "out")


def test_too_little_memory_is_refused(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"--max-memory 0\.05GB is too little: .* take"):
        predict(scene_model, draw_scene(90, 90), tmp_path / "out", max_memory=50_000_000)


def test_all_reading_is_within_the_bound_of_the_cache(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is that of the finished label map; GDAL's own bound is a part of the machine's memory."""
    seen: list[object] = []
    read_back = geotiff._read_back

    def watch(*arguments: Any) -> Any:
        seen.append(rasterio.env.getenv().get("GDAL_CACHEMAX"))
        return read_back(*arguments)

    monkeypatch.setattr(geotiff, "_read_back", watch)
    predict(scene_model, draw_scene(90, 90), tmp_path / "out", max_memory=2 * 10**12)
    assert seen == [1 << 28]


def test_options_that_scenes_do_not_have(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path
) -> None:
    path = draw_scene(90, 90)
    for options, message in (({"short_side": 64}, "--resolution"), ({"scales": 2}, "--scales")):
        with open_scene(path) as scene, pytest.raises(ValueError, match=message):
            predict_scene(Predictor(scene_model, device="cpu", **options), scene, tmp_path)
    torch.manual_seed(0)
    model = SegFormer(replace(scene_model.config, multilabel=True))
    with open_scene(path) as scene, pytest.raises(ValueError, match="classes may overlap"):
        predict_scene(Predictor(model, device="cpu"), scene, tmp_path)


KILLED = """
import sys, torch
from segformer import Predictor
from segformer.image.scene import open_scene
from segformer.raster import memory, predicting
torch.set_num_threads(1)
plan = memory.MemoryPlan((1, 1), 1 << 24, 0)
predicting.plan_memory = lambda *_: plan
with open_scene(sys.argv[1]) as scene:
    predictor = Predictor(sys.argv[2], device="cpu")
    predicting.predict_scene(predictor, scene, sys.argv[3], window=64, overlap=16)
"""


@pytest.mark.slow
def test_a_killed_run_is_continued(
    scene_model: SegFormer, draw_scene: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw_scene(270, 270)
    scene_model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "model"), str(out)]
    work = out / "scene.unfinished"
    for enough in (2, 8):
        process = subprocess.Popen(words)
        while process.poll() is None and len(list(work.glob("[0-9]*"))) < enough:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert [file.name for file in out.iterdir()] == [work.name]
    model = SegFormer.from_pretrained(tmp_path / "model")
    use_small_blocks(monkeypatch, 1, 1)
    done: list[int] = []
    found = predict(model, path, out, on_pixels=lambda pixels, _: done.append(pixels))
    assert done[0] > 0
    expected = predict(model, path, tmp_path / "whole")
    assert (labels(found.label_map) == labels(expected.label_map)).all()


BOUNDED = """
import sys
from pathlib import Path
from segformer import Predictor
from segformer.image.scene import open_scene
from segformer.raster.memory import peak_memory
from segformer.raster.predicting import predict_scene
predictor = Predictor(sys.argv[2], device="cpu")
with open_scene(sys.argv[1]) as scene:
    predict_scene(predictor, scene, sys.argv[3], window=64, overlap=0, max_memory=int(sys.argv[4]))
print(peak_memory())
"""


@pytest.mark.slow
def test_memory_stays_below_the_bound(scene_model: SegFormer, tmp_path: Path) -> None:
    """Of a scene of 200 megapixels, whose pixels alone would take 600 MB."""
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": 8000, "width": 25_000, "count": 3, "dtype": "uint8"}
    profile |= {"crs": UTM, "transform": from_origin(500_000, 5_300_000, 10, 10)}
    tiles = {
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "nodata": 0,
    }
    with rasterio.open(path, "w", **profile, **tiles, SPARSE_OK=True) as dataset:
        dataset.write(draw_pixels(100, 25_000).transpose(2, 0, 1), window=((0, 100), (0, 25_000)))
    scene_model.save_pretrained(tmp_path / "model")
    base = predict_alone(BOUNDED, path, tmp_path, 10**12)
    limit = 700_000_000
    peak = predict_alone(BOUNDED, path, tmp_path, limit)
    assert peak < limit
    assert peak <= base


def predict_alone(code: str, path: Path, folder: Path, limit: int) -> int:
    out = folder / f"out{limit}"
    words = [sys.executable, "-c", code, str(path), str(folder / "model"), str(out), str(limit)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
