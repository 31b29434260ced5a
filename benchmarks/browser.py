"""Measure the web page of ``segformer export --format web`` in a headless Chromium.

    python benchmarks/browser.py [--model MODEL] [--rounds 5]

The contenders are the page on a plain web server, which gives it one thread, and on a server that
sends the headers for several threads (COOP and COEP). The service worker, which adds these headers
itself, is switched off. "First result" is the time from the request of the page to the first label
map, with an empty cache and a server on the same machine; then the time per image is measured, from
choosing the file to the result on the screen. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import harness
from PIL import Image
from playwright.sync_api import sync_playwright
from skimage import data

from segformer.checkpoints.opening import SHIPPED
from segformer.export.config import ExportConfig
from segformer.export.web import export_web

ONE, SEVERAL = "one thread", "several threads"
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
SIZES = {"512 x 512": (512, 512), "4032 x 3024": (4032, 3024)}
PATIENCE = 300_000
"""Milliseconds."""


class Handler(SimpleHTTPRequestHandler):
    """A static server that may send the headers for several threads."""

    def __init__(self, *words: Any, isolated: bool, **options: Any):
        self.isolated = isolated
        super().__init__(*words, **options)

    def end_headers(self) -> None:
        """Add the headers to each answer."""
        for name, value in HEADERS.items() if self.isolated else ():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        site = Path(folder) / "page"
        export_web(options.model, site, ExportConfig("web"))
        images = write_images(Path(folder))
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        with serve(site, isolated=False) as plain, serve(site, isolated=True) as isolated:
            addresses = {ONE: plain, SEVERAL: isolated}
            rows = [first_result(browser, addresses, images["512 x 512"], options.rounds)]
            rows += per_image(browser, addresses, images, options.rounds)
        browser.close()
    harness.report("browser", rows)


def write_images(folder: Path) -> dict[str, Path]:
    """The photograph as JPEG in each size."""
    photo = Image.fromarray(data.astronaut())
    paths = {}
    for name, size in SIZES.items():
        paths[name] = folder / f"{size[0]}.jpg"
        photo.resize(size).save(paths[name], quality=92)
    return paths


@contextmanager
def serve(folder: Path, *, isolated: bool) -> Iterator[str]:
    """Serve a folder; gives its address."""
    handler = partial(Handler, directory=str(folder), isolated=isolated)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def first_result(browser: Any, addresses: dict[str, str], image: Path, rounds: int) -> harness.Row:
    """From the request of the page to the first label map, for a new visitor each time."""
    seconds: dict[str, list[float]] = {name: [] for name in addresses}
    for _ in range(rounds):
        for name, address in addresses.items():
            began = time.perf_counter()
            page = visit(browser, address)
            segment(page, image)
            seconds[name].append(time.perf_counter() - began)
            page.context.close()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return harness.Row("first result, 512 x 512", medians, SEVERAL)


def per_image(
    browser: Any, addresses: dict[str, str], images: dict[str, Path], rounds: int
) -> Iterator[harness.Row]:
    """From choosing a file to its result."""
    pages = {name: visit(browser, address) for name, address in addresses.items()}
    for size, image in images.items():
        runs: dict[str, Callable[[], None]] = {
            name: partial(segment, page, image) for name, page in pages.items()
        }
        row = harness.Row(f"one image, {size}", harness.in_turns(runs, rounds), SEVERAL)
        for name, page in pages.items():
            threads = page.get_attribute("body", "data-threads")
            row.notes[f"{name} ({threads})"] = page.get_attribute("#timing", "title")
        yield row


def visit(browser: Any, address: str) -> Any:
    """Open the page as a new visitor."""
    context = browser.new_context(service_workers="block")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#size option", state="attached")  # the page takes images from now on
    return page


def segment(page: Any, image: Path) -> None:
    """Choose an image and wait for its result."""
    count = page.locator("#images li").count()
    page.set_input_files("#files", str(image))
    page.wait_for_selector(f"#images li:nth-child({count + 1}) [data-state=done]")


if __name__ == "__main__":
    main()
