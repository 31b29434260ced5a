"""Putting the page at / of the service, and keeping Gradio to what the page needs."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segformer.serving.page.blocks import build_blocks
from segformer.serving.page.storage import clean
from segformer.serving.service import Service

_KEPT = 3600
"""Seconds for which uploads and results are kept."""

_ICON = Path(__file__).parent / "icon.svg"

_PATHS = (
    "/",
    "/config",
    "/favicon.ico",
    "/theme.css",
    "/gradio_api/cancel",
    "/gradio_api/queue/data",
    "/gradio_api/queue/join",
    "/gradio_api/reset",
    "/gradio_api/startup-events",
    "/gradio_api/upload",
    "/gradio_api/upload_progress",
)
"""Paths of Gradio that the page needs."""

_FOLDERS = ("/assets/", "/static/", "/gradio_api/file=", "/gradio_api/heartbeat/")

_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""Everything is loaded from the service itself. Gradio compiles templates, hence unsafe-eval."""

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial")


def mount_page(app: FastAPI, service: Service) -> None:
    """Add the page to the application; what it stores is deleted when the application ends."""
    # Where no event loop runs, Gradio opens several and leaves them open
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _mount(app, service)).result()


async def _mount(app: FastAPI, service: Service) -> None:
    folder = Path(tempfile.mkdtemp(prefix="segformer-")).resolve()  # only for this user
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    options = service.options
    blocks = build_blocks(service, folder)
    blocks.queue(max_size=4 * options.queue_size, api_open=False)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=options.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        favicon_path=str(_ICON),
        theme=_theme(),
        css=(Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    page: Any = mounted.app
    # Streams that pages keep open would delay the end of the service
    page.stop_event = app.state.stopping
    mounted.app = PageOnly(page)
    _keep_clean(app, folder)


def _theme() -> gr.themes.Base:
    """Gradio's own colors with fonts of the visitor's system, and gray text dark enough to read."""
    theme = gr.themes.Default(
        primary_hue="blue", font=_FONTS, font_mono=("ui-monospace", "monospace")
    )
    return theme.set(
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400"
    )


class PageOnly:
    """Answers what the page asks; other parts of Gradio are not reached.

    Args:
        app: Gradio's application.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            HTTPException: There is no such page.
        """
        path = scope["path"]
        fetched = path.partition("file=")[2].lstrip("/")
        if (path not in _PATHS and not path.startswith(_FOLDERS)) or "://" in fetched:
            raise HTTPException(404)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _keep_clean(app: FastAPI, folder: Path) -> None:
    """Delete old files while the application runs, and all of them at its end."""
    outer = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with outer(app):
            cleaning = asyncio.create_task(_clean_regularly(folder))
            try:
                yield
            finally:
                cleaning.cancel()
                with suppress(asyncio.CancelledError):
                    await cleaning
        shutil.rmtree(folder, ignore_errors=True)

    app.router.lifespan_context = lifespan


async def _clean_regularly(folder: Path) -> None:
    while True:
        await asyncio.sleep(_KEPT / 12)
        await asyncio.to_thread(clean, folder, _KEPT)
