"""transformers.js, run by Node.js, loads an exported folder and finds the same classes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from segformer import Predictor
from segformer.checkpoints.opening import SHIPPED
from segformer.export.check import OWN_IMAGE
from segformer.export.config import ExportConfig
from segformer.export.export import export_model
from segformer.image import read_image, resize

pytestmark = pytest.mark.slow

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed")

NPM, NODE = shutil.which("npm"), shutil.which("node")

SCRIPT = """\
import { readFileSync, writeFileSync } from 'node:fs';
import {
  AutoModelForSemanticSegmentation, AutoProcessor, RawImage, Tensor, env, pipeline,
} from '@huggingface/transformers';
const { models, image, shape, size } = JSON.parse(readFileSync('values.json'));
env.allowRemoteModels = false;
env.localModelPath = models;
const options = { dtype: 'fp32' };
const model = await AutoModelForSemanticSegmentation.from_pretrained('mine-onnx', options);
const processor = await AutoProcessor.from_pretrained('mine-onnx');
const bytes = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const save = (name, outputs) => {
  writeFileSync(`${name}_logits.bin`, bytes(outputs.logits.data));
  const [found] = processor.image_processor.post_process_semantic_segmentation(outputs, [size]);
  writeFileSync(`${name}_map.bin`, bytes(Int32Array.from(found.segmentation.data)));
};
// The same normalized pixels as this package makes
const values = new Float32Array(new Uint8Array(readFileSync('pixels.bin')).buffer);
save('same', await model({ pixel_values: new Tensor('float32', values, shape) }));
// Its own reading, resizing and normalization
const inputs = await processor(await RawImage.read(image));
save('own', await model({ pixel_values: inputs.pixel_values }));
const segment = await pipeline('image-segmentation', 'mine-onnx', options);
const labels = (await segment(image)).map((part) => part.label);
console.log(JSON.stringify({ version: env.version, shape: inputs.pixel_values.dims, labels }));
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of Node.js with transformers.js."""
    if NPM is None or NODE is None:
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    # Without this, ONNX Runtime downloads its files for CUDA
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    words = [NPM, "install", "--no-audit", "--no-fund", "@huggingface/transformers@4"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install transformers.js: {done.stderr.strip()[-200:]}")
    return folder


def test_transformers_js_finds_the_same(project: Path, tmp_path: Path) -> None:
    export_model(SHIPPED, tmp_path / "mine-onnx", ExportConfig(format="onnx"))
    predictor = Predictor(SHIPPED, device="cpu")
    image = read_image(OWN_IMAGE, 3)
    seen = resize(image, predictor.preprocessing.target_size(*image.shape[:2]))
    pixels = np.ascontiguousarray(predictor.preprocessing.normalize(seen).transpose(2, 0, 1))
    pixels.tofile(project / "pixels.bin")
    values = {
        "models": f"{tmp_path}/",
        "image": str(OWN_IMAGE),
        "shape": [1, *pixels.shape],
        "size": image.shape[:2],
    }
    (project / "values.json").write_text(json.dumps(values))
    (project / "run.mjs").write_text(SCRIPT)
    assert NODE is not None
    done = subprocess.run([NODE, "run.mjs"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    expected = predictor.logits(image).numpy()
    label_map = predictor(image).label_map

    def found(name: str) -> tuple[np.ndarray, np.ndarray]:
        logits = np.fromfile(project / f"{name}_logits.bin", np.float32)
        classes = np.fromfile(project / f"{name}_map.bin", np.int32)
        return logits.reshape(expected.shape), classes.reshape(label_map.shape)

    logits, classes = found("same")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    same, own = (classes == label_map).mean(), (found("own")[1] == label_map).mean()
    print(f"transformers.js {said['version']}: largest difference of logits "
          f"{np.abs(logits - expected).max():.1e}, same class {same:.4%}; with its own resizing "
          f"{own:.4%}")  # fmt: skip
    assert same > 0.9999
    assert said["shape"] == [1, *pixels.shape]
    assert own > 0.99  # it resizes with another filter
    names = predictor.model.classes.names
    assert set(said["labels"]) <= set(names)
    assert {names[i] for i in np.unique(label_map) if (label_map == i).mean() > 0.01} <= set(
        said["labels"]
    )
