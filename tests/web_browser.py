"""A web browser for the tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",  # a camera with a moving test image
    "--use-fake-ui-for-media-stream",
)
STEP_TIMEOUT = 60_000
"""Milliseconds for a single step, on a slow machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=program, args=FLAGS)
        except playwright.Error as error:
            pytest.skip(f"no Chromium that can be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


def new_page(browser: Any, **options: Any) -> Any:
    """An empty page for a new visitor; ``options`` are those of the browser context."""
    context = browser.new_context(**options)
    context.set_default_timeout(STEP_TIMEOUT)
    return context.new_page()


@contextmanager
def visits(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a page for a new visitor: address, selector to wait for, options.

    At the end, there must have been no error and no request to another host.
    """
    with ExitStack() as stack:
        problems: list[str] = []

        def opened(address: str, ready: str, **options: Any) -> Any:
            page = new_page(browser, **options)
            stack.callback(page.context.close)
            own = (address, f"blob:{address}", "data:")

            def check_request(request: Any) -> None:
                if not request.url.startswith(own):
                    problems.append(f"request: {request.url}")

            def check_message(message: Any) -> None:
                if message.type == "error":
                    problems.append(f"console: {message.text}")

            page.context.on("request", check_request)
            page.on("console", check_message)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(address)
            page.wait_for_selector(ready)
            return page

        yield opened
    assert problems == [], problems


def download(control: Any, folder: Path) -> Path:
    """Click on a control and save the file that it gives, under its own name."""
    with control.page.expect_download() as event:
        control.click()
    path = folder / event.value.suggested_filename
    event.value.save_as(path)
    return path
