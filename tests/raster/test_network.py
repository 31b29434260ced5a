"""Scenes on servers: with and without range requests, and servers that break."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="scenes need the extra geo")

from rasterio.shutil import copy

from scene_samples import draw_pixels, write_scene
from segformer.image import UnreadableImage, read_image, scene_bands
from segformer.image.scene import open_scene
from segformer.image.scene_grid import Window


class Server:
    """Serves files of a folder; answers the next ``failures`` requests with an error.

    Attributes:
        ranges: Whether it answers requests for parts of files.
        failures: Number of requests that it will fail.
        sent: Bytes that it has sent.
    """

    def __init__(self, folder: Path):
        self.folder, self.ranges, self.failures, self.sent = folder, True, 0, 0
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if self.failures:
            self.failures -= 1
            request.send_error(500)
            return
        path = self.folder / request.path.lstrip("/").partition("?")[0]
        if not path.is_file():
            request.send_error(404)
            return
        content, status = path.read_bytes(), 200
        size, first = len(content), 0
        wanted = request.headers.get("Range", "")
        if self.ranges and wanted.startswith("bytes="):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or size), size - 1)
            content, status = content[first : last + 1], 206
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        if status == 206:
            request.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{size}")
            request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        request.wfile.write(content)
        self.sent += len(content)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):  # GDAL ends connections when it has read enough
                server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        yield server
        http.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Cloud-Optimized GeoTIFF."""
    folder = tmp_path_factory.mktemp("served")
    path = write_scene(folder / "plain.tif", draw_pixels(1100, 1200))
    copy(str(path), str(folder / "scene.tif"), driver="COG", BLOCKSIZE="256", OVERVIEWS="NONE")
    return folder


@pytest.fixture
def server(served: Path) -> Iterator[Server]:
    with serving(served) as server:
        yield server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_bands, "RETRY_DELAYS_S", (0.01, 0.02, 0.03))


def test_only_parts_of_a_remote_scene_are_read(server: Server, served: Path) -> None:
    whole = read_image(served / "scene.tif")
    with open_scene(f"{server.url}/scene.tif") as scene:
        pixels, valid = scene.read(Window(600, 700, 90, 80))
    assert valid.all()
    assert (pixels == whole[600:690, 700:780]).all()
    assert 0 < server.sent < (served / "scene.tif").stat().st_size / 2


def test_a_server_that_fails_for_a_moment_is_asked_again(server: Server, served: Path) -> None:
    whole = read_image(served / "scene.tif")
    with open_scene(f"{server.url}/scene.tif") as scene:
        scene.read(Window(0, 0, 10, 10))
        server.failures = 2
        pixels, _ = scene.read(Window(900, 900, 100, 100))
    assert (pixels == whole[900:1000, 900:1000]).all()
    assert server.failures == 0


def test_a_server_without_range_requests_is_reported(server: Server) -> None:
    server.ranges = False
    with pytest.raises(UnreadableImage, match="sends whole files only; download the file first"):
        open_scene(f"{server.url}/scene.tif?whole")


def test_a_server_that_stays_broken_is_reported(server: Server) -> None:
    with open_scene(f"{server.url}/scene.tif") as scene:
        server.failures = 10**6
        with pytest.raises(UnreadableImage, match=r"scene\.tif: cannot be read after 4 attempts"):
            scene.read(Window(900, 900, 100, 100))
        server.failures = 0
        assert scene.read(Window(900, 900, 100, 100))[1].all()
    server.failures = 10**6
    with pytest.raises(UnreadableImage, match="cannot be read after 4 attempts"):
        open_scene(f"{server.url}/scene.tif?again")


def test_a_missing_file_on_a_server(server: Server) -> None:
    with pytest.raises(UnreadableImage, match=r"none\.tif: cannot be read"):
        open_scene(f"{server.url}/none.tif")


def test_a_stac_item_on_a_server(server: Server, served: Path) -> None:
    (served / "item.json").write_text(
        '{"type": "Feature", "assets": {"visual": {"href": "./scene.tif", '
        '"type": "image/tiff; application=geotiff", "roles": ["visual"]}}}'
    )
    with open_scene(f"{server.url}/item.json") as scene:
        assert scene.bands == ("visual-1", "visual-2", "visual-3")
        assert np.asarray(scene.read(Window(0, 0, 20, 20))[1]).all()
