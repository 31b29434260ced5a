"""Running the service until it is stopped."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from segformer.prediction.config import PredictConfig
from segformer.serving.app import Mount, create_app
from segformer.serving.models import load_models
from segformer.serving.options import ServeOptions

logger = logging.getLogger(__name__)

_BACKLOG = 2048
"""Connections that wait until they are accepted."""


def serve(models: Sequence[str], options: ServeOptions, config: PredictConfig) -> None:
    """Serve models until SIGTERM or Ctrl-C; running requests are then finished.

    Args:
        models: ``MODEL`` or ``NAME=MODEL``; the first is the default.
        options: Address, limits and access.
        config: How images are seen and run.

    Raises:
        ValueError: A model cannot be loaded, or the address cannot be listened on.
        KeyboardInterrupt: Ctrl-C, after the running requests.
    """
    listening = _listen(options)  # before the models are loaded, which takes a while
    with listening:
        loaded = load_models(models, config)
        run_app(create_app(loaded, options, mounts=mounts_of(options)), options, listening)


def run_app(app: FastAPI, options: ServeOptions, listening: socket.socket) -> None:
    """Serve an application on a socket; see `serve`."""
    server = Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            # A running request ends at its deadline at the latest
            timeout_graceful_shutdown=math.ceil(options.deadline) + 1,
        ),
        app.state.stopping,
    )
    # uvicorn hands the signal on when all is done: SIGTERM is then a success
    former = signal.signal(signal.SIGTERM, _ignore)
    try:
        host, port = listening.getsockname()[:2]
        logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        server.run([listening])
    finally:
        signal.signal(signal.SIGTERM, former)
    logger.info("stopped")


class Server(uvicorn.Server):
    """Ends the streams that open pages hold before it waits for running requests.

    Args:
        config: uvicorn's.
        stopping: Is set when the service ends.
    """

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event):
        super().__init__(config)
        self.stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self.stopping.set()
        await super().shutdown(sockets)


def mounts_of(options: ServeOptions) -> tuple[Mount, ...]:
    """The page, if it is wanted and can be shown."""
    if not options.page:
        return ()
    if importlib.util.find_spec("gradio") is None:
        logger.info('there is no page at /, which needs gradio: pip install "segformer[serve]"')
        return ()
    from segformer.serving.page.mount import mount_page

    return (mount_page,)


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {options.host} port {options.port}: {error.strerror}; choose "
            "another --port or --host"
        ) from None


def _ignore(number: int, frame: FrameType | None) -> None:
    """Take a signal that has been dealt with."""
