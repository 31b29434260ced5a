"""The page at / in a browser: results, downloads, other hosts, keyboard, screen readers, phones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.browser,
    # Gradio 6.31 beside pandas 3
    pytest.mark.filterwarnings(
        "ignore:'future.no_silent_downcasting'",
        "ignore:The copy keyword is deprecated",
        # Gradio opens photos of the camera and leaves closing them to Python
        "ignore:Exception ignored in. <_io.FileIO name='[^']*segformer-",
    ),
]

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("gradio", reason="the extra serve is not installed")

from segformer import Predictor
from segformer.cli import main
from segformer.serving.models import serve_model
from segformer.serving.page.mount import mount_page
from serving.live import Live, encoded, photo, running
from web_browser import browser, download, visits  # noqa: F401  # a fixture

PHOTO = Path(__file__).parents[2] / "src/segformer/assets/astronaut.jpg"


@pytest.fixture(scope="module")
def shipped() -> Iterator[Live]:
    """The model inside the package."""
    with running(serve_model("shipped", Predictor(device="cpu")), mounts=(mount_page,)) as live:
        yield live


@pytest.fixture
def visit(browser: Any, shipped: Live) -> Iterator[Callable[..., Any]]:  # noqa: F811
    """Opens the page for a new visitor."""
    with visits(browser) as opened:

        def visit(live: Live = shipped, **options: Any) -> Any:
            return opened(f"{live.url}/", ".viewer", **options)

        yield visit


def segment(page: Any, *paths: Path) -> None:
    """Choose images and wait for the results; the first is shown."""
    page.set_input_files("input[type=file]", [str(path) for path in paths])
    wait_for(page, paths[0].name)
    page.wait_for_function("!document.querySelector('.images [data-state=waiting]')")


def wait_for(page: Any, name: str) -> None:
    page.wait_for_selector(f".frame[data-painted='{name}']")


def link(page: Any, name: str) -> Any:
    return page.get_by_role("link", name=name)


def painted(page: Any) -> int:
    """Number of pixels of the overlay that have a color."""
    found: int = page.evaluate(
        "(() => { const c = document.querySelector('.overlay');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        ".filter((v, i) => i % 4 === 3 && v > 0).length })()"
    )
    return found


def test_results_are_those_of_the_command_line(visit: Callable[..., Any], tmp_path: Path) -> None:
    """Files byte for byte, the legend, and the class under the pointer."""
    page = visit()
    segment(page, PHOTO)
    assert main(["predict", str(PHOTO), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    for name in ("Download label map", "Download overlay"):
        found = download(link(page, name), tmp_path)
        assert found.read_bytes() == (tmp_path / "out" / found.name).read_bytes()
    assert download(link(page, "Download JSON"), tmp_path).name == "astronaut.json"

    mask = np.asarray(Image.open(tmp_path / "astronaut.png"))
    counts = np.bincount(mask.ravel())
    names = Predictor(device="cpu").model.classes.names
    present = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    assert page.locator(".legend .name").all_inner_texts() == [names[i] for i in present]
    shown = [f"{100 * counts[i] / mask.size:.1f}%" for i in present if counts[i] > mask.size / 1000]
    assert page.locator(".legend .fraction").all_inner_texts()[: len(shown)] == shown
    assert page.inner_text(".spoken").startswith(f"astronaut.jpg: {names[present[0]]} ")

    box = page.locator(".photo").bounding_box()
    height, width = mask.shape
    for y, x in [(0.6, 0.45), (0.15, 0.9), (0.3, 0.4), (0.9, 0.05)]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        under = names[mask[int(y * height), int(x * width)]]
        assert page.inner_text(".tip .name") == under
        assert page.inner_text(".legend .pointed .name") == under
    page.mouse.move(0, 0)
    assert page.locator(".tip").is_hidden()


def test_opacity_and_before_after(visit: Callable[..., Any]) -> None:
    page = visit()
    segment(page, PHOTO)
    page.get_by_role("slider", name="Opacity").fill("20")
    assert page.evaluate("getComputedStyle(document.querySelector('.overlay')).opacity") == "0.2"
    divider = page.locator(".divider")
    assert divider.is_hidden()
    page.get_by_role("slider", name="Before / after").fill("40")
    clip = page.evaluate("getComputedStyle(document.querySelector('.overlay')).clipPath")
    assert clip == "inset(0px 0px 0px 40%)"
    photo_box, line = page.locator(".photo").bounding_box(), divider.bounding_box()
    at = (line["x"] + line["width"] / 2 - photo_box["x"]) / photo_box["width"]
    assert abs(at - 0.4) < 0.01


def test_classes_can_be_hidden(visit: Callable[..., Any]) -> None:
    page = visit()
    segment(page, PHOTO)
    everything = painted(page)
    boxes = page.get_by_role("checkbox")
    boxes.first.uncheck()
    some = painted(page)
    assert 0 < some < everything
    page.get_by_role("button", name="Hide all").click()
    assert painted(page) == 0
    assert not boxes.first.is_checked()
    page.get_by_role("button", name="Show all").click()
    assert painted(page) == everything


def test_several_images_and_one_that_is_none(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    (tmp_path / "street.png").write_bytes(encoded(photo(90, 120)))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    segment(page, PHOTO, tmp_path / "street.png", tmp_path / "broken.jpg")
    images = page.get_by_role("list", name="Images").get_by_role("button")
    assert [image.get_attribute("aria-label") for image in images.all()] == [
        "astronaut.jpg, done",
        "street.png, done",
        "broken.jpg, failed",
    ]
    images.nth(2).click()
    assert (
        page.get_by_role("alert")
        .first.inner_text()
        .startswith("broken.jpg: the data is not an image")
    )
    assert link(page, "Download label map").is_hidden()
    images.nth(1).click()
    wait_for(page, "street.png")
    with Image.open(download(link(page, "Download label map"), tmp_path / "out")) as label_map:
        assert label_map.size == (120, 90)
    page.get_by_role("button", name="Remove all").click()
    page.wait_for_selector(".viewer[data-state=empty]")


def test_the_example_and_the_camera(visit: Callable[..., Any]) -> None:
    page = visit(permissions=["camera"])
    page.get_by_role("button", name="Example").click()
    wait_for(page, "astronaut.jpg")
    page.get_by_role("tab", name="Camera").click()
    page.get_by_role("button", name=re.compile("click to access webcam", re.I)).click()
    page.wait_for_function("document.querySelector('video')?.videoWidth > 0")
    page.get_by_role("button", name=re.compile("capture", re.I)).click()
    page.wait_for_selector(".images li:nth-child(2) [data-state=done]")


def test_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    page.on("filechooser", lambda chooser: chooser.set_files(str(PHOTO)))
    for _ in range(10):
        page.keyboard.press("Tab")
        if "upload" in (page.evaluate("document.activeElement.ariaLabel") or ""):
            break
    page.keyboard.press("Enter")
    wait_for(page, "astronaut.jpg")

    page.focus(".frame")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    spoken = page.inner_text(".spoken")
    assert re.fullmatch(r".+, 52% from the left, 60% from the top", spoken)
    assert spoken.split(",")[0] == page.inner_text(".tip .name")
    page.keyboard.press("Escape")
    assert page.locator(".marker").is_hidden()

    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.labels?.[0]?.innerText")
            or page.evaluate("document.activeElement.innerText")
        )
    text = "\n".join(map(str, reached))
    for control in ("Before / after", "Show all", "Hide all", "Opacity", "Download label map"):
        assert control in text
    page.get_by_role("checkbox").first.focus()
    page.keyboard.press("Space")
    assert not page.get_by_role("checkbox").first.is_checked()


def test_every_control_has_a_name(visit: Callable[..., Any]) -> None:
    """As screen readers see it."""
    page = visit()
    segment(page, PHOTO)
    tree = page.locator("body").aria_snapshot()
    for line in tree.splitlines():
        control = re.match(
            r"\s*- (button|combobox|slider|checkbox|link|tab|application)\b(.*)", line
        )
        if control:
            assert '"' in control[2], line
    for part in (
        'heading "Image segmentation" [level=1]',
        'application "Segmented image astronaut.jpg"',
        'slider "Before / after"',
        'slider "Opacity"',
        'region "Classes and downloads"',
        'button "Click to upload or drop files"',
    ):
        assert f"- {part}" in tree
    assert page.get_attribute("html", "lang") == "en"
    assert page.title() == "Image segmentation"


@pytest.mark.parametrize("width", [320, 390])
def test_narrow_screens(visit: Callable[..., Any], width: int) -> None:
    page = visit(viewport={"width": width, "height": 844}, has_touch=True, is_mobile=True)
    segment(page, PHOTO)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".photo").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator(".tip").is_visible()
    small = page.evaluate(
        "[...document.querySelectorAll('button, .viewer a, .viewer li label')]"
        ".filter((e) => e.checkVisibility() && e.tabIndex >= 0 || e.localName === 'label')"
        ".filter((e) => e.getBoundingClientRect().height < 32).map((e) => e.outerHTML)"
    )
    assert small == []


def test_a_key_is_the_password(visit: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("the-key")
    served = serve_model("shipped", Predictor(device="cpu"))
    with running(served, mounts=(mount_page,), api_key_file=tmp_path / "keys") as live:
        page = visit(live, http_credentials={"username": "", "password": "the-key"})
        segment(page, PHOTO)
        assert download(link(page, "Download label map"), tmp_path).stat().st_size > 1000
        page.context.close()


def test_names_are_text(visit: Callable[..., Any]) -> None:
    """A class name that looks like HTML is shown as it is."""
    evil = "<img src=x onerror=document.body.dataset.broken=1>"
    predictor = Predictor(device="cpu")
    names = predictor.model.classes.names
    predictor.model.classes = type(predictor.model.classes)(tuple(f"{n} {evil}" for n in names))
    with running(serve_model("shipped", predictor), mounts=(mount_page,)) as live:
        page = visit(live)
        segment(page, PHOTO)
        page.hover(".photo")
        for selector in (".legend .name", ".tip .name"):
            assert evil in page.locator(selector).first.inner_text()
        assert page.get_attribute("body", "data-broken") is None
        page.context.close()
