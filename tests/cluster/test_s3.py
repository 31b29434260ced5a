"""The work of one worker on S3, against a stand-in that runs in this process."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer import Predictor, SegFormer

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore"),  # of moto and botocore
]

moto = pytest.importorskip("moto.server", reason="moto is not installed")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from segformer.cluster import storage
from segformer.cluster.manifest import find_done, list_sources, remaining_units, write_parts
from segformer.cluster.storage import StorageRefused
from segformer.cluster.work import Outputs, read_remotely, run_unit


def test_images_and_results_on_s3(
    tmp_path: Path, tiny_model: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()  # of other tests
    files = s3fs.S3FileSystem()
    files.mkdir("unit-photos")
    files.mkdir("unit-masks")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    for name in ("a.png", "x/b.png", "x/c.png"):
        files.pipe_file(f"unit-photos/in/{name}", buffer.getvalue())
    predictor = Predictor(tiny_model, size=(32, 32), device="cpu")
    read_remotely(predictor)
    out = "s3://unit-masks/out"
    outputs = Outputs(out, overlay=False, confidence=False, multilabel=False)
    parts = write_parts(list_sources(["s3://unit-photos/in"], out), out)
    (unit,) = (unit for part in parts for unit in remaining_units(part, (), 100))
    assert run_unit(predictor, outputs, unit).done == 3
    again = run_unit(predictor, outputs, unit)
    assert (again.done, again.skipped) == (0, 3)
    assert find_done(out) == {0: [(0, 3)]}
    predictor.reader = None
    label_map = Image.open(io.BytesIO(storage.read_bytes(f"{out}/x/b.png")))
    assert np.array_equal(np.asarray(label_map), predictor(image).label_map)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageRefused, match="no credentials .*set on each machine"):
        storage.read_bytes(f"{out}/a.png")
    server.stop()
