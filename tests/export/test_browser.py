"""The exported web page in a browser: results, privacy, keyboard, use without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from segformer.checkpoints.opening import SHIPPED
from segformer.cli import main
from segformer.export.check import OWN_IMAGE
from web_browser import browser, download, new_page, visits  # noqa: F401  # a fixture

pytestmark = pytest.mark.browser

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"needs {package}, of the extra onnxruntime")

READY = "body[data-device]"


class Server:
    """A static web server, as ``python -m http.server``."""

    def __init__(self, folder: Path):
        handler = partial(_QuietHandler, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a web page."""
    from segformer.export.web_runtime import find_runtime_files

    try:
        find_runtime_files()
    except ValueError as error:
        pytest.skip(f"no files of ONNX Runtime Web: {error}")
    folder = tmp_path_factory.mktemp("export") / "page"
    assert main(["export", SHIPPED, "--format", "web", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def server(site: Path) -> Iterator[Server]:
    running = Server(site)
    yield running
    running.stop()


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:  # noqa: F811
    """Opens the page for a new visitor."""
    with visits(browser) as opened:
        yield partial(opened, server.address, READY)


def segment(page: Any, *paths: Path) -> None:
    """Choose images and wait for the results; the first is shown."""
    before = page.locator("#images li").count()
    page.set_input_files("#files", [str(path) for path in paths])
    for i in range(len(paths)):
        page.wait_for_selector(f"#images li:nth-child({before + i + 1}) [data-state=done]")


def predict(image: Path, folder: Path, *options: str) -> np.ndarray:
    """The label map of the command line."""
    words = ["predict", str(image), "--out", str(folder), "--no-overlay", "--overwrite", *options]
    assert main(words) == 0
    with Image.open(folder / f"{image.stem}.png") as mask:
        return np.asarray(mask)


def same_class(page: Any, image: Path, folder: Path, *options: str) -> float:
    """Fraction of pixels that the page and the command line give the same class."""
    with Image.open(download(page.locator("#save-mask"), folder / "found")) as mask:
        found = np.asarray(mask)
    expected = predict(image, folder / "expected", *options)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found == expected).mean())


def class_names(site: Path) -> list[str]:
    settings = json.loads((site / "settings.json").read_text(encoding="utf-8"))
    return [entry["name"] for entry in settings["classes"]]


def test_results_are_those_of_the_command_line(
    visit: Callable[..., Any], site: Path, tmp_path: Path
) -> None:
    page = visit()
    segment(page, OWN_IMAGE)
    assert same_class(page, OWN_IMAGE, tmp_path) >= 0.995

    mask = np.asarray(Image.open(tmp_path / "found" / f"{OWN_IMAGE.stem}.png"))
    counts = np.bincount(mask.ravel())
    names = class_names(site)
    present = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    rows = page.locator("#legend button")
    assert rows.locator(".name").all_inner_texts() == [names[i] for i in present]
    fractions = [
        f"{100 * counts[i] / mask.size:.1f}%" for i in present if counts[i] >= 1e-3 * mask.size
    ]
    assert rows.locator(".fraction").all_inner_texts()[: len(fractions)] == fractions

    spoken = page.inner_text("#spoken")
    assert spoken.startswith(f"{OWN_IMAGE.name}: {names[present[0]]} ")

    box = page.locator("#photo").bounding_box()
    height, width = mask.shape
    for y, x in [(0.6, 0.45), (0.15, 0.9), (0.3, 0.4)]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        under = names[mask[int(y * height), int(x * width)]]
        assert page.inner_text("#tip .name") == under
        assert page.inner_text("#legend .pointed .name") == under
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()


def test_overlay_file(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    segment(page, OWN_IMAGE)
    page.fill("#opacity", "0")
    with Image.open(download(page.locator("#save-overlay"), tmp_path)) as file:
        assert file.format == "JPEG"
        plain = np.asarray(file).astype(float)
    assert (tmp_path / f"{OWN_IMAGE.stem}_overlay.jpg").is_file()
    original = np.asarray(Image.open(OWN_IMAGE).convert("RGB")).astype(float)
    height, width = original.shape[:2]
    assert plain.shape[1] == width
    assert plain.shape[0] > height  # the legend
    assert np.abs(plain[:height] - original).mean() < 5  # of JPEG
    page.fill("#opacity", "100")
    colored = np.asarray(Image.open(download(page.locator("#save-overlay"), tmp_path))).astype(
        float
    )
    assert np.abs(colored[:height] - original).mean() > 40


def draw_image_files(folder: Path) -> dict[str, Path]:
    """The photograph as people store images."""
    photo = Image.open(OWN_IMAGE).convert("RGB")
    paths = {}

    def save(name: str, image: Image.Image, **options: Any) -> None:
        paths[name] = folder / name
        image.save(paths[name], **options)

    exif = Image.Exif()
    exif[0x0112] = 6
    save("sideways.jpg", photo.rotate(90, expand=True), exif=exif.tobytes(), quality=95)
    opacity = np.asarray(photo)[:, :, 0] // 2
    opacity[:100] = 0
    save("transparent.png", Image.merge("RGBA", (*photo.split(), Image.fromarray(opacity))))
    save("gray.png", photo.convert("L"))
    save("palette.png", photo.quantize(64))
    save("profile.png", photo, icc_profile=swapped_primaries())
    save("large.webp", photo.resize((2500, 1800)), quality=90)
    save("tiny.png", photo.resize((40, 25)))
    return paths


def swapped_primaries() -> bytes:
    """A color profile that a browser would apply: sRGB with red and blue exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_images_of_all_kinds(visit: Callable[..., Any], tmp_path: Path) -> None:
    """Orientation, transparency, palettes and color profiles are treated as the package does."""
    page = visit()
    paths = draw_image_files(tmp_path)
    segment(page, *paths.values())
    same = {}
    for i, (name, path) in enumerate(paths.items()):
        page.click(f"#images li:nth-child({i + 1}) button")
        same[name] = same_class(page, path, tmp_path)
    assert {name: fraction for name, fraction in same.items() if fraction < 0.995} == {}


def test_size_of_the_input_can_be_chosen(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    segment(page, OWN_IMAGE)
    page.select_option("#size", "256")
    page.wait_for_selector("#images [data-state=done]")
    assert same_class(page, OWN_IMAGE, tmp_path, "--short-side", "256") >= 0.995


def test_keyboard(visit: Callable[..., Any], site: Path) -> None:
    page = visit()
    page.on("filechooser", lambda chooser: chooser.set_files(str(OWN_IMAGE)))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.action") == "choose"
    page.keyboard.press("Enter")
    page.wait_for_selector("#images [data-state=done]")

    page.focus("#frame")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert page.locator("#marker").is_visible()
    spoken = page.inner_text("#spoken")
    assert re.fullmatch(r".+, 52% from the left, 60% from the top", spoken)
    assert spoken.split(",")[0] == page.inner_text("#tip .name")
    assert spoken.split(",")[0] in class_names(site)
    page.keyboard.press("Escape")
    assert page.locator("#marker").is_hidden()

    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.id"))
    assert {"clear", "opacity", "save-mask", "save-overlay", "size", "device", "0"} <= reached
    page.focus("#legend button")
    page.keyboard.press("Enter")
    assert page.get_attribute("#legend button:focus", "aria-pressed") == "true"


def test_every_control_has_a_name(visit: Callable[..., Any]) -> None:
    """As screen readers see it."""
    page = visit()
    segment(page, OWN_IMAGE)
    tree = page.locator("body").aria_snapshot()
    for line in tree.splitlines():
        control = re.match(r"\s*- (button|combobox|slider|application|img)\b(.*)", line)
        if control:
            assert '"' in control[2], line
    assert f'- application "Segmented image {OWN_IMAGE.name}"' in tree
    assert '- slider "Opacity"' in tree
    assert '- combobox "Size of the model\'s input"' in tree
    assert page.locator("[role=status]").count() == 2


def test_narrow_screens(visit: Callable[..., Any]) -> None:
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    segment(page, OWN_IMAGE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("#photo").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip").is_visible()
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input')]"
        ".filter((e) => e.checkVisibility() && e.type !== 'range')"
        ".filter((e) => e.getBoundingClientRect().height < 40).map((e) => e.outerHTML)"
    )
    assert small == []


def test_second_visit_needs_no_network(visit: Callable[..., Any], server: Server) -> None:
    page = visit()
    server.stop()
    page.reload()
    page.wait_for_selector(READY)
    segment(page, OWN_IMAGE)
    assert page.locator("#legend button").count() > 1


def test_new_version(browser: Any, site: Path, tmp_path: Path) -> None:  # noqa: F811
    """Visitors keep the page of their first visit until they ask for the new one."""
    copy = tmp_path / "page"
    shutil.copytree(site, copy, copy_function=os.link)
    running = Server(copy)
    page = new_page(browser)
    page.goto(running.address)
    page.wait_for_selector(READY)
    former = json.loads((copy / "settings.json").read_text(encoding="utf-8"))["version"]
    for name in ("settings.json", "version.js"):
        text = (copy / name).read_text(encoding="utf-8").replace(former, "later")
        (copy / name).unlink()  # not through the link
        (copy / name).write_text(text.replace(SHIPPED, "later"), encoding="utf-8")
    page.reload()
    assert page.inner_text("h1") == SHIPPED
    page.click("#update")
    page.wait_for_selector("h1:has-text('later')")
    page.wait_for_selector(READY)
    names = page.evaluate("caches.keys()")
    assert len(names) == 1
    assert names[0].endswith(" later")
    page.context.close()
    running.stop()


def test_several_threads_on_a_plain_server(visit: Callable[..., Any]) -> None:
    page = visit()
    if page.evaluate("navigator.hardwareConcurrency") < 2:
        pytest.skip("needs two processors")
    assert page.evaluate("self.crossOriginIsolated")
    assert int(page.get_attribute("body", "data-threads")) > 1


def test_names_are_text(browser: Any, server: Server, site: Path) -> None:  # noqa: F811
    """A class name or title that looks like HTML is shown as it is."""
    evil = "<img src=x onerror=document.body.dataset.broken=1>"
    settings = json.loads((site / "settings.json").read_text(encoding="utf-8"))
    settings["title"] = evil
    for entry in settings["classes"]:
        entry["name"] += evil
    page = new_page(browser, service_workers="block")
    page.route("**/settings.json", lambda route: route.fulfill(body=json.dumps(settings)))
    page.goto(server.address)
    segment(page, OWN_IMAGE)
    page.hover("#photo")
    for selector in ("h1", "#all-classes li", "#legend .name", "#tip .name"):
        assert evil in page.locator(selector).first.text_content()
    assert page.get_attribute("body", "data-broken") is None
    assert page.get_attribute("body", "data-threads") == "1"
    page.context.close()


def test_photo_from_the_camera(visit: Callable[..., Any]) -> None:
    page = visit()
    page.click("#choose [data-action=camera]")
    page.click("#camera button[value=shoot]")
    page.wait_for_selector("#images [data-state=done]")
    assert page.locator("#camera").is_hidden()
    assert page.evaluate("document.querySelector('#camera video').srcObject") is None
    label = page.get_attribute("#images button", "aria-label")
    assert re.fullmatch(r"photo-[-\d]+\.png, done", label)


def test_files_that_are_no_images(visit: Callable[..., Any], tmp_path: Path) -> None:
    """The message names the file, and other images still run."""
    page = visit()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    page.set_input_files("#files", [str(broken)])
    page.wait_for_selector("#images [data-state=failed]")
    assert page.inner_text("#problem").startswith("broken.jpg: This browser cannot decode the file")
    assert page.locator("#save-mask").is_disabled()
    segment(page, OWN_IMAGE)
    assert page.locator("#save-mask").is_enabled()
