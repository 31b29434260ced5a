"""The scripts of the web page against the package, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segformer.image import RESAMPLING, Preprocessing, resize
from segformer.prediction.upsample import logits_to_label_map

PAGE = Path(__file__).parents[2] / "src/segformer/export/page"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")


def run_node(folder: Path, module: str, code: str, values: dict[str, Any]) -> bytes:
    """Run code that has a module of the page as ``page`` and ``values``; returns its output."""
    for script in PAGE.glob("*.js"):  # with this suffix, each version of Node takes it for a module
        text = script.read_text(encoding="utf-8").replace('.js"', '.mjs"')
        (folder / script.with_suffix(".mjs").name).write_text(text, encoding="utf-8")
    (folder / "values.json").write_text(json.dumps(values))
    (folder / "run.mjs").write_text(
        f"import * as page from './{module}.mjs';\n"
        "import { readFileSync, writeSync } from 'node:fs';\n"
        "const values = JSON.parse(readFileSync('values.json'));\n"
        "const file = (name, Type) => new Type(new Uint8Array(readFileSync(name)).buffer);\n"
        "const write = (bytes) => {\n"
        "  for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at);\n"
        "};\n" + code
    )
    assert NODE is not None
    done = subprocess.run([NODE, "run.mjs"], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


SIZES = [
    ((97, 131), (61, 40)),
    ((97, 131), (200, 150)),
    ((64, 80), (64, 33)),
    ((640, 400), (37, 52)),
    ((5, 3), (32, 32)),
    ((50, 60), (50, 60)),
]


@pytest.mark.parametrize("resample", sorted(RESAMPLING))
def test_resizing_equals_pillow(tmp_path: Path, resample: str) -> None:
    """Every value of every filter, for images that arrive in strips of any number of rows."""
    rng = np.random.default_rng(0)
    code = """
    for (const { name, source, target, channels, rows, resample } of values.cases) {
      const pixels = file(name, Uint8Array);
      const resizer = new page.Resizer(source, target, channels, resample);
      const strip = rows * source[1] * 4;
      for (let at = 0; at < pixels.length; at += strip) {
        resizer.push(pixels.subarray(at, at + strip), 4);
      }
      write(resizer.finish());
    }
    """
    cases, expected = [], []
    for i, ((source, target), channels) in enumerate(product(SIZES, (1, 3))):
        rgba = rng.integers(0, 256, (*source, 4), dtype=np.uint8)
        rgba[: source[0] // 2] = np.where(rgba[: source[0] // 2] > 127, 255, 0)  # overshoots
        (tmp_path / f"{i}.raw").write_bytes(rgba.tobytes())
        cases.append(
            {
                "name": f"{i}.raw",
                "source": source,
                "target": target,
                "channels": channels,
                "rows": 1 + 7 * i,
                "resample": resample,
            }
        )
        expected.append(resize(rgba[:, :, :channels], target, resample).tobytes())
    found = run_node(tmp_path, "resize", code, {"cases": cases})
    assert found == b"".join(expected)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=384),
        Preprocessing(size=512, multiple=32),
        Preprocessing(size=(512, 768)),
        Preprocessing(size=None, multiple=32),
    ],
)
def test_size_of_the_input(tmp_path: Path, preprocessing: Preprocessing) -> None:
    sides = [(480, 640), (640, 480), (512, 512), (333, 1000), (3000, 10), (1, 1), (4032, 3024)]
    code = """
    const { sides, size, multiple } = values;
    const found = sides.map(([height, width]) => page.targetSize(height, width, size, multiple));
    console.log(JSON.stringify(found));
    """
    values = {"sides": sides, "size": preprocessing.size, "multiple": preprocessing.multiple}
    found = json.loads(run_node(tmp_path, "image", code, values))
    expected = [preprocessing.target_size(*size) for size in sides]
    assert found == [[max(32, height), max(32, width)] for height, width in expected]


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5,)])
def test_normalized_values_are_equal(tmp_path: Path, mean: tuple[float, ...]) -> None:
    preprocessing = Preprocessing(mean=mean, std=(0.229, 0.224, 0.225)[: len(mean)])
    image = np.random.default_rng(0).integers(0, 256, (9, 7, len(mean)), dtype=np.uint8)
    (tmp_path / "image.raw").write_bytes(image.tobytes())
    values = {"mean": mean, "std": preprocessing.std, "rescale": preprocessing.rescale}
    code = "write(new Uint8Array(page.normalized(file('image.raw', Uint8Array), values).buffer));"
    found = np.frombuffer(run_node(tmp_path, "image", code, values), np.float32)
    expected = preprocessing.normalize(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((11, 24, 32), (333, 415)),
        ((150, 16, 16), (64, 64)),
        ((300, 9, 12), (70, 90)),
        ((1, 20, 20), (123, 77)),
        ((5, 20, 30), (9, 60)),
        ((4, 1, 7), (5, 40)),
    ],
)
def test_label_map_equals_that_of_the_predictor(
    tmp_path: Path, shape: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """Pixels may differ only where two classes differ by no more than rounding errors."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator) * 3
    logits = torch.nn.functional.avg_pool2d(logits[None], 3, 1, 1)[0].contiguous()
    (tmp_path / "logits.raw").write_bytes(logits.numpy().tobytes())
    code = """
    const { shape, size } = values;
    const ids = page.labelMap(file('logits.raw', Float32Array), shape, ...size);
    write(new Uint8Array(ids.buffer));
    """
    output = run_node(tmp_path, "labels", code, {"shape": shape, "size": size})
    expected, _ = logits_to_label_map([logits], size)
    found = np.frombuffer(output, expected.dtype).reshape(size)
    differ = np.argwhere(found != expected)
    full = torch.nn.functional.interpolate(
        logits[None].double(), size, mode="bilinear", align_corners=False
    )[0]
    if shape[0] == 1:
        full = torch.cat([torch.zeros_like(full), full])
    best = full.amax(0)
    for y, x in differ:
        assert best[y, x] - full[int(found[y, x]), y, x] < 1e-5
    assert len(differ) < 0.001 * found.size
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize(("dtype", "highest"), [(np.uint8, 255), (np.uint16, 1000)])
def test_masks_are_gray_png_files(tmp_path: Path, dtype: type, highest: int) -> None:
    ids = np.random.default_rng(0).integers(0, highest, (37, 53)).astype(dtype)
    (tmp_path / "ids.raw").write_bytes(ids.tobytes())
    code = f"""
    const ids = file('ids.raw', Uint{8 * ids.itemsize}Array);
    const png = await page.grayPng(ids, ...values.size);
    write(new Uint8Array(await png.arrayBuffer()));
    """
    (tmp_path / "mask.png").write_bytes(run_node(tmp_path, "png", code, {"size": ids.shape}))
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode.startswith("L" if highest == 255 else "I")
        np.testing.assert_array_equal(np.asarray(mask), ids)


def test_names_never_become_html() -> None:
    """Class names and file names are set as text."""
    for script in PAGE.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert danger not in text, script.name


def test_nothing_is_read_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        if path.suffix in (".js", ".html", ".css"):
            text = path.read_text(encoding="utf-8")
            assert "http:" not in text, path.name
            assert "https:" not in text, path.name
